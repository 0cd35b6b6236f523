"""Simulated time and a simulated network: all that happens is drawn from one seed."""

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

MS = 1_000
SECOND = 1_000_000
START_US = 1_000_000 * SECOND


class World:
    """A clock, a line of things to come, a die, and the story so far."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.die = Random(seed)
        self.now_us = START_US
        self.calm = False
        """True once faults have stopped."""
        self.story: list[str] = []
        self._line: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def later(self, delay_us: int, do: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heappush(self._line, (self.now_us + delay_us, self._count, do, args))

    def between(self, low_us: int, high_us: int) -> int:
        return self.die.randint(low_us, high_us)

    def chance(self, share: float) -> bool:
        return self.die.random() < share

    def tell(self, what: str) -> None:
        self.story.append(f"{(self.now_us - START_US) / 1e6:10.3f}  {what}")

    def run(self, until_us: int, done: Callable[[], bool]) -> bool:
        """Until `done` (True) or the time is up or nothing is left to happen (False)."""
        while self._line and self._line[0][0] <= until_us:
            at_us, _, do, args = heappop(self._line)
            self.now_us = at_us
            do(*args)
            if done():
                return True
        return done()


class Link:
    """What lies between one node and the scheduler; a partition stalls it without a sign at either end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cut = False
        self._stalled: list[Callable[[], None]] = []

    def heal(self) -> None:
        self.cut = False
        stalled, self._stalled = self._stalled, []
        for deliver in stalled:
            deliver()

    def pass_on(self, deliver: Callable[[], None]) -> None:
        if self.cut:
            self._stalled.append(deliver)
        else:
            deliver()


class Stream:
    """One connection: in order both ways, each end open until it closes or hears that the other did."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.world = link.world
        self.session = 0
        self.open_at_agent = True
        self.open_at_scheduler = True
        self._free_us = {"up": 0, "down": 0}

    def up(self, take: Callable[..., None], *args: Any) -> None:
        """From the agent; taken while the scheduler's end is open."""
        self._send("up", lambda: take(*args) if self.open_at_scheduler else None)

    def down(self, take: Callable[..., None], *args: Any) -> None:
        """From the scheduler; taken while the agent's end is open."""
        self._send("down", lambda: take(*args) if self.open_at_agent else None)

    def _send(self, way: str, deliver: Callable[[], None]) -> None:
        slow = self.world.chance(0.02) and not self.world.calm
        delay_us = self.world.between(100 * MS, 900 * MS) if slow else self.world.between(50, 3 * MS)
        at_us = max(self._free_us[way], self.world.now_us + delay_us)
        self._free_us[way] = at_us
        self.world.later(at_us - self.world.now_us, self.link.pass_on, deliver)
