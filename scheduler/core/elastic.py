"""Gangs that may have more or fewer instances: how many they get, and when a smaller one grows.

A gang is placed with what there is room for, from its least on, up to its share among equal ones (sizes.py);
with more than it asked for only while nobody else waits. When there is room for more of one that runs,
nobody waits for it, its share is larger, and the restart earns itself back, it is planned to grow, and does
so at its next checkpoint, from that checkpoint: so it grows at most once for each checkpoint. One gang at a
time: what it leaves is counted before the next one moves.
"""

from collections import Counter
from collections.abc import Collection
from typing import Final

from ...spec.ids import JobId, Micros, NodeId
from ...spec.lifecycle import AttemptOutcome, NodeContact
from .amounts import duration_text
from .attempt_events import GrowthDropped, GrowthPlanned
from .candidates import candidates_for, takes_work_of
from .checkpoint_events import CheckpointAccepted
from .effects import Plan
from .evolve_checkpoints import accepted
from .grace import save_grace_us
from .job import Job, Stop, with_course
from .order import first_in_line
from .predict import predict
from .quota import is_allowed, tasks_allowed
from .settings import RESTART_US, SECOND_US
from .speeds import gain, with_speed
from .state import ClusterState
from .submit import request_stop
from .trades import fair_size, fair_sizes_of

LOOK_AGAIN_US: Final = 10 * SECOND_US


def wanted(state: ClusterState, job: Job) -> int:
    """The instances that a job which is placed now shall have, where there is room."""
    demand = job.demand
    if not demand.elastic:
        return demand.instance_count
    most = tasks_allowed(state, job)
    if job.course.aim:
        return min(most, job.course.aim)
    fair = max(demand.instance_count_min, fair_size(state, job))
    return min(most, fair, demand.instance_count) if _waits_besides(state, job) else min(most, fair)


def plan_growth(state: ClusterState, now_us: Micros, looked_us: Micros | None = None) -> Plan[None]:
    """Every gang that there is room for more of is told to grow, while nobody waits. Where only time has
    passed since `looked_us`: those whose time it is."""
    if somebody_waits(state):
        return Plan(None)
    small = [state.jobs[number] for number in sorted(state.small)]
    small = [job for job in small if job.course.growth is None and job.course.stop is None]
    fair = fair_sizes_of(state, small)
    events = []
    for job in small:
        if looked_us is not None and not is_time_to_look(looked_us, now_us, 2 * _restart_us(job)):
            continue
        count = len(job.tasks)
        to = min(fair[job.number], room_for(state, job)) if fair[job.number] > count else count
        if to > count and earns_back(state, job, to, now_us):
            gains = gain_text(job, to) if job.course.speeds else ""
            events.append(GrowthPlanned(now_us, job.number, job.attempt, count, to, gains))
    return Plan(None, tuple(events))


def is_time_to_look(looked_us: Micros, now_us: Micros, least_us: int = 0) -> bool:
    """What a growth earns follows the time and what is measured: it is judged again once in each ten seconds,
    or once in each `least_us` where that is longer."""
    every_us = max(LOOK_AGAIN_US, least_us)
    return now_us // every_us != looked_us // every_us


def measured(job: Job, event: CheckpointAccepted) -> Job:
    """As it is once the checkpoint is accepted: it knows what that save took, and how fast its size is."""
    saved = with_course(job, checkpoints=(accepted(event), *job.course.checkpoints))
    if not event.step_us:
        return saved
    return with_course(saved, speeds=with_speed(job.course.speeds, len(job.tasks), event.step_us))


def faster_text(job: Job, step_us: float) -> str:
    """`2 -> 4 instances: measured 1.70 times as fast`; empty where that is no news."""
    speeds, count = job.course.speeds, len(job.tasks)
    if not step_us or not speeds or any(one.instances == count for one in speeds):
        return ""
    near = min(speeds, key=lambda one: abs(one.instances - count))
    return f"{near.instances} -> {count} instances: measured {near.step_us / step_us:.2f} times as fast"


def gain_text(job: Job, to: int) -> str:
    """`measured 1.70 times as fast`."""
    speeds = job.course.speeds
    known = {one.instances for one in speeds}.issuperset((to, len(job.tasks)))
    how = "measured" if known else "predicted" if speeds else "taken for"
    return f"{how} {gain(job, len(job.tasks), to):.2f} times as fast"


def speeds_text(job: Job) -> str:
    """`measured: 0.50 s a step with 1, 0.29 s with 2`; empty: nothing is."""
    steps = (f"{duration_text(round(one.step_us))} a step with {one.instances}" for one in job.course.speeds)
    told = ", ".join(steps)
    return f"measured: {told}" if told else ""


def grow_at_checkpoint(state: ClusterState, job: Job, now_us: Micros) -> Plan[None]:
    """A checkpoint of `job` is being accepted. It stops to grow, if it was to and the room is still there."""
    course, count = job.course, len(job.tasks)
    if course.growth is None or course.stop is not None or not _may_stop(state, job):
        return Plan(None)
    to, hinders = could_have(state, job), why_not_now(state, job, now_us)
    if hinders:
        return Plan(None, (GrowthDropped(now_us, job.number, job.attempt, hinders),))
    why = f"to grow from {count} to {to} instances"
    stop = Stop(AttemptOutcome.RESIZED, now_us, save_grace_us(job), why=why, to=to)
    return request_stop(state, job, stop)


def earns_back(state: ClusterState, job: Job, to: int, now_us: Micros) -> bool:
    """What that size saves of what it will still run is more than the restart costs."""
    saved = 1 - 1 / gain(job, len(job.tasks), to)
    return saved * predict(state, job, now_us).median_us > _restart_us(job)


def could_have(state: ClusterState, job: Job) -> int:
    """The instances that it could have now and gains enough by (sizes.py)."""
    room = room_for(state, job)
    return room if room <= len(job.tasks) else min(room, max(len(job.tasks), fair_size(state, job)))


def room_for(state: ClusterState, job: Job) -> int:
    """The instances that there is room for now: its own, but for those on nodes that get no work at present,
    and those that there is room for on nodes that are warm: on others all of it would wait for the imports.
    """
    found = candidates_for(state, job.demand)
    nodes = (state.nodes[task.node] for task in job.tasks)
    more = Counter(node.node for node in nodes if takes_work_of(state, node, job.demand))
    more.subtract(found.warming)
    most = min(job.demand.instance_count_max, len(job.tasks) + tasks_allowed(state, job))
    return min(most, found.most_with(state, more))


def why_not_now(state: ClusterState, job: Job, now_us: Micros) -> str:
    """What keeps a gang from growing; empty: nothing."""
    first = first_waiting(state)
    if first is not None:
        return f"what is free goes to job {first} first, which waits"
    if (to := could_have(state, job)) > len(job.tasks):
        earns = earns_back(state, job, to, now_us)
        return "" if earns else f"{gain_text(job, to)} with {to}, it would not earn back the restart"
    if (room := room_for(state, job)) > len(job.tasks):
        return f"{gain_text(job, room)} with {room}: that is too little, or others gain more"
    if warming := candidates_for(state, job.demand).warming:
        return f"{_names(state, warming)} still imports what its warm pool needs"
    return "there is no room for more instances"


def somebody_waits(state: ClusterState) -> bool:
    """Those held back for a while count, and those that nodes are kept for; not those at a limit."""
    if state.held or state.claims or not state.policy.queues:
        return bool(state.held or state.claims) or state.queue.waits
    return any(is_allowed(state, state.jobs[number]) for _, number in state.queue.firsts())


def first_waiting(state: ClusterState) -> JobId | None:
    """Who would be passed over if somebody grew."""
    first = first_in_line(state, state.last_at_us)
    return min(state.held | state.claims, default=None) if first is None else first


def size_text(state: ClusterState, job: Job, count: int) -> str:
    """`goes on with 1 of 2 instances (min 1): n2 lost`; empty where only one size will do."""
    demand = job.demand
    if not demand.elastic:
        return ""
    verb = "goes on" if job.attempt else "starts"
    if count >= demand.instance_count:
        return f"{verb} with {count} instances ({bounds_text(job)})"
    ending = job.course.ending
    lost = ending is not None and ending.outcome is AttemptOutcome.NODE_LOST and ending.node is not None
    node = state.nodes.get(ending.node) if lost and ending is not None and ending.node is not None else None
    because = f"{node.name} lost" if node is not None else "no room for more"
    least = demand.instance_count_min
    return f"{verb} with {count} of {demand.instance_count} instances (min {least}): {because}"


def bounds_text(job: Job) -> str:
    demand = job.demand
    return f"{demand.instance_count} asked, {demand.instance_count_min} to {demand.instance_count_max}"


def growth_text(state: ClusterState, job: Job, now_us: Micros) -> str:
    """When a smaller gang grows, or what it waits for."""
    course = job.course
    if course.stop is not None and course.stop.outcome is AttemptOutcome.RESIZED:
        return f"stops {course.stop.why}"
    hinders = why_not_now(state, job, now_us)
    if hinders:
        return hinders
    last = next((one for one in course.checkpoints if one.attempt == job.attempt), None)
    to = could_have(state, job)
    gains = f", {gain_text(job, to)}" if job.course.speeds else ""
    grows = f"grows to {to} at its next checkpoint{gains}"
    if last is None:
        return f"{grows} (none so far in this attempt; a job that saves none stays as it is)"
    ago = duration_text(max(0, now_us - last.accepted_us))
    return f"{grows} (the last one, of step {last.step}, came {ago} ago)"


def _names(state: ClusterState, nodes: Collection[NodeId]) -> str:
    """The first, and how many more there are."""
    more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return state.nodes[min(nodes)].inventory.name + more


def _waits_besides(state: ClusterState, job: Job) -> bool:
    return bool(state.held or state.claims) or state.queue.waits_besides(job)


def _restart_us(job: Job) -> int:
    """Its last save, and from the placement to the first step that was told; else as in preemptions."""
    course = job.course
    start_us = RESTART_US if course.first is None else course.first.at_us - course.attempt_us
    save = course.checkpoints[0] if course.checkpoints else None
    return start_us if save is None else start_us + save.stall_us + save.persist_us


def _may_stop(state: ClusterState, job: Job) -> bool:
    """All of it hears the stop, and no other gang is on its way to the same room. Else: at a later one."""
    heard = all(state.nodes[task.node].contact is NodeContact.CONNECTED for task in job.tasks)
    return heard and not any(
        (stop := state.jobs[number].course.stop) is not None and stop.outcome is AttemptOutcome.RESIZED
        for number in state.small
    )
