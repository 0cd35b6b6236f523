"""Drives a sweep whose trials are calls of a function: it keeps as many workers as there may be, ends them,
and the sweep. Which trial a worker runs, and what came of it, the worker tells the studies itself.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

from msgspec.structs import replace

from ..spec.errors import Conflict, LimitExceeded, NotFound
from ..spec.ids import JobId
from ..spec.job import JobSpec
from ..spec.sweep import SweepSpec
from ..spec.sweep_reading import parse_canonical_sweep
from .core import stimuli
from .core.state import ClusterState
from .loop import ChangeWatch, Loop
from .sweeps.driving import ChangeSweep, StartWorker
from .sweeps.standings import limits_of, standing_of
from .sweeps.steer import Cancel, End, Start, next_crew_move
from .sweeps.study import SWEEP_OVER, Study, SweepState
from .sweeps.tally import Tally

RETRY_S: Final = 2.0
"""After a refusal that may pass."""
IDLE_BELOW: Final = 1
"""In priority, of trials that only take what is idle: whoever has the sweep's own goes first."""
LOOK_S: Final = 0.02
"""Between two looks: workers of short trials change their study hundreds of times a second."""

_log = logging.getLogger(__name__)

NewJobOf = Callable[[JobSpec], stimuli.NewJob]
Remember = Callable[[Sequence[JobId], Sequence[JobSpec]], None]
_Move = Start | End | Cancel | None


class CrewDrive:
    """One sweep, from where the store has it, until it is over."""

    suggested = True
    """There is no sampler here that could die before its first word."""

    def __init__(self, loop: Loop, study: int, new_job: NewJobOf, remember: Remember) -> None:
        self._loop, self._number = loop, study
        self._new_job, self._remember = new_job, remember
        self._seen = 0
        self._tally = Tally()
        self._spec: SweepSpec

    async def close(self) -> None:
        """Nothing is held."""

    async def run(self, _begins: asyncio.Semaphore) -> None:
        """Raises Unavailable, NotFound, and what refuses a worker's job."""
        with contextlib.closing(self._loop.watch_changes(self._number)) as watch:
            await self._loop.read_sweep(self._number, self._begin)
            while True:
                move, left_s = await self._loop.read_sweep(self._number, self._look)
                match move:
                    case Start(number, idle):
                        await self._start(number, idle=idle)
                    case Cancel(jobs):
                        for job in jobs:
                            await self._cancel(job)
                    case End(to, why, ends_as):
                        await self._loop.submit(ChangeSweep(self._number, to, why, ends_as))
                        if to in SWEEP_OVER:
                            return
                if not isinstance(move, Start | End):
                    await _changed(watch, left_s)

    def _begin(self, _: ClusterState, study: Study) -> bool:
        self._spec = parse_canonical_sweep(study.document)
        self._seen = study.version
        self._tally = Tally.of(study.own_trials)
        return True

    def _look(self, state: ClusterState, study: Study) -> tuple[_Move, float | None]:
        """What is next; and for how long at most nothing is, if there is a limit."""
        for trial in study.changed_since(self._seen):
            self._tally.note(trial)
        self._seen = study.version
        limits, now_us = limits_of(self._spec, study), self._loop.now_us()
        jobs = [state.jobs[job] for job in study.workers]
        standing = standing_of(self._spec, study, self._tally, jobs, now_us)
        move = next_crew_move(limits, standing, len(self._tally.running), study.workers_made)
        stops = limits.until_us is None or study.state is SweepState.STOPPING
        return move, None if stops else max(0.0, ((limits.until_us or 0) - now_us) / 1e6)

    async def _start(self, number: int, *, idle: bool) -> None:
        spec = self._spec.trial_job(number, {})
        new = self._new_job(spec)
        if idle:
            new = replace(new, priority=new.priority - IDLE_BELOW)
        try:
            job = await self._loop.submit(StartWorker(self._number, number, new))
        except LimitExceeded as error:  # as many jobs as there may be
            _log.info("sweep %d: worker %d waits: %s", self._number, number, error)
            await asyncio.sleep(RETRY_S)
        except Conflict:  # it was paused meanwhile
            return
        else:
            self._remember([job], [spec])

    async def _cancel(self, job: JobId) -> None:
        try:
            await self._loop.submit(stimuli.Cancel(job, None, by=f"sweep {self._number}"))
        except NotFound:
            return  # it has ended by itself


async def _changed(watch: ChangeWatch, left_s: float | None) -> None:
    """Until something has changed, or the time is over."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(watch.changed(), left_s)
        await asyncio.sleep(LOOK_S)
