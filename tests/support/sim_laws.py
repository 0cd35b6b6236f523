"""What must be true of the scheduler's state after EVERY event, also between two events of one batch or plan.

All of it is looked at each time, whatever the event was: simulated clusters are small, so nothing needs to be
left out on the ground that the event cannot have touched it. Whatever the core keeps as an index (loads,
line, held, stranded, resting, counts, timers) is compared with what jobs and nodes say by themselves, without
the core's own index code. Each check raises AssertionError with what it saw.
"""

from collections import Counter
from fnmatch import fnmatchcase
from math import inf

from paceline.scheduler.core.attempt_events import AttemptEnded, AttemptStarted, JobEnded, JobSubmitted
from paceline.scheduler.core.deadlines import job_deadline, node_deadline
from paceline.scheduler.core.events import DurableEvent, Event, job_of
from paceline.scheduler.core.job import Job, TaskState
from paceline.scheduler.core.node import Cordon, Load, Node
from paceline.scheduler.core.node_events import NodeCordoned, NodeUncordoned
from paceline.scheduler.core.queue import FIRST_TIME, RESTART, waits_since_us
from paceline.scheduler.core.state import ClusterState
from paceline.scheduler.core.stranding import is_stranded
from paceline.scheduler.core.timers import TimerKey
from paceline.scheduler.core.weights import gang_milli, weight_milli
from paceline.spec.gpu_health import GpuState
from paceline.spec.ids import Attempt, JobId, NodeId, TaskKey
from paceline.spec.lifecycle import TRANSITIONS, JobState
from paceline.spec.resources import WHOLE_GPU_MILLI, Constraints


class Watch:
    """Looks at one engine's state: at each event as a step from the state before, and at where it led. What
    was recovered is whole with the first event, SchedulerStarted, which sets the nodes' clocks."""

    def __init__(self, state: ClusterState) -> None:
        self._seq, self._at_us, self._last_job = state.last_seq, state.last_at_us, state.last_job
        self._stood = {number: (job.state, job.attempt) for number, job in state.jobs.items()}
        self._cordons = _cordons(state)

    def applied(self, state: ClusterState, event: Event) -> None:
        try:
            self._is_a_step(state, event)
            state_is_sane(state)
        except AssertionError as error:
            raise AssertionError(f"after {event}: {error}") from error

    def _is_a_step(self, state: ClusterState, event: Event) -> None:
        """Time and numbers only grow; one job moves, along the table, and only a start makes an attempt."""
        assert state.last_seq == self._seq + isinstance(event, DurableEvent), "a gap in the history"
        assert state.last_at_us == max(self._at_us, event.at_us), "time went back"
        made = isinstance(event, JobSubmitted)
        assert state.last_job == (max(self._last_job, event.job) if made else self._last_job)
        stands = {number: (job.state, job.attempt) for number, job in state.jobs.items()}
        self._sick = {(name, gpu.index) for name, node in state.nodes.items() for gpu in node.inventory.sick}
        cordons = _cordons(state)
        said = isinstance(event, NodeCordoned | NodeUncordoned)
        assert said or cordons == self._cordons, f"{self._cordons} are cordoned, and then {cordons}"
        self._cordons = cordons
        if stands != self._stood:
            for number in stands.keys() | self._stood.keys():
                if stands.get(number) != self._stood.get(number):
                    self._moves(event, number, stands.get(number))
        self._seq, self._at_us, self._last_job, self._stood = (
            state.last_seq,
            state.last_at_us,
            state.last_job,
            stands,
        )

    def _moves(self, event: Event, number: JobId, to: tuple[JobState, Attempt] | None) -> None:
        assert job_of(event) == number, f"job {number} moved to {to}"
        before = self._stood.get(number)
        if before is None:
            assert isinstance(event, JobSubmitted) and to == (JobState.QUEUED, 0), f"job {number} is {to}"
            return
        if to is None:
            assert isinstance(event, AttemptEnded | JobEnded), f"job {number} is lost"
            return
        grown = isinstance(event, AttemptStarted)
        if isinstance(event, AttemptStarted):
            for place in event.places:
                assert place.node not in self._cordons, f"job {number} was placed on {place.node}, cordoned"
                given = [index for index in place.gpu_indices if (place.node, index) in self._sick]
                assert not given, f"job {number} was given GPUs {given} of {place.node}, out of service"
        assert to[1] == before[1] + grown, f"job {number}: attempt {before[1]} and then {to[1]}"
        assert to[0] is before[0] or to[0] in TRANSITIONS[before[0]], f"job {number}: {before} and then {to}"


def _cordons(state: ClusterState) -> dict[NodeId, Cordon]:
    return {name: node.cordon for name, node in state.nodes.items() if node.cordon is not None}


def drained_nodes_empty(state: ClusterState) -> None:
    """Between two batches: whoever has a task that runs on a node that drains was told to leave."""
    for name, node in state.nodes.items():
        if node.cordon is None or not node.cordon.drains:
            continue
        for key in state.loads[name].tasks:
            job = state.jobs[key.job]
            ended = job.tasks[key.task].state is TaskState.ENDED
            assert ended or job.course.stop is not None, f"{key} stays on {name}, which drains: {job}"


def state_is_sane(state: ClusterState) -> None:
    """The whole state."""
    for number, job in state.jobs.items():
        assert job.number == number and not job.over, f"{job} is over, or not job {number}"
        if job.placed:
            _gang_is_whole(job)
            _gang_is_where_it_may_be(state, job)
        assert job.course.suspicion is None or (job.placed and job.course.stop is None), f"suspected: {job}"
    _growth_is_possible(state)
    _loads_are_true(state)
    _everyone_waits_once(state)
    _line_stands_in_order(state)
    _claims_and_weights_are_true(state)
    _counts_are_true(state)
    _usage_is_true(state)
    placed = {number for number, job in state.jobs.items() if job.placed}
    assert state.paces.keys() <= placed, f"{list(state.paces)} have step times, {placed} run"
    _clocks_ring_in_time(state)


def _gang_is_whole(job: Job) -> None:
    """Each rank has its GPUs, and nothing of an earlier attempt may run beside it."""
    least, most = job.demand.instance_count_min, job.demand.instance_count_max
    assert least <= len(job.tasks) <= most, f"the gang is not within its bounds: {job}"
    need = job.demand.per_task
    gpus = 1 if need.gpu_milli else need.gpus
    assert all(len(task.gpu_indices) == gpus for task in job.tasks), f"GPUs: {job}"
    assert not job.course.lingering, f"{job} was placed while leftovers may run"
    assert bool(job.course.rendezvous_port) == job.demand.rendezvous, f"rendezvous: {job}"


def _gang_is_where_it_may_be(state: ClusterState, job: Job) -> None:
    """By labels and taints, which no node changes under what runs there."""
    asked = job.demand.constraints or Constraints()
    found = [state.nodes[task.node].inventory for task in job.tasks]
    for inventory in found:
        labels = dict(inventory.labels)
        assert all(labels.get(key) in values for key, values in asked.labels), f"not there: {job}"
        borne = {key for key, _ in asked.tolerate}
        assert all(key in borne for key, _ in inventory.taints), f"{inventory.name} is tainted: {job}"
    if job.demand.within:
        values = {dict(inventory.labels).get(job.demand.within) for inventory in found}
        assert len(values) == 1 and None not in values, f"not within one {job.demand.within}: {job}"


def _usage_is_true(state: ClusterState) -> None:
    """What queues and users have, added up anew; an account is never ahead, nor below nothing."""
    queues: dict[str, list[int]] = {}
    users: dict[tuple[str, str], list[int]] = {}
    for job in (job for job in state.jobs.values() if job.placed):
        need = job.demand.per_task
        gpu_milli = len(job.tasks) * (need.gpus * WHOLE_GPU_MILLI + need.gpu_milli)
        amount = (gpu_milli, len(job.tasks) * need.cpu_milli, 1)
        names = _names(job)
        for depth in range(len(names) + 1):
            path = "/".join(names[:depth])
            for sums in (queues.setdefault(path, [0, 0, 0]), users.setdefault((path, job.user), [0, 0, 0])):
                sums[:] = [had + more for had, more in zip(sums, amount, strict=True)]
    usage = state.usage
    assert queues == {path: [one.gpu_milli, one.cpu_milli, one.jobs] for path, one in usage.queues.items()}
    assert users == {key: [one.gpu_milli, one.cpu_milli, one.jobs] for key, one in usage.users.items()}
    assert queues.keys() <= usage.accounts.keys(), "what runs is not charged"
    for path, account in usage.accounts.items():
        assert account.at_us <= state.last_at_us and account.gpu_s >= 0, f"{path}: {account}"


def _names(job: Job) -> list[str]:
    """The way from the root of the tree of queues to its user's line."""
    names = [name for name in job.shape.queue.split("/") if name]
    return names + ([job.user] if job.user and names[-1:] != [job.user] else [])


def _growth_is_possible(state: ClusterState) -> None:
    """Only what runs smaller than it may be is to grow."""
    small = {
        number
        for number, job in state.jobs.items()
        if job.state is JobState.RUNNING and len(job.tasks) < job.demand.instance_count_max
    }
    assert small == state.small, f"{small} may grow, not {state.small}"
    for number, job in state.jobs.items():
        growth = job.course.growth
        assert growth is None or (number in small and len(job.tasks) < growth.to), f"cannot grow: {job}"
        assert growth is None or growth.to <= job.demand.instance_count_max, f"would be too large: {job}"


def _loads_are_true(state: ClusterState) -> None:
    """Nothing is given twice; what is free plus what is taken is what there is."""
    tasks: dict[NodeId, dict[TaskKey, tuple[int, ...]]] = {name: {} for name in state.nodes}
    ports: dict[NodeId, dict[int, TaskKey]] = {name: {} for name in state.nodes}
    lingering: dict[NodeId, set[TaskKey]] = {name: set() for name in state.nodes}
    for job in state.jobs.values():
        if job.placed:
            for task in job.tasks:
                tasks[task.node][job.key(task.task)] = task.gpu_indices
            if job.course.rendezvous_port:
                here = ports[job.tasks[0].node]
                assert job.course.rendezvous_port not in here, f"a port is given twice: {job}"
                here[job.course.rendezvous_port] = job.key(0)
        for one in job.course.lingering:
            lingering[one.node].add(one.key)
    assert state.loads.keys() == state.nodes.keys(), f"{list(state.loads)} are not {list(state.nodes)}"
    for name, load in state.loads.items():
        assert load.tasks == tasks[name], f"{name} holds {load.tasks}, the jobs say {tasks[name]}"
        assert load.ports == ports[name], f"{name} has {load.ports}, the jobs say {ports[name]}"
        assert load.lingering == lingering[name], f"{name}: {load.lingering}, the jobs say {lingering[name]}"
        _sums_are_true(state, name, load)


def _sums_are_true(state: ClusterState, name: NodeId, load: Load) -> None:
    inventory = state.nodes[name].inventory
    cpu_milli, memory_bytes = inventory.capacity.cpu_milli, inventory.capacity.memory_bytes
    taken = dict.fromkeys(load.free_gpus, 0)
    shared: set[int] = set()
    sick = {gpu.index: gpu.state for gpu in inventory.sick}
    for key, indices in load.tasks.items():
        job = state.jobs[key.job]
        if job.course.stop is None and job.tasks[key.task].state is not TaskState.ENDED:
            bad = [index for index in indices if sick.get(index) is GpuState.QUARANTINED]
            assert not bad, f"{name}: {key} has the quarantined GPUs {bad}"
        need = job.demand.per_task
        cpu_milli -= need.cpu_milli
        memory_bytes -= need.memory_bytes
        for index in indices:
            taken[index] = taken.get(index, 0) + (need.gpu_milli or WHOLE_GPU_MILLI)
        shared |= {index for index in indices if need.gpu_milli}
    assert load.free_cpu_milli == cpu_milli >= 0, f"{name}: {cpu_milli} milli-cpus are free, not {load}"
    assert load.free_memory_bytes == memory_bytes >= 0, f"{name}: {memory_bytes} bytes are free, not {load}"
    gpus = sorted(load.free_gpus.keys() | (taken.keys() - sick.keys()))
    assert gpus == [gpu.index for gpu in inventory.gpus], f"{name}: GPUs {gpus} with {load}"
    assert all(not taken[index] for index in load.free_gpus), f"{name}: GPUs {taken} are taken of {load}"
    assert max(taken.values(), default=0) <= WHOLE_GPU_MILLI, f"{name}: GPUs {taken} are given twice"
    left = {index: WHOLE_GPU_MILLI - taken[index] for index in shared - sick.keys()}
    assert load.shared_gpus == left, f"{name}: {left} is left of shared GPUs, not {load}"


def _everyone_waits_once(state: ClusterState) -> None:
    """A waiting job is in line or held, never both or none; a stranded one is placed and in line."""
    leaves = Counter("/".join(_names(job)) for job in state.jobs.values() if job.state is JobState.QUEUED)
    assert leaves == state.waiting, f"{leaves} wait, not {state.waiting}"
    stranded = {number for number, job in state.jobs.items() if is_stranded(state, job)}
    assert stranded == state.stranded, f"stranded are {stranded}, not {state.stranded}"
    waiting = {number for number, job in state.jobs.items() if job.state is JobState.QUEUED}
    for number in waiting:
        course = state.jobs[number].course
        backs_off = course.held_until_us > state.last_at_us
        settled = _rings_us(state, (0, number)) > state.last_at_us
        if course.lingering or backs_off:
            assert number in state.held, f"job {number} is not held back: {course}"
        elif settled:
            assert number not in state.held, f"job {number} is held back for nothing: {course}"
    assert state.held <= waiting, f"{state.held} are held, {waiting} wait"
    standing = {
        number for lane in state.queue.lanes.values() for number in lane.jobs if number not in lane.gone
    }
    claiming = {number for number in waiting if state.jobs[number].course.claim is not None}
    assert claiming == state.claims, f"{claiming} have claims, not {state.claims}"
    on_hold = {number for number in waiting - state.held - claiming if state.jobs[number].course.hold}
    assert on_hold == state.on_hold, f"{on_hold} are on hold, not {state.on_hold}"
    expected = waiting - state.held - claiming - on_hold | stranded
    assert standing == expected, f"{standing} stand in line, not {expected}"


def _line_stands_in_order(state: ClusterState) -> None:
    """Each in the lane of its equals, in the order of numbers."""
    for key, lane in state.queue.lanes.items():
        line = [number for number in lane.jobs if number not in lane.gone]
        assert line == sorted(set(line)) and len(line) == len(lane), f"lane {key}: {lane}"
        assert all(state.queue.key_of(state.jobs[number]) == key for number in line), (
            f"lane {key} holds {line}"
        )
        assert key.turn in (RESTART, FIRST_TIME) and line, f"lane {key} is empty"
    assert sum(map(len, state.queue.lanes.values())) == len(state.queue), f"{len(state.queue)} in line"
    lanes, below = state.queue.lanes, state.queue.below
    again = {key: lane for key, lane in lanes.items() if key.turn == RESTART}
    assert state.queue.restarts == again, "another set of restarts"
    assert {key: lane for those in below.values() for key, lane in those.items()} | again == lanes
    assert all(key.leaf.rpartition("/")[0] == path for path, those in below.items() for key in those)
    assert all(below.values()), f"queues without lanes: {below}"
    for ago_us in (0, 60_000_000, 5_000_000):
        before_us = state.last_at_us - ago_us
        asked = state.queue.waited.asked_milli(before_us)
        plain = _asked_milli(state, before_us)
        assert asked == plain, f"{asked} is asked for by those that wait since {before_us}, not {plain}"


def _asked_milli(state: ClusterState, before_us: int) -> int:
    waiting = [
        state.jobs[number]
        for lane in state.queue.lanes.values()
        for number in lane.jobs
        if not lane.parked and number not in lane.gone
    ]
    return sum(
        gang_milli(job.demand, job.demand.instance_count_min)
        for job in waiting
        if not job.placed and waits_since_us(job) <= before_us
    )


def _claims_and_weights_are_true(state: ClusterState) -> None:
    kept: dict[NodeId, JobId] = {}
    for number in state.claims:
        claim = state.jobs[number].course.claim
        assert claim is not None
        assert not kept.keys() & set(claim.kept), f"{claim} of job {number}, and {kept}"
        kept |= dict.fromkeys(claim.kept, number)
    assert kept == state.claimed, f"{state.claimed} are kept, not {kept}"
    placed = {number: job for number, job in state.jobs.items() if job.placed}
    assert placed.keys() == state.placed, f"{state.placed} are placed, not {placed.keys()}"
    lifted = sum(gang_milli(job.demand, len(job.tasks)) for job in placed.values() if job.course.lifted)
    assert lifted == state.lifted_milli, f"{lifted} is lifted, not {state.lifted_milli}"
    nodes = (weight_milli(node.inventory.capacity) for node in state.nodes.values() if node.in_service)
    assert sum(nodes) == state.capacity_milli, f"the capacity is not {state.capacity_milli}"


def _counts_are_true(state: ClusterState) -> None:
    contacts = Counter(node.contact for node in state.nodes.values())
    assert all(contacts[contact] == count for contact, count in state.contacts.items()), (
        f"{contacts} are not {state.contacts}"
    )
    assert state.last_job >= max(state.jobs, default=0), f"the newest job is {state.last_job}"
    for name, node in state.nodes.items():
        settled = _rings_us(state, (1, name)) > state.last_at_us
        rests = node.rests_until_us > state.last_at_us
        assert rests == (name in state.resting) or not settled, f"{node} rests, or not: {state.resting}"
        assert _is_closed(state, node) == (name in state.closed) or not settled, f"{node} is closed, or not"
    assert state.resting <= state.nodes.keys(), f"{state.resting} rest"
    assert state.closed <= state.nodes.keys(), f"{state.closed} are closed"
    if all(_rings_us(state, (1, name)) > state.last_at_us for name in state.nodes):
        assert state.reserved == _reserved(state), f"{state.reserved} are reserved, not {_reserved(state)}"


def _reserved(state: ClusterState) -> dict[NodeId, str]:
    """Which nodes are kept for whom now, by the policy, which names pools by patterns here."""
    now_us, lead_us = state.last_at_us, state.order.min_run_us
    spans = sorted(
        (one.from_us, f"{name}/{title}", one, pool.nodes)
        for name, pool in state.policy.pools.items()
        for title, one in pool.reservations.items()
    )
    has: dict[NodeId, list[tuple[int, int, str]]] = {}
    for begin_us, asked, one, patterns in spans:
        left = one.nodes
        for node in sorted(state.nodes.values(), key=lambda node: (node.name, node.node)):
            others = has.setdefault(node.node, [])
            fits = node.cordon is None and any(fnmatchcase(node.name, pattern) for pattern in patterns)
            if left and fits and all(end <= begin_us or one.to_us <= begin for begin, end, _ in others):
                others.append((begin_us, one.to_us, asked))
                left -= 1
    found = {}
    for name, those in has.items():
        near = [
            (begin > now_us, begin, asked) for begin, end, asked in those if begin - lead_us <= now_us < end
        ]
        if near:
            found[name] = min(near)[-1]
    return found


def _is_closed(state: ClusterState, node: Node) -> bool:
    """By the windows of its pools, which are named by patterns here."""
    lead_us = state.order.min_run_us
    return any(
        window.from_us - lead_us <= state.last_at_us < window.to_us
        for pool in state.policy.pools.values()
        for window in pool.maintenance
        if any(fnmatchcase(node.name, pattern) for pattern in pool.nodes)
    )


def _clocks_ring_in_time(state: ClusterState) -> None:
    """Whoever is due by time alone is looked at by then."""
    timers = state.timers
    rings = {key for at_us, key in timers.heap if timers.set_for.get(key) == at_us}
    assert rings == timers.set_for.keys(), f"{rings} ring, {timers.set_for} were set"
    for number, job in state.jobs.items():
        due_us = job_deadline(state, job)
        assert due_us is None or _rings_us(state, (0, number)) <= due_us, f"job {number} is due at {due_us}"
    for name, node in state.nodes.items():
        due_us = node_deadline(state, node)
        assert due_us is None or _rings_us(state, (1, name)) <= due_us, f"{name} is due at {due_us}"


def _rings_us(state: ClusterState, key: TimerKey) -> float:
    """What was due is settled once its ring is taken out."""
    return state.timers.set_for.get(key, inf)
