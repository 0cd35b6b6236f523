"""An admin keeps a job from starting, lets it go, or gives it another priority."""

from ...spec.errors import NotFound
from ...spec.ids import Micros
from .admin_stimuli import HoldJob, ReleaseJob, SetPriority
from .amounts import duration_text
from .attempt_events import ClaimDropped
from .effects import Plan
from .events import Event
from .hold_events import JobHeld, JobReleased, PriorityChanged
from .job import Hold, Job
from .reason import Reason
from .state import ClusterState


def on_hold(state: ClusterState, asked: HoldJob, now_us: Micros) -> Plan[None]:
    """Said again it changes nothing, but for another reason. Nodes that are kept for it are let go."""
    job = _live(state, asked)
    events: list[Event] = []
    if job.course.claim is not None:
        events.append(ClaimDropped(now_us, job.number, f"it is held by {asked.by}"))
    hold = job.course.hold
    if hold is None or (asked.why and asked.why != hold.why):
        events.append(JobHeld(now_us, job.number, asked.by, asked.why))
    return Plan(None, tuple(events))


def on_release(state: ClusterState, asked: ReleaseJob, now_us: Micros) -> Plan[None]:
    job = _live(state, asked)
    if job.course.hold is None:
        return Plan(None)
    return Plan(None, (JobReleased(now_us, job.number, asked.by),))


def on_priority(state: ClusterState, asked: SetPriority, now_us: Micros) -> Plan[None]:
    job = _live(state, asked)
    if job.priority == asked.priority:
        return Plan(None)
    return Plan(None, (PriorityChanged(now_us, job.number, asked.by, asked.priority),))


def hold_reason(job: Job, hold: Hold, now_us: Micros) -> Reason:
    """`held by ann for 12 min 0 s: the data is wrong`."""
    why = f": {hold.why}" if hold.why else ""
    text = f"held by {hold.by} for {duration_text(max(0, now_us - hold.since_us))}{why}"
    return Reason("held", text, f"`pace release {job.number}` lets it go", {"by": hold.by})


def _live(state: ClusterState, asked: HoldJob | ReleaseJob | SetPriority) -> Job:
    job = state.jobs.get(asked.job)
    if job is None:
        raise NotFound(f"job {asked.job} is not waiting or running", job=asked.job)
    return job
