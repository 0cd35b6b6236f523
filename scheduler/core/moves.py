"""Defragmentation: running jobs that save and go on elsewhere, so that a gang fits.

Looked for when a gang would fit by what is free in all, but not as it lies on the nodes. May be moved: a
job that has saved a checkpoint, has run for a while (as in preemption.py), and does not count for more than
the one that waits. The cheapest set is taken with which the gang and all that move have room at once, tried
on copies of the loads: nobody moves in vain, and nobody is left waiting. All of those nodes are kept under
the gang's claim (claims.py): who moves starts there as soon as it has left, and the gang after the last.

The search is bounded: sets of at most MOVES_MAX jobs, of the CANDIDATES_MAX that lose least, by what is lost
in all; the first SETS_MAX that would make room are tried. Sources: migration against fragmentation in
Gandiva (OSDI 2018), and the Kubernetes descheduler's HighNodeUtilization, which evicts only what has room on
other nodes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Final, NamedTuple

from ...spec.ids import Micros, NodeId
from ...spec.lifecycle import AttemptOutcome
from ...spec.resources import WHOLE_GPU_MILLI, GangDemand
from .amounts import demand_text, duration_text
from .attempt_events import PlacesClaimed
from .candidates import Candidates, candidates_for, most_tasks, takes_work, takes_work_of, tasks_that_fit
from .capacities import capacities_for
from .effects import Plan
from .grace import save_grace_us
from .job import Job, Move, Stop
from .node import Load, Node, gpu_groups, matches
from .placement import copy_of, gpus_of, load_without
from .preemption import Stoppable, loss_us, stoppable
from .reason import Reason
from .slots import free_ports
from .state import ClusterState
from .submit import request_stops
from .topology import areas_of
from .weights import gang_milli

MOVES_MAX: Final = 3
CANDIDATES_MAX: Final = 16
TASKS_MAX: Final = 128
"""Of the gang and those that move together."""
SETS_MAX: Final = 100
"""Of those that would make room for the gang."""
STEPS_MAX: Final = 500
"""Places that are tried for one set."""


class Moves(NamedTuple):
    """Where the gang's tasks go, and who moves where for it."""

    slots: tuple[NodeId, ...]
    moves: tuple[Move, ...]
    lost_us: int
    """What the pit stops take, added up."""


def find_moves(state: ClusterState, job: Job, those: Sequence[Stoppable], now_us: Micros) -> Moves | None:
    """The cheapest, of `those` that may be stopped. None: there are none, or it is not for fragmentation that
    the job waits."""
    return _cheapest(state, job, those, now_us) if _lies_scattered(state, job) else None


def _lies_scattered(state: ClusterState, job: Job) -> bool:
    """It would fit by what is free in all, but not as it lies on the nodes."""
    room = candidates_for(state, job.demand)
    return room.most() < job.demand.instance_count_min and _fits_in_all(state, job.demand)


def _cheapest(state: ClusterState, job: Job, those: Sequence[Stoppable], now_us: Micros) -> Moves | None:
    room = candidates_for(state, job.demand)
    movable = sorted(
        (loss_us(one, now_us), one.number)
        for one in (state.jobs[these.job] for these in those if these.saved)
        if _may_move(state, one, job)
    )[:CANDIDATES_MAX]
    sets = (chosen for count in range(1, MOVES_MAX + 1) for chosen in combinations(movable, count))
    cheapest = sorted(sets, key=lambda one: (sum(loss for loss, _ in one), one))
    all_moved = ([state.jobs[number] for _, number in chosen] for chosen in cheapest)
    making = (moved for moved in all_moved if _makes_room(state, job, moved, room))
    for moved in islice(making, SETS_MAX):
        places = _Seating(state, job, moved).find()
        if places is not None:
            moves = tuple(Move(one.number, tuple(to)) for one, to in zip(moved, places[1:], strict=True))
            lost_us = sum(_stop_us(one, now_us) for one in moved)
            return Moves(tuple(sorted(places[0])), moves, lost_us)
    return None


def defragment(
    state: ClusterState, job: Job, those: Sequence[Stoppable], now_us: Micros
) -> Plan[None] | None:
    """Keeps the nodes for it and for those that move, and gives these notice. None: no moves would do."""
    found = find_moves(state, job, those, now_us)
    if found is None:
        return None
    victims = tuple(move.job for move in found.moves)
    claimed = PlacesClaimed(now_us, job.number, found.slots, victims, found.moves)
    stops = []
    for move in found.moves:
        moved = state.jobs[move.job]
        why = f"moves to {_names(state, move.nodes)}, so that job {job.number} fits"
        stops.append(
            (moved, Stop(AttemptOutcome.PREEMPTED, now_us, save_grace_us(moved), "", why, job.number, True))
        )
    return request_stops(state, stops, claimed)


def moves_reason(state: ClusterState, job: Job, now_us: Micros) -> Reason | None:
    """What would make room for a waiting gang without taking it from anybody."""
    found = None
    if _lies_scattered(state, job):
        found = _cheapest(state, job, stoppable(state, now_us), now_us)
    if found is None:
        return None
    parts: list[str] = []
    for move in found.moves:
        moved = state.jobs[move.job]
        where = _names(state, tuple(task.node for task in moved.tasks))
        has = demand_text(moved.demand, len(moved.tasks))
        verb = "moved to" if not parts else "to"
        parts.append(f"job {move.job} ({has} on {where}) {verb} {_names(state, move.nodes)}")
    text = f"it would fit if {' and '.join(parts)}: {duration_text(found.lost_us)} lost"
    hint = "`pace policy` with order.defragment: true does it by itself"
    if state.order.defragment:
        hint = "this is done by itself when its turn comes"
    jobs = " ".join(str(move.job) for move in found.moves)
    return Reason("fragmented", text, hint, {"jobs": jobs, "lost_us": found.lost_us})


def _may_move(state: ClusterState, moved: Job, job: Job) -> bool:
    if moved.course.stop is not None or moved.demand.exclusive or moved.priority > job.priority:
        return False
    if len(moved.tasks) + job.demand.instance_count_min > TASKS_MAX:
        return False
    nodes = (state.nodes[task.node] for task in moved.tasks)
    return any(takes_work(state, node) and most_tasks(node.inventory, job.demand) for node in nodes)


def _fits_in_all(state: ClusterState, demand: GangDemand) -> bool:
    """What is free on the nodes that could take a task is as much as the gang needs."""
    capacities = capacities_for(state, demand)
    need, least = demand.per_task, demand.instance_count_min
    on_gpu, cpus, memory = need.on_gpu, need.cpu_milli > 0, need.memory_bytes > 0
    loads = [
        (state.nodes[name], load)
        for name, load in state.loads.items()
        if (
            load.free_gpus or load.shared_gpus
            if on_gpu
            else (cpus and load.free_cpu_milli) or (memory and load.free_memory_bytes)
        )
        and capacities[name]
    ]
    loads = [(node, load) for node, load in loads if takes_work_of(state, node, demand)]
    if on_gpu:
        free_milli = sum(_gpu_milli(node, load, demand) for node, load in loads)
        return free_milli >= least * need.gpus_milli
    cpu_milli = sum(load.free_cpu_milli for _, load in loads)
    memory_bytes = sum(load.free_memory_bytes for _, load in loads)
    return cpu_milli >= least * need.cpu_milli and memory_bytes >= least * need.memory_bytes


def _gpu_milli(node: Node, load: Load, demand: GangDemand) -> int:
    """Free on the node's GPUs of the kinds that will do."""
    groups = [one for one in gpu_groups(node.inventory, load) if matches(one.kind, demand.gpu)]
    return sum(one.free * WHOLE_GPU_MILLI + sum(one.lefts) for one in groups)


def _makes_room(state: ClusterState, job: Job, moved: Sequence[Job], room: Candidates) -> bool:
    """For the gang, wherever they themselves would go."""
    more = {}
    for name in {task.node for one in moved for task in one.tasks}:
        if takes_work_of(state, state.nodes[name], job.demand):
            fits = tasks_that_fit(state.nodes[name], load_without(state, moved, name), room.demand)
            more[name] = fits - room.fits.get(name, 0)
    return room.most_with(state, more) >= job.demand.instance_count_min


def _stop_us(job: Job, now_us: Micros) -> int:
    return loss_us(job, now_us) // max(1, gang_milli(job.demand, len(job.tasks)))


def _names(state: ClusterState, nodes: Sequence[NodeId]) -> str:
    return ", ".join(sorted({state.nodes[name].name for name in nodes}))


@dataclass(slots=True)
class _Seating:
    """Looks for room for the gang and for all that move, at once: depth first, on copies of the loads."""

    state: ClusterState
    job: Job
    moved: Sequence[Job]
    loads: dict[NodeId, Load] = field(default_factory=dict)
    places: list[list[NodeId]] = field(default_factory=list)
    """The node of each task: of the gang, then of each that moves."""
    steps: int = 0

    def find(self) -> list[list[NodeId]] | None:
        leave = {task.node for one in self.moved for task in one.tasks}
        self.loads = {name: load_without(self.state, self.moved, name) for name in leave}
        self.places = [[] for _ in range(len(self.moved) + 1)]
        return self.places if self._seat(0) else None

    def _seat(self, at: int) -> bool:
        """The gang (0), or one that moves, and all after it."""
        if at > len(self.moved):
            return True
        return any(self._seat_tasks(at, area, 0, self._count(at)) for area in self._areas(at))

    def _seat_tasks(self, at: int, area: Sequence[NodeId], first: int, left: int) -> bool:
        """So many more tasks, on nodes from `first` on: which of them goes where makes no difference."""
        if not left:
            return self._has_port(at) and self._seat(at + 1)
        demand = self._job(at).demand
        for index in range(first, len(area)):
            if self.steps >= STEPS_MAX:
                return False
            name = area[index]
            node, load = self.state.nodes[name], self._load(name)
            if not tasks_that_fit(node, load, demand):
                continue
            self.steps += 1
            taken = self.loads[name] = copy_of(load)
            taken.take(demand.per_task, self._gpus(node, load, demand))
            self.places[at].append(name)
            if self._seat_tasks(at, area, index, left - 1):
                return True
            self.places[at].pop()
            self.loads[name] = load
        return False

    def _areas(self, at: int) -> Iterator[list[NodeId]]:
        """Nodes that it may have together, those with the least room for it first: large room stays whole."""
        demand, state = self._job(at).demand, self.state
        room = candidates_for(state, demand)
        fits = dict(room.fits)
        for name, load in self.loads.items():
            node = state.nodes[name]
            if takes_work_of(state, node, demand):
                fits[name] = tasks_that_fit(node, load, room.demand)
        nodes = [state.nodes[name] for name, count in sorted(fits.items()) if count]
        for area in areas_of(nodes, demand, state.settings.topology_levels):
            yield sorted((node.node for node in area), key=lambda name: (fits[name], name))

    def _gpus(self, node: Node, load: Load, demand: GangDemand) -> tuple[int, ...]:
        on_gpu = demand.per_task.gpus or demand.per_task.gpu_milli
        return gpus_of(self.state.workload, node, load, demand) if on_gpu else ()

    def _has_port(self, at: int) -> bool:
        """For its rendezvous."""
        if not self._job(at).demand.rendezvous:
            return True
        own = self._job(at).tasks[0].node if at else None
        return any(name == own or free_ports(self.state, name) for name in self.places[at])

    def _job(self, at: int) -> Job:
        return self.moved[at - 1] if at else self.job

    def _count(self, at: int) -> int:
        return len(self._job(at).tasks) if at else self.job.demand.instance_count_min

    def _load(self, name: NodeId) -> Load:
        return self.loads.get(name) or self.state.loads[name]
