"""Keeps the garbage collector from walking again and again what stays.

A cluster's state is millions of objects that live long and form no cycles; a full collection looks at all of
them, finds nothing, and meanwhile nobody is answered: 1 to 2 s with 100,000 jobs. So whatever has survived a
full collection is set aside (gc.freeze) and not looked at by the next. What dies there in a cycle stays for a
while: when twice as much is set aside as was alive the last time, the next collection looks at everything.
"""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

GROWTH: Final = 2
LEAST: Final = 1_000_000
"""Objects: below, nobody notices a full collection."""
THRESHOLDS: Final = (2_000, 10, 5)
"""A full collection for each 100,000 objects that stay, which takes 50 ms: each is looked at only once, so
that more collections cost no more in all."""


@asynccontextmanager
async def collecting(least: int = LEAST) -> AsyncIterator[None]:
    """The collector is on, from a state in which it was off; at the end it is off again."""
    aside = Aside(least)
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

    def __init__(self, least: int) -> None:
        self._least = least
        self._most = self._count = 0
        self._everything = False
        """The next full collection looks at all that there is."""

    def measure(self) -> None:
        """What is set aside now is alive."""
        self._count = gc.get_freeze_count()
        self._most = max(self._least, GROWTH * self._count)

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        if phase != "stop" or info["generation"] < 2:
            return
        if self._everything:
            gc.freeze()
            self.measure()
            self._everything = False
            return
        self._count += len(gc.get_objects(generation=2))
        gc.freeze()
        if self._count > self._most:
            # Some of it has died since. To count takes as long as to look at a part of it, so not each time.
            self._count = gc.get_freeze_count()
            self._everything = self._count > self._most
            if self._everything:
                gc.unfreeze()
