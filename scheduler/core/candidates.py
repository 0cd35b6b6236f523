"""Which nodes have room for a demand, best first: a memo per demand that follows the nodes' changes lazily.

Its content follows from the state alone, so that placement stays a function of the state. A look costs what
has changed since the last look, not the number of nodes.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Final

from ...spec.ids import NodeId
from ...spec.lifecycle import NodeContact
from ...spec.resources import WHOLE_GPU_MILLI, GangDemand
from .node import GpuGroup, Load, Node, NodeInventory, fresh_load, gpu_groups, matches
from .packing import fit_of
from .state import ClusterState

MEMOS_MIN: Final = 64
ENTRIES_MAX: Final = 1_000_000
"""Nodes in all memos together, beyond the least number of memos."""
EVER_MAX: Final = 10_000

FitKey = tuple[int, int, NodeId]


@dataclass(slots=True)
class Candidates:
    """`fits`: how many tasks fit on each connected node where one does. `room`: their sum. `warming`: what
    of `fits` is on nodes that still warm up.
    """

    demand: GangDemand
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

    def best_first(self) -> Generator[NodeId, None, None]:
        """Every node with room, best first. Take what is needed and close it."""
        taken: list[FitKey] = []
        try:
            while self.order:
                key = heappop(self.order)
                if self.keys.get(key[2]) == key and (not taken or taken[-1] != key):
                    taken.append(key)
                    yield key[2]
        finally:
            for key in taken:
                heappush(self.order, key)

    def follow(self, state: ClusterState) -> None:
        """Look again at the nodes that have changed."""
        log = state.changes
        if self.epoch != log.epoch:
            self.epoch, self.seen, self.room = log.epoch, len(log.nodes), 0
            self.version = state.workload.version
            self.fits, self.warming, self.keys, self.order = {}, {}, {}, []
            for name in state.nodes:
                self._look(state, name)
            return
        for name in set(log.nodes[self.seen :]):
            self._look(state, name)
        self.seen = len(log.nodes)
        if self.version != state.workload.version:
            self.version = state.workload.version
            self.keys = {name: self._key(state, name) for name in self.fits}
            self.order = []
        if not self.order or len(self.order) > 4 * len(self.keys) + 64:
            self.order = list(self.keys.values())
            heapify(self.order)

    def _look(self, state: ClusterState, name: NodeId) -> None:
        self.room -= self.fits.pop(name, 0)
        self.warming.pop(name, None)
        node = state.nodes.get(name)
        fits = 0
        if node is not None and takes_work(state, node):
            fits = tasks_that_fit(node, state.loads[name], self.demand)
        if not fits:
            self.keys.pop(name, None)
            return
        self.fits[name] = fits
        if node is not None and node.inventory.warming:
            self.warming[name] = fits
        self.room += fits
        key = self._key(state, name)
        if self.keys.get(name) != key:
            self.keys[name] = key
            heappush(self.order, key)

    def _key(self, state: ClusterState, name: NodeId) -> FitKey:
        step, tie = fit_of(state.workload, state.nodes[name].inventory, state.loads[name], self.demand)
        return step, tie, name


def candidates_for(state: ClusterState, demand: GangDemand) -> Candidates:
    """The memo of `demand`, up to date."""
    memo = state.candidates.get(demand)
    if memo is None:
        if len(state.candidates) >= max(MEMOS_MIN, ENTRIES_MAX // max(1, len(state.nodes))):
            del state.candidates[next(iter(state.candidates))]
        memo = state.candidates[demand] = Candidates(demand)
    memo.follow(state)
    return memo


def takes_work(state: ClusterState, node: Node) -> bool:
    """Of anybody; see `is_able` for the one that it is kept for."""
    return is_able(state, node) and node.node not in state.claimed


def is_able(state: ClusterState, node: Node) -> bool:
    connected = node.contact is NodeContact.CONNECTED
    return connected and node.cordon is None and node.node not in state.resting


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
    room, nodes = 0, 0
    for node in state.nodes.values():
        if node.contact is NodeContact.LOST:
            continue
        nodes += 1
        room += most_tasks(node.inventory, demand) if node.in_service else 0
        if room >= demand.instance_count_min:
            return True
    return not nodes


def _count(inventory: NodeInventory, load: Load, demand: GangDemand) -> int:
    need, fits = demand.per_task, demand.instance_count_max
    if demand.environment and demand.environment not in inventory.environments:
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
    gpus, milli, room = demand.per_task.gpus, demand.per_task.gpu_milli, 0
    for model, free, lefts in groups:
        if not matches(model, demand.gpu_models):
            continue
        if milli:
            room += free * (WHOLE_GPU_MILLI // milli)
            for left in lefts:
                room += left // milli
        else:
            room += free
    return room if milli else room // gpus
