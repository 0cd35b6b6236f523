"""Keeps the garbage collector from walking again and again what stays.

A cluster's state is millions of objects that live long and form no cycles; a full collection looks at all of
them, finds nothing, and meanwhile nobody is answered: 1 to 2 s with 100,000 jobs. So whatever has survived a
full collection is set aside (gc.freeze) and not looked at by the next. What dies there in a cycle stays for a
while: when there is twice as much as was left the last time, the next collection looks at everything.
"""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

GROWTH: Final = 2
LEAST: Final = 1_000_000
"""Blocks of memory: below, nobody notices a full collection."""
THRESHOLDS: Final = (2_000, 10, 2)
"""A full collection for each 40,000 objects that stay, which takes some 30 ms: each is looked at only once,
so that more collections cost no more in all."""


@asynccontextmanager
async def collecting(least: int = LEAST) -> AsyncIterator[None]:
    """The collector is on, from a state in which it was off; at the end it is off again."""
    loop = asyncio.get_running_loop()
    aside = Aside(least, lambda: loop.call_soon_threadsafe(gc.collect))
    gc.freeze()
    aside.measure()
    gc.callbacks.append(aside)
    before = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()
    try:
        yield
    finally:
        gc.disable()
        gc.callbacks.remove(aside)
        gc.set_threshold(*before)


class Aside:
    """A callback of gc: sets aside what a full collection has left."""

    def __init__(self, least: int, collect_soon: Callable[[], object]) -> None:
        """`collect_soon`: the next full collection is due when a quarter as much is new as the last one has
        left, which after a look at everything is too much by far; one of little before makes up for it."""
        self._least = least
        self._collect_soon = collect_soon
        self._most = 0
        self._everything = False
        """The next full collection looks at all that there is."""

    def measure(self) -> None:
        """What there is now is alive. Counted in blocks: to count what is set aside takes as long as looking
        at a part of it."""
        self._most = max(self._least, GROWTH * sys.getallocatedblocks())

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        if phase != "stop" or info["generation"] < 2:
            return
        gc.freeze()
        if self._everything:
            self.measure()
            self._collect_soon()
        self._everything = sys.getallocatedblocks() > self._most
        if self._everything:
            gc.unfreeze()
