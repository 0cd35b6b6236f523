"""Who asks for a study that is not in memory waits until its trials are read; nobody else does.

Meanwhile nothing changes it, since all that is about it waits too; and what a step has changed is committed
before a study may leave memory. So reading it beside the loop gives what is true.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..spec.errors import PacelineError, Unavailable
from .loop_engine import Engine
from .loop_lookup import read_trials
from .loop_step import Asked
from .store.base import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What somebody has asked, and where the answer goes."""

    stimulus: Asked
    answer: asyncio.Future[Any]


class Openings:
    """`ready` is given what has waited, in its order."""

    def __init__(self, store: Store, ready: Callable[[list[Arrival]], None]) -> None:
        self._store = store
        self._ready = ready
        self._waiting: dict[int, list[Arrival]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def set_aside(self, engine: Engine, arrivals: list[Arrival]) -> list[Arrival]:
        """Those that need not wait."""
        at_once = []
        for arrival in arrivals:
            study = engine.cold_study(arrival.stimulus)
            if study is None:
                at_once.append(arrival)
            elif study in self._waiting:
                self._waiting[study].append(arrival)
            else:
                self._waiting[study] = [arrival]
                task = asyncio.create_task(self._open(engine, study, self._waiting[study]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return at_once

    def abandon(self) -> list[Arrival]:
        """The loop begins anew: all that wait. What is being read is of no use any more."""
        waiting, self._waiting = self._waiting, {}
        return [arrival for arrivals in waiting.values() for arrival in arrivals]

    async def close(self) -> None:
        """Until nothing is being read."""
        await asyncio.gather(*self._tasks)

    async def _open(self, engine: Engine, study: int, waiting: list[Arrival]) -> None:
        failure: PacelineError | None = None
        try:
            engine.studies.put(study, await asyncio.to_thread(read_trials, self._store, study))
        except PacelineError as error:
            failure = error
        except Exception as bug:
            log.exception("study %d cannot be read", study)
            failure = Unavailable(f"study {study} cannot be read: {bug}", hint="see the scheduler's log")
        if self._waiting.get(study) is not waiting:
            return  # the loop has begun anew
        del self._waiting[study]
        if failure is None:
            self._ready(waiting)
            return
        for arrival in waiting:
            if not arrival.answer.done():
                arrival.answer.set_exception(failure)
