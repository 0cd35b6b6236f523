"""Best fit by a look at every node, in plain Python: what a scheduler without indexes does.

Each task goes to the node with the least free GPUs that will do, of equals the first; tasks of a gang go to
nodes of their own. The line is that of arrival, whoever fits starts; a kind that did not fit is not tried
again in the same round. No queues, no quotas, no racks.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Ask(NamedTuple):
    """`tasks` equal parts with so many GPUs each."""

    number: int
    tasks: int
    gpus: int


class BestFit:
    def __init__(self, nodes: int, gpus: int) -> None:
        self.free = [gpus] * nodes
        self.line: list[Ask] = []
        self.placed: dict[int, tuple[Ask, list[int]]] = {}

    def end(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            ask, nodes = self.placed.pop(number)
            for node in nodes:
                self.free[node] += ask.gpus

    def round(self, arrived: Sequence[Ask]) -> Iterator[int]:
        """Who starts, one by one."""
        self.line += arrived
        failed: set[tuple[int, int]] = set()
        waiting, self.line = self.line, []
        for ask in waiting:
            nodes = None if ask[1:] in failed else self.fit(ask)
            if nodes is None:
                failed.add(ask[1:])
                self.line.append(ask)
                continue
            self.placed[ask.number] = ask, nodes
            for node in nodes:
                self.free[node] -= ask.gpus
            yield ask.number

    def fit(self, ask: Ask) -> list[int] | None:
        fits = [(free, node) for node, free in enumerate(self.free) if free >= ask.gpus]
        if len(fits) < ask.tasks:
            return None
        chosen = [min(fits)] if ask.tasks == 1 else sorted(fits)[: ask.tasks]
        return [node for _, node in chosen]
