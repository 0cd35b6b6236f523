"""The set of victims that loses least, by looking at all of them: for small clusters only."""

from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, slots=True)
class Held:
    """What a job loses when it is stopped, and on which nodes it is."""

    loss_us: int
    on: frozenset[str]


@dataclass(frozen=True, slots=True)
class Case:
    """A full cluster: `tasks` whole nodes of one rack are wanted."""

    held: tuple[Held, ...]
    racks: tuple[tuple[str, ...], ...]
    tasks: int


def least_loss(case: Case) -> int:
    """Of all ways to choose that many nodes of one rack: whoever is on them must leave."""
    return min(
        sum(held.loss_us for held in case.held if not held.on.isdisjoint(nodes))
        for rack in case.racks
        for nodes in combinations(rack, case.tasks)
    )
