"""Which nodes have room for a demand, best first: a memo for each kind of task, which follows the nodes'
changes lazily.

Its content follows from the state alone, so that placement stays a function of the state. A look costs what
has changed since the last look, not the number of nodes.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from msgspec.structs import replace

from ...spec.ids import NodeId
from ...spec.lifecycle import NodeContact
from ...spec.resources import WHOLE_GPU_MILLI, GangDemand
from .environments import has_environment
from .labels import admits, unmet
from .node import (
    GpuGroup,
    Load,
    Node,
    NodeInventory,
    Room,
    fresh_load,
    gpu_groups,
    matches,
    room_of,
)
from .packing import fit_of
from .pools import belongs, in_pool, pool_nodes
from .state import ClusterState
from .topology import Domains, Path, Scope, by_domain, can_be_together, path_of, scopes_of

MEMOS_MIN: Final = 64
ENTRIES_MAX: Final = 1_000_000
"""Nodes in all memos together, beyond the least number of memos."""
EVER_MAX: Final = 10_000
KNOWN_MAX: Final = 4096
"""Kinds of room that a memo knows."""
TASKS_MAX: Final = 1 << 20
"""On one node, of tasks that ask for nothing."""

FitKey = tuple[int, int, int, Path, NodeId]
"""Preferred labels that it lacks, then fragmentation (packing.py); equals stand as the places do."""


class Suits(NamedTuple):
    """How a node with some room suits a demand."""

    fits: int
    lacks: int
    """Preferred labels."""
    step: int
    tie: int
    """See packing.py."""
    path: Path


UNSEEN: Final = Suits(0, 0, 0, 0, ())
"""How a node with room that was not met yet suits."""


@dataclass(slots=True)
class Candidates:
    """`fits`: how many tasks fit on each connected node where one does. `room`: their sum. `warming`: what
    of `fits` is on nodes that still warm up. `domains`: `fits` by place, the narrowest level
    that matters first.
    """

    demand: GangDemand
    """A gang without bounds, see `boundless`."""
    levels: Scope = ()
    epoch: int = -1
    version: int = -1
    """Of the workload that `keys` are judged by."""
    seen: int = 0
    room: int = 0
    fits: dict[NodeId, int] = field(default_factory=dict)
    warming: dict[NodeId, int] = field(default_factory=dict)
    keys: dict[NodeId, FitKey] = field(default_factory=dict)
    order: list[FitKey] = field(default_factory=list)
    """Heap; an entry that is not in `keys` is stale."""
    known: dict[Room, "Suits | None"] = field(default_factory=dict)
    """Of nodes with such room; None: not even one task fits."""
    domains: tuple[Domains, ...] = ()
    opened: frozenset[NodeId] = frozenset()
    """Kept for another job, and looked at all the same."""

    def most(self, avoid: Collection[NodeId] = ()) -> int:
        """The most tasks that can be placed at once, some nodes not counted."""
        if not self.demand.within:
            return self.room - sum(self.fits.get(name, 0) for name in avoid)
        return max(self.domains[0].rooms_without(avoid).values(), default=0)

    def most_with(self, state: ClusterState, more: Mapping[NodeId, int]) -> int:
        """The most when there were room for so many more on some nodes."""
        if not self.demand.within:
            return self.room + sum(more.values())
        rooms = dict(self.domains[0].rooms)
        for path, room in by_domain(
            ((state.nodes[name], count) for name, count in more.items()), self.domains[0].scope
        ).items():
            rooms[path] = rooms.get(path, 0) + room
        return max(rooms.values(), default=0)

    def best_first(self, avoid: Collection[NodeId] = ()) -> Iterator[NodeId]:
        """Every node with room but these, best first. Take what is needed and drop it: one at a time."""
        taken: list[FitKey] = []
        try:
            while self.order:
                key = heappop(self.order)
                if self.keys.get(key[-1]) == key and (not taken or taken[-1] != key):
                    taken.append(key)
                    if key[-1] not in avoid:
                        yield key[-1]
        finally:
            for key in taken:
                heappush(self.order, key)

    def follow(self, state: ClusterState) -> None:
        """Look again at the nodes that have changed."""
        log = state.changes
        if self.epoch != log.epoch:
            self.epoch, self.seen, self.room = log.epoch, len(log.nodes), 0
            self.version = state.workload.version
            self.known = {}
            self.fits, self.warming, self.keys, self.order = {}, {}, {}, []
            self.domains = tuple(Domains(scope) for scope in scopes_of(self.demand, self.levels))
            for name in state.nodes:
                self.look(state, name)
            return
        if self.seen < len(log.nodes):
            for name in set(log.nodes[self.seen :]):
                load = state.loads.get(name)
                full = (
                    load is not None and load.room is not None and self.known.get(load.room, UNSEEN) is None
                )
                if not full or name in self.fits:
                    self.look(state, name)
            self.seen = len(log.nodes)
        if self.version != state.workload.version:
            self.version, self.known = state.workload.version, {}
            self.keys = {name: self._key(state, name) for name in self.fits}
            self.order = []
        if not self.order or len(self.order) > 4 * len(self.keys) + 64:
            self.order = list(self.keys.values())
            heapify(self.order)

    def look(self, state: ClusterState, name: NodeId) -> None:
        """Again: it may have changed."""
        node, before = state.nodes.get(name), self.fits.get(name, 0)
        suits = None if node is None else self._suits(state, node)
        if suits is not None and node is not None and not takes_work_of(state, node, self.demand):
            suits = suits if name in self.opened else None
        if suits is None and not before:
            return
        fits = 0 if suits is None else suits.fits
        self.room += fits - before
        self.warming.pop(name, None)
        if self.domains:
            labels = node.inventory.labels if node is not None else ()
            for level in self.domains:
                if labels or name in level.homes:
                    level.put(name, labels, fits)
        if node is None or suits is None:
            del self.fits[name], self.keys[name]
            return
        self.fits[name] = fits
        if node.inventory.warming:
            self.warming[name] = fits
        key = (*suits[1:], name)
        if self.keys.get(name) != key:
            self.keys[name] = key
            heappush(self.order, key)

    def _suits(self, state: ClusterState, node: Node) -> Suits | None:
        """When it takes work. Most nodes have the same room as many others."""
        inventory, load = node.inventory, state.loads[node.node]
        room = load.room or room_of(state.rooms, inventory, load)
        try:
            return self.known[room]
        except KeyError:
            pass
        if len(self.known) >= KNOWN_MAX:
            self.known.clear()
        suits, fits = None, tasks_that_fit(node, load, self.demand)
        if fits:
            step, tie = fit_of(state.workload, inventory, load, self.demand)
            lacks, path = unmet(inventory, self.demand), path_of(inventory.labels, self.levels)
            suits = Suits(fits, lacks, step, tie, path)
        self.known[room] = suits
        return suits

    def _key(self, state: ClusterState, name: NodeId) -> FitKey:
        """Of a node with room."""
        suits = self._suits(state, state.nodes[name])
        assert suits is not None
        return (*suits[1:], name)


def candidates_for(state: ClusterState, demand: GangDemand) -> Candidates:
    """The memo of `demand`, up to date."""
    kind = boundless(demand)
    memo = state.candidates.get(kind)
    if memo is None:
        if len(state.candidates) >= max(MEMOS_MIN, ENTRIES_MAX // max(1, len(state.nodes))):
            del state.candidates[next(iter(state.candidates))]
        memo = state.candidates[kind] = Candidates(kind, state.settings.topology_levels)
    memo.follow(state)
    return memo


def candidates_with(state: ClusterState, demand: GangDemand, opened: frozenset[NodeId]) -> Candidates:
    """The same with nodes that are kept for somebody else, and take work otherwise; for this once."""
    memo = candidates_for(state, demand)
    found = Candidates(memo.demand, memo.levels, opened=opened)
    found.domains = tuple(Domains(level.scope) for level in memo.domains)
    for name in (*memo.fits, *sorted(opened)):
        found.look(state, name)
    return found


@lru_cache(maxsize=EVER_MAX)
def boundless(demand: GangDemand) -> GangDemand:
    """The same tasks in a gang of any size: where one of them fits does not hang on how many there are."""
    asked = demand.constraints
    if asked is not None and not demand.near:
        asked = replace(asked, within="", within_preferred=False)
    return replace(
        demand,
        instance_count=1,
        instance_count_min=1,
        instance_count_max=TASKS_MAX,
        processes_per_task=1,
        exclusive=False,
        rendezvous=False,
        constraints=asked,
    )


def takes_work(state: ClusterState, node: Node) -> bool:
    """Of anybody; see `is_able` for the one that it is kept for."""
    return is_able(state, node) and node.node not in state.claimed


def working(state: ClusterState, pool: str) -> list[Node]:
    """Those of a pool that take work of anybody."""
    off = {*state.resting, *state.closed, *state.claimed}
    return [node for node in pool_nodes(state, pool) if node.at_hand and node.node not in off]


def takes_work_of(state: ClusterState, node: Node, demand: GangDemand) -> bool:
    """Of a job of this demand."""
    return takes_work(state, node) and in_pool(state, node, demand.pool)


def is_able(state: ClusterState, node: Node) -> bool:
    return node.at_hand and node.node not in state.resting and node.node not in state.closed


def can_ever(state: ClusterState, demand: GangDemand) -> bool:
    """Could the nodes in service run it if they were empty? With no nodes at all: who knows."""
    known = state.ever.get(demand)
    if known is None:
        if len(state.ever) >= EVER_MAX:
            state.ever.clear()
        known = state.ever[demand] = _can_ever(state, demand)
    return known


def most_tasks(inventory: NodeInventory, demand: GangDemand) -> int:
    """How many tasks would fit on the empty node."""
    return _count(inventory, fresh_load(inventory), demand)


def tasks_that_fit(node: Node, load: Load, demand: GangDemand) -> int:
    """How many tasks fit on what is free."""
    return _count(node.inventory, load, demand)


def _can_ever(state: ClusterState, demand: GangDemand) -> bool:
    if not state.spans.get(demand.pool, True):
        return False  # before its reservation begins
    nodes = [node for node in state.nodes.values() if node.contact is not NodeContact.LOST]
    rooms = (
        (node, most_tasks(node.inventory, demand))
        for node in nodes
        if node.in_service and belongs(state.policy, node, demand.pool)
    )
    return not nodes or can_be_together(rooms, demand, state.settings.topology_levels)


def _count(inventory: NodeInventory, load: Load, demand: GangDemand) -> int:
    need, fits = demand.per_task, demand.instance_count_max
    if demand.environment and not has_environment(inventory, demand):
        return 0
    if (inventory.taints or demand.constraints is not None) and not admits(inventory, demand):
        return 0
    if need.cpu_milli:
        fits = min(fits, load.free_cpu_milli // need.cpu_milli)
    if need.memory_bytes:
        fits = min(fits, load.free_memory_bytes // need.memory_bytes)
    if fits > 0 and (need.gpus or need.gpu_milli):
        fits = min(fits, _gpu_room(gpu_groups(inventory, load), demand))
    return max(fits, 0)


def _gpu_room(groups: tuple[GpuGroup, ...], demand: GangDemand) -> int:
    """How many tasks the GPUs have room for."""
    gpus, milli, room, wish = demand.per_task.gpus, demand.per_task.gpu_milli, 0, demand.gpu
    for kind, free, lefts in groups:
        if not matches(kind, wish):
            continue
        if milli:
            room += free * (WHOLE_GPU_MILLI // milli)
            for left in lefts:
                room += left // milli
        else:
            room += free
    return room if milli else room // gpus
