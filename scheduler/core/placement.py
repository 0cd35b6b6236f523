"""Gang placement, first come first served: all tasks of the first job in line find room, or nobody moves.

A cycle costs what it places, not what waits: only the first in line is looked at. A job that no node could
ever run steps aside with its equals. A restarted job prefers the nodes it had. Ties go by node id, so that
equal states give equal plans.
"""

from ...spec.ids import Attempt, Micros, NodeId
from ...spec.lifecycle import NodeContact
from ...spec.resources import GangDemand
from .effects import Effect, Plan, StartTask
from .events import AttemptStarted, LaneParked, Place
from .evolve import started_job
from .job import Job
from .node import Load, Node, NodeInventory, gpus_matching
from .state import ClusterState

Slots = list[NodeId]


def place(state: ClusterState, now_us: Micros) -> Plan[None] | None:
    """The first in line starts, or steps aside for ever-unfit; None: nobody can move now. Call until None."""
    number = state.queue.first()
    if number is None:
        return None
    job = state.jobs[number]
    slots = find_slots(state, job)
    if slots is None:
        return None if can_ever(state, job.demand) else Plan(None, (LaneParked(now_us, number),))
    event = AttemptStarted(
        now_us,
        number,
        Attempt(job.attempt + 1),
        _give_gpus(state, job.demand, slots),
        _port(state, job, slots[0]),
    )
    started = started_job(job, event)
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
    return StartTask(job.tasks[task].node, job.key(task), job, address, left_us)


def can_ever(state: ClusterState, demand: GangDemand) -> bool:
    """Could the nodes that are not lost run it if they were empty? With no nodes at all: who knows."""
    room, nodes = 0, 0
    for node in state.nodes.values():
        if node.contact is NodeContact.LOST:
            continue
        nodes += 1
        room += most_tasks(node.inventory, demand)
        if room >= demand.instance_count:
            return True
    return not nodes


def most_tasks(inventory: NodeInventory, demand: GangDemand) -> int:
    """How many tasks would fit on the empty node."""
    gpus = [(gpu.index, gpu.model) for gpu in inventory.gpus]
    capacity = inventory.capacity
    return _count(inventory, demand, capacity.cpu_milli, capacity.memory_bytes, gpus)


def tasks_that_fit(node: Node, load: Load, demand: GangDemand) -> int:
    """How many tasks fit on what is free."""
    return _count(
        node.inventory, demand, load.free_cpu_milli, load.free_memory_bytes, list(load.free_gpus.items())
    )


def find_slots(state: ClusterState, job: Job) -> Slots | None:
    """A node for each task, or None. Nodes that refused the job come last."""
    avoid = frozenset(job.course.avoid)
    slots = _find(state, job, avoid)
    return _find(state, job, frozenset()) if slots is None and avoid else slots


def _count(
    inventory: NodeInventory,
    demand: GangDemand,
    cpu_milli: int,
    memory_bytes: int,
    gpus: list[tuple[int, str]],
) -> int:
    need = demand.per_task
    if demand.environment and demand.environment not in inventory.environments:
        return 0
    fits = demand.instance_count
    if need.cpu_milli:
        fits = min(fits, cpu_milli // need.cpu_milli)
    if need.memory_bytes:
        fits = min(fits, memory_bytes // need.memory_bytes)
    if need.gpus:
        fits = min(fits, len(gpus_matching(gpus, demand.gpu_models)) // need.gpus)
    return max(fits, 0)


def _find(state: ClusterState, job: Job, avoid: frozenset[NodeId]) -> Slots | None:
    demand = job.demand
    room: dict[NodeId, int] = {}
    for name, node in state.nodes.items():
        if node.contact is NodeContact.CONNECTED and name not in avoid:
            fits = tasks_that_fit(node, state.loads[name], demand)
            if fits:
                room[name] = fits
    if sum(room.values()) < demand.instance_count:
        return None
    slots = _fill(state, job, room)
    return _rank0_first(state, slots, room) if demand.rendezvous else slots


def _fill(state: ClusterState, job: Job, room: dict[NodeId, int]) -> Slots:
    """Old places first; then nodes of their own, the best fitting first; then shared ones."""
    count = job.demand.instance_count
    slots: list[NodeId | None] = [None] * count
    for task in job.tasks[:count]:
        if room.get(task.node):
            slots[task.task] = task.node
            room[task.node] -= 1
    open_slots = [at for at, node in enumerate(slots) if node is None]
    if open_slots:
        for at, node in zip(
            open_slots, _choose(state, job.demand, room, slots, len(open_slots)), strict=True
        ):
            slots[at] = node
            room[node] -= 1
    return [node for node in slots if node is not None]


def _choose(
    state: ClusterState, demand: GangDemand, room: dict[NodeId, int], slots: list[NodeId | None], count: int
) -> Slots:
    order = sorted(room, key=lambda name: _fit_key(state, demand, name, taken=name in slots))
    chosen: Slots = []
    deepest = max(room.values())
    for depth in range(deepest):
        for name in order:
            if room[name] > depth:
                chosen.append(name)
                if len(chosen) == count:
                    return sorted(chosen, key=order.index)
    raise AssertionError(f"room for {len(chosen)} of {count} tasks, after it was counted")


def _fit_key(
    state: ClusterState, demand: GangDemand, name: NodeId, *, taken: bool
) -> tuple[bool, int, int, NodeId]:
    """GPU jobs go where they leave the fewest GPUs over; others where no GPU idles and most cpus are free."""
    load = state.loads[name]
    cpu_milli = load.free_cpu_milli if demand.per_task.gpus else -load.free_cpu_milli
    return taken, len(load.free_gpus), cpu_milli, name


def _rank0_first(state: ClusterState, slots: Slots, room: dict[NodeId, int]) -> Slots | None:
    """Rank 0 needs a node with a free rendezvous port: one of the chosen, else one that has room."""
    for at, name in enumerate(slots):
        if free_ports(state, name):
            slots[0], slots[at] = slots[at], slots[0]
            return slots
    spare = min((name for name, left in room.items() if left and free_ports(state, name)), default=None)
    if spare is None:
        return None
    return [spare, *slots[1:]]


def free_ports(state: ClusterState, name: NodeId) -> list[int]:
    taken = state.loads[name].ports
    return [port for port in state.nodes[name].inventory.rendezvous_ports if port not in taken]


def _port(state: ClusterState, job: Job, name: NodeId) -> int:
    """Attempts take turns through the ports: none is used again while its last store winds down."""
    if not job.demand.rendezvous:
        return 0
    ports = free_ports(state, name)
    return ports[(job.number + job.attempt) % len(ports)]


def _give_gpus(state: ClusterState, demand: GangDemand, slots: Slots) -> tuple[Place, ...]:
    need = demand.per_task.gpus
    left: dict[NodeId, list[int]] = {}
    places = []
    for name in slots:
        if need and name not in left:
            gpus = sorted(state.loads[name].free_gpus.items())
            left[name] = gpus_matching(gpus, demand.gpu_models)
        mine = left[name][:need] if need else []
        if need:
            left[name] = left[name][need:]
        places.append(Place(name, tuple(mine)))
    return tuple(places)
