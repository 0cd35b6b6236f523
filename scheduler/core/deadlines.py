"""When a job or a node is due by time alone. Pure functions of the state; `timers` only remembers them."""

from ...spec.ids import Micros
from ...spec.lifecycle import JobState, NodeContact
from .job import Job
from .maintenance import window_bounds
from .node import Node
from .reservations import reservation_bounds
from .state import ClusterState


def job_deadline(state: ClusterState, job: Job) -> Micros | None:
    """The next moment at which time alone changes something for the job."""
    course, settings = job.course, state.settings
    moments = []
    if job.over:
        return None
    if course.stop is not None:
        moments.append(stop_deadline(state, job))
    elif job.shape.policy.timeout_us and course.started_us:
        moments.append(course.started_us + job.shape.policy.timeout_us)
    if course.suspicion is not None:
        moments.append(course.suspicion.at_us + settings.inspect_us)
    if course.state is JobState.STARTING:
        moments.append(course.attempt_us + settings.start_timeout_us)
    if job.number in state.held and course.held_until_us > state.last_at_us:
        moments.append(course.held_until_us)
    return Micros(min(moments)) if moments else None


def stop_deadline(state: ClusterState, job: Job) -> int:
    """When a stop under way is given up by fencing."""
    stop = job.course.stop
    assert stop is not None
    return stop.requested_us + stop.grace_us + state.settings.stop_slack_us


def silent_since(state: ClusterState, node: Node) -> int:
    """From when silence counts: the last word, but never before this scheduler could hear."""
    return max(node.last_heard_us, state.trusted_us)


def went_silent(node: Node) -> bool:
    """Its silence was seen, and not only its absence since the scheduler's start: then it may be on its way,
    and whatever its peers do is their own doing."""
    return node.contact is NodeContact.LOST or (node.contact is NodeContact.UNKNOWN and node.session > 0)


def patience_us(state: ClusterState, node: Node) -> int:
    """The silence that makes it LOST; longer for one that this scheduler has not yet had time to hear."""
    settings = state.settings
    unheard = node.last_heard_us < state.trusted_us and not state.overruled
    return settings.return_grace_us if unheard else settings.lost_after_us


def lease_end(state: ClusterState, node: Node) -> int:
    """When exclusive tasks on a silent node are surely dead (T_re)."""
    return silent_since(state, node) + state.settings.replace_exclusive_us


def fenced_lease_end(state: ClusterState, node: Node) -> int:
    """When fenced tasks on a silent node are surely dead."""
    settings = state.settings
    return silent_since(state, node) + settings.lease_fenced_us + settings.stop_and_drift_us


def task_lease_end(state: ClusterState, node: Node, job: Job) -> int:
    """Either kind's may be the earlier one: both leases are settings."""
    return lease_end(state, node) if job.demand.exclusive else fenced_lease_end(state, node)


def node_deadline(state: ClusterState, node: Node) -> Micros | None:
    """The next moment at which time alone changes something for the node."""
    silence = _silence_deadline(state, node)
    if node.node not in state.resting and not state.timed and not state.kept:
        return silence
    moments = [] if silence is None else [silence]
    moments += [node.rests_until_us] if node.node in state.resting else []
    moments += (Micros(at_us) for at_us in (*window_bounds(state, node), *reservation_bounds(state, node)))
    return min(moments, default=None)


def _silence_deadline(state: ClusterState, node: Node) -> Micros | None:
    settings = state.settings
    if node.contact is NodeContact.CONNECTED:
        return Micros(node.last_heard_us + settings.unknown_after_us)
    if state.suspected:
        return None
    if node.contact is NodeContact.UNKNOWN:
        return Micros(silent_since(state, node) + patience_us(state, node))
    load = state.loads[node.node]
    ends = [task_lease_end(state, node, state.jobs[key.job]) for key in load.tasks]
    ends += [lease_end(state, node)] if load.lingering else []
    if not ends and node.cordon is not None:
        return None
    return Micros(min(ends, default=node.since_us + settings.forget_after_us))
