"""Elastic gangs give up some of their nodes before anybody is stopped whole.

Such a gang saves, and goes on at once with what is left of it, never with less than its least: that costs the
pit stop and nothing else. One that has never saved could lose all that it has done, and is left to the choice
by what is lost (preemption.py). A gang gives up all of its tasks on a node or none of them, because the node
is kept for the other job from then on.

Nodes are cleared greedily: the next one where the fewest GPU-microseconds are lost, of equals the one that
makes the most room. (After Pollux, OSDI 2021, and Sia, SOSP 2023: sizes are changed where others would stop
jobs.)
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ...spec.ids import JobId, NodeId
from .candidates import takes_work, tasks_that_fit
from .job import Job
from .node import Node
from .placement import copy_of, give_back
from .slots import free_ports
from .state import ClusterState

Option = tuple[int, int, int, NodeId, list[JobId]]
"""What room for more tasks on a node costs, how much less room it makes, how many first ranks would move, the
node, and who gives it up."""


class Shrunk(NamedTuple):
    """Where the job goes, and who gives up its part there."""

    slots: list[NodeId]
    """The node of each task."""
    victims: set[JobId]


def goes_on_without(state: ClusterState, job: Job, given: Collection[NodeId]) -> bool:
    """An elastic gang can go on with what it has elsewhere, when it gives up these nodes."""
    if not job.demand.elastic:
        return False
    rest = [task.node for task in job.tasks if task.node not in given]
    rest = [name for name in rest if takes_work(state, state.nodes[name])]
    if len(rest) < job.demand.instance_count_min:
        return False
    own = job.tasks[0].node
    return not job.demand.rendezvous or any(name == own or free_ports(state, name) for name in rest)


def shrink(
    state: ClusterState, job: Job, losses: Mapping[JobId, int], areas: Sequence[Iterable[Node]]
) -> Shrunk | None:
    """Room for all of the job in one of the areas, of gangs that may be stopped (`losses`: what that costs)
    and can go on smaller. None: that is not enough, or not needed."""
    elastic = {
        number: loss
        for number, loss in losses.items()
        if (gang := state.jobs[number]).course.checkpoints
        and len(gang.tasks) > gang.demand.instance_count_min
    }
    if not elastic:
        return None
    searches = (Search(state, job, elastic, {node.node for node in area}) for area in areas)
    found = [shrunk for search in searches if (shrunk := search.find()) is not None]
    return min(found, key=lambda one: sum(losses[number] for number in one.victims), default=None)


@dataclass(slots=True)
class Search:
    """In one area."""

    state: ClusterState
    job: Job
    losses: Mapping[JobId, int]
    area: Collection[NodeId]
    here: dict[NodeId, list[JobId]] = field(default_factory=dict)
    """Who may give up a node, the least loss first."""
    given: dict[JobId, set[NodeId]] = field(default_factory=dict)
    rooms: dict[NodeId, int] = field(default_factory=dict)
    """How many tasks fit on each node when all that is given is gone."""

    def find(self) -> Shrunk | None:
        wanted = self.job.demand.instance_count_min
        for number in sorted(self.losses, key=lambda number: (self.losses[number], number)):
            for name in dict.fromkeys(task.node for task in self.state.jobs[number].tasks):
                if name in self.area:
                    self.here.setdefault(name, []).append(number)
        self.rooms = {name: self._fits(name, ()) for name in self.area}
        room = sum(self.rooms.values())
        if room >= wanted:
            return None
        options = {name: option for name in self.here if (option := self._option(name)) is not None}
        while room < wanted:
            if not options:
                return None
            *_, name, needed = min(options.values())
            for number in needed:
                self.given.setdefault(number, set()).add(name)
            room -= self.rooms[name]
            self.rooms[name] = self._fits(name, self._leavers(name))
            room += self.rooms[name]
            for touched in self._touched(name, needed):
                options.pop(touched, None)
                if (option := self._option(touched)) is not None:
                    options[touched] = option
        self._spare(wanted)
        return self._result(wanted)

    def _touched(self, name: NodeId, needed: Iterable[JobId]) -> Iterable[NodeId]:
        """Where another option may be, now that these have given up the node: there, and where they are."""
        tasks = (task for number in needed for task in self.state.jobs[number].tasks)
        return dict.fromkeys([name, *(task.node for task in tasks if task.node in self.here)])

    def _option(self, name: NodeId) -> Option | None:
        """None: no more fits there, whoever gives it up."""
        leavers, needed = self._leavers(name), list[JobId]()
        for number in self.here[name]:
            given = self.given.get(number, set())
            if name in given or not goes_on_without(self.state, self.state.jobs[number], given | {name}):
                continue
            needed.append(number)
            gain = self._fits(name, [*leavers, *needed]) - self.rooms[name]
            if gain > 0:
                cost = sum(self.losses[one] for one in needed if one not in self.given)
                firsts = sum(self.state.jobs[one].tasks[0].node == name for one in needed)
                return cost, -gain, firsts, name, needed
        return None

    def _spare(self, wanted: int) -> None:
        """Whoever is not needed in the end stays as it is, those who would lose most first."""
        for number in sorted(self.given, key=lambda number: (-self.losses[number], number)):
            for name in sorted(self.given[number]):
                left = [one for one in self._leavers(name) if one != number]
                fewer = self.rooms[name] - self._fits(name, left)
                if sum(self.rooms.values()) - fewer >= wanted:
                    self.given[number].remove(name)
                    self.rooms[name] -= fewer
            if not self.given[number]:
                del self.given[number]

    def _result(self, wanted: int) -> Shrunk | None:
        """Nodes that are given up first, then those on which nobody that shrinks stays. None: somebody could
        not go on, after all."""
        used = {name for names in self.given.values() for name in names}
        first = sorted(
            self.rooms, key=lambda name: (name not in used, name in self.here, -self.rooms[name], name)
        )
        slots = [name for name in first for _ in range(self.rooms[name])][:wanted]
        jobs = [self.state.jobs[number] for number in self.given]
        whole = all(goes_on_without(self.state, job, set(slots)) for job in jobs)
        return Shrunk(slots, set(self.given)) if whole else None

    def _leavers(self, name: NodeId) -> list[JobId]:
        return [number for number, names in self.given.items() if name in names]

    def _fits(self, name: NodeId, without: Iterable[JobId]) -> int:
        load = copy_of(self.state.loads[name])
        for number in without:
            give_back(self.state, load, self.state.jobs[number], name)
        return tasks_that_fit(self.state.nodes[name], load, self.job.demand)
