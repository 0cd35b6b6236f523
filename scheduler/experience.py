"""Lets a scheduler that has just started know how long the newest jobs ran that were over before.

Read from the store a little after the start, which does not wait for it: what is decided meanwhile is decided
without.
"""

import asyncio
import logging
from typing import Final

from ..spec.errors import PacelineError
from ..spec.lifecycle import TERMINAL
from .core.runs import LOADED_MAX, Runs
from .loop import Loop
from .records import job_from_row
from .store.base import Store

AFTER_S: Final = 2.0

_log = logging.getLogger(__name__)


async def gather_experience(loop: Loop, store: Store, after_s: float = AFTER_S) -> None:
    await asyncio.sleep(after_s)
    try:
        loop.remember(await asyncio.to_thread(read_runs, store))
    except PacelineError as error:
        _log.warning("what is left of runs is predicted without those of before: %s", error)


def read_runs(store: Store) -> Runs:
    """Of the newest jobs that are over, the oldest learnt of first."""
    runs = Runs()
    rows = store.jobs(states=[state.value for state in sorted(TERMINAL)], limit=LOADED_MAX)
    for row in reversed(rows):
        runs.learn(job_from_row(row))
    return runs
