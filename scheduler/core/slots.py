"""Which node each task of a gang goes to.

A restarted job prefers the nodes it had. The others go to nodes of their own, the best first (packing.py),
and share nodes only when these are too few. Where the job says how close together it shall be, that goes
first (topology.py); where it does not, it still goes into one narrow domain if the nodes there are as good as
those anywhere: so domains that are begun fill up, and whole ones stay whole. Ranks follow the place: tasks of
a node, of a rack, of a block are neighbours.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Final

from msgspec import Struct

from ...spec.ids import NodeId
from .candidates import Candidates, candidates_for, candidates_with
from .elastic import wanted
from .job import Job
from .state import ClusterState
from .topology import Path, best_fitting, path_of, share_out

Slots = list[NodeId]
Area = Collection[NodeId] | None
"""Of the cluster; None: all of it."""

AREAS_MAX: Final = 32
"""So many domains of a level are compared with the best nodes anywhere, for a gang that did not ask."""


def find_slots(state: ClusterState, job: Job, opened: frozenset[NodeId] = frozenset()) -> Slots | None:
    """A node for each task, or None. Nodes that refused the job come last. `opened`: nodes that are kept for
    another job, and shall be as if they were not."""
    room = candidates_with(state, job.demand, opened) if opened else candidates_for(state, job.demand)
    avoid = frozenset(job.course.avoid)
    slots = _Search(state, job, room, avoid).find()
    return _Search(state, job, room, frozenset()).find() if slots is None and avoid else slots


def free_ports(state: ClusterState, name: NodeId) -> list[int]:
    taken = state.loads[name].ports
    return [port for port in state.nodes[name].inventory.rendezvous_ports if port not in taken]


def in_place_order(state: ClusterState, slots: Iterable[NodeId], first: NodeId) -> Slots:
    """What stands around the first comes after it, then place by place; else as they were."""
    levels = state.settings.topology_levels
    paths = {name: path_of(state.nodes[name].inventory.labels, levels) for name in slots}
    return sorted(slots, key=lambda name: (paths[name] != paths[first], name != first, paths[name]))


class _Search(Struct, frozen=True):
    """For one job, on the nodes that have room for its tasks, but for some."""

    state: ClusterState
    job: Job
    room: Candidates
    avoid: frozenset[NodeId]

    def find(self) -> Slots | None:
        most = self.room.most(self.avoid)
        if most < self.job.demand.instance_count_min:
            return None
        count = min(most, wanted(self.state, self.job))
        for area in self._areas(count):
            if (slots := self._fill(area, count)) is not None:
                return slots
        return None

    def _areas(self, count: int) -> Iterator[Area]:
        """Where to try, the best first. A gang that must be within one domain is tried nowhere else."""
        demand, domains = self.job.demand, self.room.domains
        if domains and domains[0].rooms:
            kept = Counter(node for node in self._old_places(None, count) if node is not None)
            yield from self._asked_for(kept, count) if demand.near else self._as_good(kept, count)
        if not demand.within:
            yield self.room.fits if demand.near else None

    def _asked_for(self, kept: Counter[NodeId], count: int) -> Iterator[Collection[NodeId]]:
        """The domains with room for the gang, of the narrowest level first. Only a gang that must be in one
        gives up nodes that it had for it."""
        demand = self.job.demand
        must = bool(demand.within)
        for at, level in enumerate(self.room.domains[:1] if must else self.room.domains):
            there: Counter[Path] = Counter()
            for name, tasks in kept.items():
                if name in level.homes:
                    there[level.homes[name]] += tasks
            paths: Iterable[Path] = best_fitting(self.room.domains, at, count, self.avoid, there)
            if demand.constraints and demand.constraints.prefer:
                lacks = {path: self._lacks(level.members[path], count) for path in paths}
                paths = sorted(lacks, key=lambda path: (-there[path], lacks[path]))
            for path in paths:
                if must or there[path] == kept.total():
                    yield level.members[path]

    def _lacks(self, area: Collection[NodeId], count: int) -> int:
        """Preferred labels that its best nodes for so many tasks lack, over all tasks."""
        lacks = 0
        for name in self._best(area):
            tasks = min(count, self.room.fits[name])
            lacks += tasks * self.room.keys[name][0]
            count -= tasks
        return lacks

    def _as_good(self, kept: Counter[NodeId], count: int) -> Iterator[Collection[NodeId]]:
        """A domain whose best nodes are no worse than the best anywhere; none for a gang that has nodes."""
        if kept:
            return
        keys, domains = self.room.keys, self.room.domains
        best = [keys[name][:3] for name in islice(self._best(None), count)]
        if len(best) < count:
            return
        for at, level in enumerate(domains):
            for path in islice(best_fitting(domains, at, count, self.avoid, {}), AREAS_MAX):
                names = level.members[path]
                if sorted(keys[name][:3] for name in names if name not in self.avoid)[:count] == best:
                    yield names
                    return

    def _fill(self, area: Area, count: int) -> Slots | None:
        """All tasks in an area that has room for them; None: no rendezvous port there."""
        slots = self._chosen(area, Counter(), count) if not self.job.tasks else self._filled_up(area, count)
        return self._rank0_first(area, slots) if self.job.demand.rendezvous else slots

    def _filled_up(self, area: Area, count: int) -> Slots:
        """The old places, and others for the tasks that cannot have theirs."""
        old = self._old_places(area, count)
        used = Counter(node for node in old if node is not None)
        others = iter(self._chosen(area, used, old.count(None)))
        return [next(others) if node is None else node for node in old]

    def _old_places(self, area: Area, count: int) -> list[NodeId | None]:
        """Each task where it was, as far as there is room; in a smaller gang, those that are left close
        up."""
        used: Counter[NodeId] = Counter()
        kept: list[NodeId | None] = []
        for task in self.job.tasks:
            node = task.node
            fits = self.room.fits.get(node, 0) > used[node] and node not in self.avoid
            fits = fits and (area is None or node in area)
            kept.append(node if fits else None)
            used[node] += fits
        if len(kept) > count:
            kept = [node for node in kept if node is not None]
        return [*kept[:count], *[None] * (count - len(kept))]

    def _chosen(self, area: Area, used: Counter[NodeId], count: int) -> Slots:
        """Nodes for so many more tasks; those of one place stand together, nodes without labels as chosen."""
        if area is None:
            chosen = self._choose(None, used, count)
        else:
            names = sorted(area)  # as the memo has them they stand as the nodes happened to change
            left = {name: self.room.fits[name] - used[name] for name in names if name not in self.avoid}
            left = {name: room for name, room in left.items() if room}
            paths = {name: self._path(name) for name in left}
            chosen = []
            for near, tasks in share_out(left, paths, count):
                chosen += self._choose(
                    near, Counter({name: used[name] for name in near if used[name]}), tasks
                )
        if not self.room.levels or len(chosen) == 1:
            return chosen
        return sorted(chosen, key=lambda name: (*path, name) if (path := self._path(name)) else ())

    def _choose(self, area: Area, used: Counter[NodeId], count: int) -> Slots:
        """Nodes of their own, the best first; when there are too few, shared ones, evenly. Tasks of a node
        stand together, so that their ranks are neighbours."""
        best = self._best(area)
        order = list(islice((name for name in best if name not in used) if used else best, count))
        if len(order) == count:
            return order
        order += used
        left = {name: self.room.fits[name] - used[name] for name in order}
        chosen: Slots = []
        while len(chosen) < count:
            round_of = [name for name in order if left[name] > 0]
            assert round_of, f"room for {len(chosen)} of {count} tasks, after it was counted"
            for name in round_of:
                left[name] -= 1
            chosen += round_of
        place_of = {name: at for at, name in enumerate(order)}
        return sorted(chosen[:count], key=place_of.__getitem__)

    def _rank0_first(self, area: Area, slots: Slots) -> Slots | None:
        """Rank 0 needs a node with a free rendezvous port: one of the chosen, else one that has room. What
        stands around it comes with it to the front."""
        first = next((name for name in slots if free_ports(self.state, name)), None)
        if first is not None:
            if first == slots[0]:
                return slots
            return in_place_order(self.state, slots, first)
        spare = next((name for name in self._best(area) if free_ports(self.state, name)), None)
        return None if spare is None else [spare, *slots[1:]]

    def _best(self, area: Area) -> Iterator[NodeId]:
        """Those of the area, the best first."""
        if area is None:
            return self.room.best_first(self.avoid)
        keys = sorted(self.room.keys[name] for name in area)
        return (key[-1] for key in keys if key[-1] not in self.avoid)

    def _path(self, name: NodeId) -> Path:
        return path_of(self.state.nodes[name].inventory.labels, self.room.levels)
