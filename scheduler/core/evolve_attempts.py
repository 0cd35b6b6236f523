"""What the facts of a job's attempts mean for the state: see attempt_events."""

from typing import Final

from ...spec.ids import JobId
from ...spec.lifecycle import AttemptOutcome, JobState
from .attempt_events import (
    AttemptEnded,
    AttemptStarted,
    ClaimDropped,
    GrowthDropped,
    GrowthPlanned,
    JobEnded,
    JobSubmitted,
    LaneParked,
    LingererGone,
    PlacesClaimed,
    StopRequested,
)
from .indexes import put_job
from .job import NEVER, Claim, Growth, Job, Lingering, Shape, TaskRun, with_course
from .order import attempt_service_us, queued_us
from .rates import FAULTS
from .state import ClusterState, Handlers, Touched


def started_job(job: Job, event: AttemptStarted) -> Job:
    """The job as it is once placed."""
    tasks = tuple(TaskRun(task, place.node, place.gpu_indices) for task, place in enumerate(event.places))
    return with_course(
        job,
        state=JobState.STARTING,
        attempt=event.attempt,
        tasks=tasks,
        rendezvous_port=event.rendezvous_port,
        attempt_us=event.at_us,
        attempt_step=-1,
        first=None,
        aim=0,
        save_ask=None,
        held_until_us=NEVER,
        claim=None,
        loan=event.loan,
        gave_way_to=None,
        queued_us=queued_us(job, event.at_us),
        lifted=event.lifted,
    )


def _job_submitted(state: ClusterState, event: JobSubmitted) -> Touched:
    shape = _known(state, event.shape)
    job = Job(event.job, event.name, event.user, event.priority, event.at_us, shape)
    if event.checkpoint is not None:
        job = with_course(job, parent=event.parent, checkpoints=(event.checkpoint,))
    state.last_job = JobId(max(state.last_job, event.job))
    state.workload.learn(shape.demand)
    if len(state.shapes) > 2 * len(state.jobs) + 1024:
        state.shapes = {live.shape: live.shape for live in state.jobs.values()}
        state.demands = {shape.demand: shape.demand for shape in state.shapes}
    return put_job(state, None, job)


def _known(state: ClusterState, shape: Shape) -> Shape:
    """The one that is equal to it, or this one with the demand that others have, too."""
    known = state.shapes.get(shape)
    if known is None:
        demand = state.demands.setdefault(shape.demand, shape.demand)
        known = Shape(demand, shape.policy, shape.queue)
        state.shapes[known] = known
    return known


def _attempt_started(state: ClusterState, event: AttemptStarted) -> Touched:
    job, decided = state.jobs[event.job], state.started
    if decided is not None and decided[0] is event and decided[1] is job:
        return put_job(state, job, decided[2])
    return put_job(state, job, started_job(job, event))


def _growth_planned(state: ClusterState, event: GrowthPlanned) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, with_course(job, growth=Growth(event.at_us, event.to)))


def _growth_dropped(state: ClusterState, event: GrowthDropped) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, with_course(job, growth=None))


def _stop_requested(state: ClusterState, event: StopRequested) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, with_course(job, stop=event.stop, suspicion=None))


def _attempt_ended(state: ClusterState, event: AttemptEnded) -> Touched:
    job = state.jobs[event.job]
    state.paces.pop(event.job, None)
    course = job.course
    again = event.then is JobState.QUEUED
    node_us = (event.at_us - course.attempt_us) * len(course.tasks)
    fault = again and event.ending.outcome in FAULTS
    state.rate = state.rate.with_end(node_us, fault=fault)
    for_job = course.stop.for_job if again and course.stop is not None else None
    goes_on = course.stop is not None and course.stop.goes_on
    resized = event.ending.outcome is AttemptOutcome.RESIZED
    free = again and not event.counted and not resized and for_job is None
    new = with_course(
        job,
        state=event.then,
        ending=event.ending,
        stop=None if again else course.stop,
        growth=None,
        aim=course.stop.to if again and course.stop is not None else 0,
        suspicion=None,
        finished_us=NEVER if again else event.at_us,
        retries_used=course.retries_used + event.counted,
        failed_in_row=event.failed_in_row if event.counted else course.failed_in_row,
        rate=course.rate.with_end(node_us, fault=fault),
        save_ask=None,
        free_restarts=course.free_restarts + free,
        lingering=tuple(Lingering(job.key(task), course.tasks[task].node) for task in event.lingering),
        avoid=course.avoid if event.avoid is None else (*course.avoid, event.avoid),
        held_until_us=event.held_until_us,
        gave_way_to=None if goes_on else for_job,
        served_us=course.served_us + attempt_service_us(job, event.at_us),
        service=event.service,
        waits_since_us=event.at_us,
    )
    if not again:
        state.runs.learn(new)
    return put_job(state, job, new)


def _lingerer_gone(state: ClusterState, event: LingererGone) -> Touched:
    job = state.jobs[event.task.job]
    left = tuple(one for one in job.course.lingering if one.key != event.task)
    return put_job(state, job, with_course(job, lingering=left))


def _job_ended(state: ClusterState, event: JobEnded) -> Touched:
    job = state.jobs[event.job]
    return put_job(
        state, job, with_course(job, state=event.state, ending=event.ending, finished_us=event.at_us)
    )


def _places_claimed(state: ClusterState, event: PlacesClaimed) -> Touched:
    job = state.jobs[event.job]
    claim = Claim(event.at_us, event.nodes, event.victims, event.moves)
    return put_job(state, job, with_course(job, claim=claim))


def _claim_dropped(state: ClusterState, event: ClaimDropped) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, with_course(job, claim=None))


def _lane_parked(state: ClusterState, event: LaneParked) -> Touched:
    state.queue.park(state.jobs[event.job])
    return None


HANDLERS: Final[Handlers] = {
    JobSubmitted: _job_submitted,
    AttemptStarted: _attempt_started,
    GrowthPlanned: _growth_planned,
    GrowthDropped: _growth_dropped,
    StopRequested: _stop_requested,
    AttemptEnded: _attempt_ended,
    LingererGone: _lingerer_gone,
    JobEnded: _job_ended,
    PlacesClaimed: _places_claimed,
    ClaimDropped: _claim_dropped,
    LaneParked: _lane_parked,
}
