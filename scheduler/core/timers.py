"""When something is due by time alone: one entry per node or job, moved lazily.

A deadline that moves later (every heartbeat moves one) costs nothing: the old entry fires, and is looked at.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush

from ...spec.ids import JobId, Micros, NodeId

TimerKey = tuple[int, JobId] | tuple[int, NodeId]
"""(0, job) or (1, node)."""


@dataclass(slots=True)
class Timers:
    heap: list[tuple[Micros, TimerKey]] = field(default_factory=list)
    set_for: dict[TimerKey, Micros] = field(default_factory=dict)

    def next_us(self) -> Micros | None:
        """When to look again; nothing can be due before. What was dropped is no reason to look."""
        while self.heap and self.set_for.get(self.heap[0][1]) != self.heap[0][0]:
            heappop(self.heap)
        return self.heap[0][0] if self.heap else None

    def set(self, key: TimerKey, at_us: Micros) -> None:
        """Look at `key` at `at_us` or before. Keeps an earlier entry."""
        standing = self.set_for.get(key)
        if standing is None or at_us < standing:
            self.set_for[key] = at_us
            heappush(self.heap, (at_us, key))

    def drop(self, key: TimerKey) -> None:
        """`key` is over."""
        if self.set_for.pop(key, None) is not None and len(self.heap) > 2 * len(self.set_for) + 64:
            self.heap = sorted((at_us, standing) for standing, at_us in self.set_for.items())

    def due(self, now_us: int) -> list[TimerKey]:
        """What is due, in order of time; changes nothing."""
        found: list[tuple[Micros, TimerKey]] = []
        stack = [0]
        while stack:
            at = stack.pop()
            if at < len(self.heap) and self.heap[at][0] <= now_us:
                if self.set_for.get(self.heap[at][1]) == self.heap[at][0]:
                    found.append(self.heap[at])
                stack += (2 * at + 1, 2 * at + 2)
        return [key for _, key in sorted(found)]

    def pop_due(self, now_us: int) -> list[TimerKey]:
        """Take out what is due; whoever calls sets the deadlines that still stand."""
        taken = []
        while self.heap and self.heap[0][0] <= now_us:
            at_us, key = heappop(self.heap)
            if self.set_for.get(key) == at_us:
                del self.set_for[key]
                taken.append(key)
        return taken
