"""Which line goes next, by guarantee and by fair share.

Among the queues (and users) beside one another, those that have less than they are guaranteed go first, then
those that have used the least for their weight; and so on below the one that was chosen. So one line stands
before another if, where their ways through the tree part, its queue is the better one: what happens in one
part of the organisation moves nobody in another. Equals are one group below; who is still equal goes by job.

Source: Fair Tree (R. Cox and L. Morrison, 2014: https://slurm.schedmd.com/fair_tree.html), whose Level FS is
weight / usage among siblings. Other than there, usage is exact at every decision instead of recalculated
every few minutes, and what runs is charged some minutes ahead: who has used nothing yet cannot take all at
once.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ...spec.ids import Micros
from .cluster_policy import Amount
from .queues import path_of

if TYPE_CHECKING:
    from .state import ClusterState
    from .usage import InUse

AHEAD_S: Final = 600
"""What runs is charged so long ahead."""

Level = tuple[bool, int, float]
"""Not below its guarantee; minus the priority, of a line; charge for its weight."""
Fair = tuple[Level, ...]
"""Sorts as lines go: from the level below the root down."""


@dataclass(slots=True)
class Levels:
    """The tree's levels at one time; each is worked out once, until what is in use there changes."""

    state: "ClusterState"
    now_us: Micros
    known: dict[str, Level] = field(default_factory=dict)
    """Priority left out."""

    def of(self, leaf: str, queue: str, minus_priority: int) -> Fair:
        """Where the jobs of that priority in a line stand. In a queue that has none below it priorities go
        before what its users have used; else a user's own jobs alone are ordered by them."""
        above = path_of(leaf)[1:-1]
        return (*map(self.of_queue, above), self.of_leaf(leaf, queue, minus_priority))

    def of_queue(self, path: str) -> Level:
        """Among those beside it."""
        return self.known.get(path) or self._look(path)

    def of_leaf(self, leaf: str, queue: str, minus_priority: int) -> Level:
        """Of the last level of that way."""
        level = self.known.get(leaf) or self._look(leaf)
        if not minus_priority or queue in self.state.tree.parted:
            return level
        not_below, _, charge = level
        return not_below, minus_priority, charge

    def forget(self, leaf: str) -> None:
        """Something began or ended there."""
        for path in path_of(leaf):
            self.known.pop(path, None)

    def _look(self, path: str) -> Level:
        """Charged is what it has used, decayed, and is sure to use, in GPU-seconds."""
        usage, policy = self.state.usage, self.state.policy
        used = usage.account(path, self.now_us, policy.half_life_us).gpu_s
        charge = used + usage.of(path).charge_milli * AHEAD_S / 1000
        queue = policy.queues.get(path)
        found = True, 0, charge
        if queue is not None:
            found = not below(queue.guaranteed, usage.bound(path)), 0, charge / queue.weight
        self.known[path] = found
        return found


def below(guaranteed: Amount, has: "InUse") -> bool:
    """It has less than that of something."""
    gpus, cpus = guaranteed.gpu_milli, guaranteed.cpu_milli
    return (gpus is not None and has.gpu_milli < gpus) or (cpus is not None and has.cpu_milli < cpus)
