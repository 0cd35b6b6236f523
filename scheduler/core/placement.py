"""Gang placement: all tasks of a job find room, or none starts. Of an elastic gang all that find room start,
if they are enough. Whose turn it is, turns.py says.

A job that no node could ever run steps aside with its equals. A restarted job prefers the nodes it had. Ties
go by node id, so that equal states give equal plans.
"""

from collections.abc import Iterable

from ...spec.ids import Attempt, Micros, NodeId
from ...spec.resources import WHOLE_GPU_MILLI, GangDemand
from .attempt_events import AttemptStarted, LaneParked, Place
from .candidates import can_ever, candidates_for, takes_work_of, tasks_that_fit
from .effects import Effect, Plan, StartTask
from .elastic import size_text
from .ending import end_attempt, node_lost
from .evolve_attempts import started_job
from .gpu_choice import choose_gpus, groups_of
from .job import Job, Loan
from .node import GpuKind, Load, Node, free_matching, gpu_groups
from .order import lift
from .packing import best_share
from .slots import Slots, find_slots, free_ports
from .state import ClusterState
from .stranding import lost_nodes
from .workload import Workload


def place(state: ClusterState, job: Job, now_us: Micros) -> Plan[None] | None:
    """It starts, moves if it is stranded, or steps aside for ever-unfit; None: there is no room now."""
    if job.placed:
        return _move(state, job, now_us)
    slots = find_slots(state, job)
    if slots is None:
        return None if can_ever(state, job.demand) else Plan(None, (LaneParked(now_us, job.number),))
    return start(state, job, slots, now_us)


def start(
    state: ClusterState, job: Job, slots: Slots, now_us: Micros, loan: Loan | None = None
) -> Plan[None]:
    """On these nodes, which have room for it; rank 0 on the first."""
    event = AttemptStarted(
        now_us,
        job.number,
        Attempt(job.attempt + 1),
        _give_gpus(state, job.demand, slots),
        _port(state, job, slots[0]),
        size_text(state, job, len(slots)),
        lift(state, job, now_us),
        loan,
    )
    started = started_job(job, event)
    state.started = event, job, started
    address = state.nodes[slots[0]].inventory.address
    effects: tuple[Effect, ...] = tuple(
        start_effect(state, started, task, now_us, address) for task in range(len(slots))
    )
    return Plan(None, (event,), effects)


def start_effect(state: ClusterState, job: Job, task: int, now_us: Micros, address: str) -> StartTask:
    """The message that starts one task; `address` is used when its own node keeps the rendezvous."""
    master = job.tasks[0].node
    if job.tasks[task].node != master:
        address = state.nodes[master].inventory.address
    limit_us, started_us = job.shape.policy.timeout_us, job.course.started_us
    left_us = max(1, started_us + limit_us - now_us) if limit_us and started_us else limit_us
    mtbf_us = state.rate.mtbf_us(len(job.tasks))
    return StartTask(job.tasks[task].node, job.key(task), job, address, left_us, mtbf_us)


def room_elsewhere(state: ClusterState, job: Job) -> int:
    """How many of its tasks the connected nodes could take, when its own there gave way."""
    room = candidates_for(state, job.demand)
    fits = dict(room.fits)
    for name in {task.node for task in job.tasks}:
        node = state.nodes[name]
        if takes_work_of(state, node, job.demand):
            fits[name] = tasks_that_fit(node, load_without(state, (job,), name), room.demand)
    master = job.tasks[0].node
    if job.demand.rendezvous and not any(
        count and (name == master or free_ports(state, name)) for name, count in fits.items()
    ):
        return 0
    return room.most_with(state, {name: count - room.fits.get(name, 0) for name, count in fits.items()})


def load_without(state: ClusterState, jobs: Iterable[Job], name: NodeId) -> Load:
    """What would be free there without these."""
    load = copy_of(state.loads[name])
    for job in jobs:
        give_back(state, load, job, name)
    return load


def give_back(state: ClusterState, load: Load, job: Job, name: NodeId) -> None:
    """To a copy of what is free there: what the job holds."""
    for task in job.tasks:
        if task.node == name:
            load.give_back(job.demand.per_task, task.gpu_indices, state.nodes[name].inventory)


def _move(state: ClusterState, job: Job, now_us: Micros) -> Plan[None] | None:
    """A stranded gang's turn: it is replaced when all of it has room, and else stays as it is."""
    if room_elsewhere(state, job) < job.demand.instance_count_min:
        return None if can_ever(state, job.demand) else Plan(None, (LaneParked(now_us, job.number),))
    return end_attempt(state, job, now_us, node_lost(state, lost_nodes(state, job)[0], now_us))


def _port(state: ClusterState, job: Job, name: NodeId) -> int:
    """Attempts take turns through the ports: none is used again while its last store winds down."""
    if not job.demand.rendezvous:
        return 0
    ports = free_ports(state, name)
    return ports[(job.number + job.attempt) % len(ports)]


def copy_of(load: Load) -> Load:
    """Of what is free, to try something on."""
    free_gpus, shared_gpus = dict(load.free_gpus), dict(load.shared_gpus)
    return Load(load.free_cpu_milli, load.free_memory_bytes, free_gpus, shared_gpus, kinds=load.kinds)


def _give_gpus(state: ClusterState, demand: GangDemand, slots: Slots) -> tuple[Place, ...]:
    need = demand.per_task
    if not need.gpus and not need.gpu_milli:
        return tuple(Place(name) for name in slots)
    if len(set(slots)) == len(slots):
        loads, nodes = state.loads, state.nodes
        return tuple(Place(name, gpus_of(state.workload, nodes[name], loads[name], demand)) for name in slots)
    left: dict[NodeId, Load] = {}
    places = []
    for name in slots:
        load = left[name] if name in left else left.setdefault(name, copy_of(state.loads[name]))
        gpus = gpus_of(state.workload, state.nodes[name], load, demand)
        load.take(need, gpus)
        places.append(Place(name, gpus))
    return tuple(places)


def gpus_of(workload: Workload, node: Node, load: Load, demand: GangDemand) -> tuple[int, ...]:
    """The GPUs of one task there, where it fits."""
    if demand.per_task.gpus:
        free = free_matching(node.inventory, load, demand.gpu)
        if len(free) == demand.per_task.gpus:
            return tuple(sorted(free))
        return choose_gpus(free, groups_of(node.inventory.gpus), demand.per_task.gpus)
    groups = gpu_groups(node.inventory, load)
    kind, left, _ = best_share(workload, groups, load.free_cpu_milli, demand)
    lefts = load.shared_gpus if left < WHOLE_GPU_MILLI else dict.fromkeys(load.free_gpus, left)
    return (
        min(
            gpu.index
            for gpu in node.inventory.gpus
            if GpuKind(gpu.model, gpu.memory_bytes) == kind and lefts.get(gpu.index) == left
        ),
    )
