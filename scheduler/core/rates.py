"""How often a gang fails, from what this scheduler has seen: faults for each second that a node spent in
gangs.

A prior stands in for what is not known yet: as if one fault had been seen in PRIOR_US of one node, about
what clusters of new machines show (Llama 3's report: 419 unexpected interruptions of 2,048 nodes in 54 days,
one in 264 days of a node; small clusters of mixed machines do worse). A gang of n nodes fails n times as
often. What is counted: the scheduler's life, and earlier attempts of the jobs that were live when it started.
"""

from typing import Final

from msgspec import Struct

from ...spec.lifecycle import AttemptOutcome
from .settings import SECOND_US

FAULTS: Final = frozenset(
    {AttemptOutcome.WORKER_FAILED, AttemptOutcome.NODE_LOST, AttemptOutcome.START_FAILED}
)
"""Outcomes of attempts that nobody wished for."""
PRIOR_US: Final = 30 * 86_400 * SECOND_US


class FaultRate(Struct, frozen=True):
    """`node_us`: time that nodes spent in attempts which are over; `faults`: how many of these ended by a
    fault and were followed by another."""

    faults: int = 0
    node_us: int = 0

    def with_end(self, node_us: int, *, fault: bool) -> "FaultRate":
        return FaultRate(self.faults + fault, self.node_us + max(0, node_us))

    def plus(self, other: "FaultRate") -> "FaultRate":
        return FaultRate(self.faults + other.faults, self.node_us + other.node_us)

    def mtbf_us(self, nodes: int) -> int:
        """Expected time between two faults of a gang on so many nodes (the mean under the prior)."""
        return (PRIOR_US + self.node_us) // ((1 + self.faults) * max(1, nodes))


NO_RATE: Final = FaultRate()
