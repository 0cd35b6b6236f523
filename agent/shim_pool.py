"""Shims that are free: they have finished a task and wait, over the connection that they have had since their
fork, for the next one.

A shim serves one task at a time, and only such as would be forked from its own zygote. Here is only what is
between two tasks; a free shim leaves when its connection ends: after a while without work, after many tasks,
when there are too many, or with the agent.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .shim_link import ShimLink
from .warm import Zygote

FREE_MAX: Final = 64
TASKS_MAX: Final = 1000
"""One after the other for one shim: whatever it may lose on the way, it loses no more of it."""


@dataclass(slots=True)
class ReusableShim:
    """A shim, the process that it was forked from, and how to reach it. Its pid is valid while the link is
    alive."""

    link: ShimLink
    pid: int
    zygote: Zygote
    tasks: int = 0
    free_since_s: float = 0.0


class ShimPool:
    """Belongs to the event loop's thread."""

    def __init__(self, idle_s: float) -> None:
        """`idle_s`: how long one is kept without work."""
        self._idle_s = idle_s
        self._free: list[ReusableShim] = []
        self._leaving: set[ShimLink] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def free(self, zygote: Zygote) -> int:
        """How many of that zygote's there are."""
        return sum(shim.zygote is zygote for shim in self._free)

    def take(self, zygote: Zygote, rested_s: float = 0.0) -> ReusableShim | None:
        """One of that zygote's: of those that have been free for `rested_s`, or else of all, the one that was
        free last: its memory is the warmest. Its link's callbacks are the caller's."""
        free = [shim for shim in reversed(self._free) if shim.zygote is zygote and shim.link.alive]
        until_s = time.monotonic() - rested_s
        found = next((shim for shim in free if shim.free_since_s <= until_s), free[0] if free else None)
        if found is not None:
            self._free.remove(found)
        return found

    def give(self, shim: ReusableShim, on_left: Callable[[], None]) -> None:
        """Its task's journal has ended: it says that it has left the task and is free, or goes."""
        if self._closed or shim.tasks >= TASKS_MAX:
            shim.link.close()
            return
        link = shim.link
        self._leaving.add(link)
        self._listen(shim)

        def on_free() -> None:
            on_left()
            self.put(shim)

        link.on_free = on_free

    def put(self, shim: ReusableShim) -> None:
        """It is free: it has left its task, was taken and not used, or has not had any."""
        self._leaving.discard(shim.link)
        self._listen(shim)
        if self._closed or len(self._free) >= FREE_MAX:
            shim.link.close()
            return
        shim.free_since_s = time.monotonic()
        self._free.append(shim)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._idle_s, self._let_idle_go)

    def _listen(self, shim: ReusableShim) -> None:
        """To nothing but its end."""
        shim.link.on_growth = _nothing
        shim.link.on_end = lambda: self._drop(shim)

    def _drop(self, shim: ReusableShim) -> None:
        self._leaving.discard(shim.link)
        if shim in self._free:
            self._free.remove(shim)

    def _let_idle_go(self) -> None:
        """Those at the front have been free for longest."""
        self._sweep = None
        now_s = time.monotonic()
        while self._free and now_s - self._free[0].free_since_s >= self._idle_s:
            self._free.pop(0).link.close()
        if self._free:
            wait_s = self._free[0].free_since_s + self._idle_s - now_s
            self._sweep = asyncio.get_running_loop().call_later(max(0.01, wait_s), self._let_idle_go)

    def close(self) -> None:
        """Let all of them go, also those that are about to be free."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for link in [*self._leaving, *(shim.link for shim in self._free)]:
            link.close()
        self._free.clear()
        self._leaving.clear()


def _nothing() -> None:
    pass
