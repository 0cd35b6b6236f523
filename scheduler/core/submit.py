"""What clients ask: new jobs, cancels, trust."""

from collections.abc import Iterable

from msgspec.structs import replace

from ...spec.errors import LimitExceeded, NotFound
from ...spec.ids import JobId, Micros
from ...spec.lifecycle import AttemptOutcome, JobState
from .admission import admitted
from .attempt_events import JobEnded, JobSubmitted, StopRequested
from .effects import Effect, Plan, StopTask, Submitted
from .ending import AGAIN, EXIT_CANCELLED, end_attempt, stopped
from .events import Event
from .grace import save_grace_us
from .job import Ending, Job, Stop, TaskState
from .node_events import ClusterTrusted
from .state import ClusterState
from .stimuli import Cancel, Submit, TrustCluster
from .stranding import within_reach


def on_submit(
    state: ClusterState, asked: Submit, now_us: Micros, known: tuple[JobId, ...] | None
) -> Plan[Submitted]:
    """`known`: what the key made when it was used before. Raises LimitExceeded; see admission.py, too."""
    if known is not None:
        return Plan(Submitted(known, repeated=True))
    most = state.settings.jobs_max
    if len(state.jobs) + len(asked.jobs) > most:
        raise LimitExceeded(
            f"{len(state.jobs)} jobs wait or run; {len(asked.jobs)} more would pass the limit of {most}",
            hint="wait until some have finished",
            jobs=len(state.jobs),
            asked=len(asked.jobs),
            limit=most,
        )
    events = tuple(
        JobSubmitted(
            now_us,
            JobId(state.last_job + 1 + at),
            new.name,
            asked.user,
            new.priority,
            admitted(state.policy, new, asked.user, now_us),
            asked.parent,
            asked.checkpoint,
        )
        for at, new in enumerate(asked.jobs)
    )
    return Plan(Submitted(tuple(event.job for event in events)), events)


def on_cancel(state: ClusterState, asked: Cancel, now_us: Micros) -> Plan[None]:
    """A waiting job is over at once; a placed one gets notice, and ends when its tasks have."""
    job = state.jobs.get(asked.job)
    if job is None:
        raise NotFound(f"job {asked.job} is not waiting or running", job=asked.job)
    if not job.placed:
        by = f" by {asked.by}" if asked.by else ""
        ending = Ending(
            AttemptOutcome.CANCELLED, "cancelled", f"cancelled{by} while it waited", "", EXIT_CANCELLED
        )
        return Plan(None, (JobEnded(now_us, job.number, JobState.CANCELLED, ending),))
    grace_us = save_grace_us(job) if asked.grace_us is None else asked.grace_us
    return request_stop(state, job, Stop(AttemptOutcome.CANCELLED, now_us, grace_us, asked.by))


def request_stop(state: ClusterState, job: Job, stop: Stop) -> Plan[None]:
    """A second stop counts when it is to be over sooner, or where the first was to go on and this is not, or
    was to grow. Nobody can be told: over at once."""
    standing = job.course.stop
    if standing is not None:
        for_good = standing.outcome in AGAIN and stop.outcome not in AGAIN
        prevails = for_good or standing.outcome is AttemptOutcome.RESIZED is not stop.outcome
        left_us = standing.requested_us + standing.grace_us - stop.requested_us
        if stop.grace_us >= left_us and not prevails:
            return Plan(None)
        grace_us = max(0, min(stop.grace_us, left_us))
        stop = replace(stop if prevails else standing, requested_us=stop.requested_us, grace_us=grace_us)
    requested = StopRequested(stop.requested_us, job.number, stop)
    if within_reach(state, job):
        return Plan(None, (requested,), stop_effects(state, job, stop, stop.requested_us))
    job = replace(job, course=replace(job.course, stop=stop))
    ended = end_attempt(state, job, stop.requested_us, stopped(job))
    return Plan(None, (requested, *ended.events), ended.effects)


def request_stops(state: ClusterState, stops: Iterable[tuple[Job, Stop]], *before: Event) -> Plan[None]:
    """As `request_stop` of each, after what else is said."""
    events, effects = [*before], list[Effect]()
    for job, stop in stops:
        plan = request_stop(state, job, stop)
        events += plan.events
        effects += plan.effects
    return Plan(None, tuple(events), tuple(effects))


def stop_effects(state: ClusterState, job: Job, stop: Stop, now_us: Micros) -> tuple[Effect, ...]:
    """The notice to each task that has not ended, with what is left of the grace. Ranks of a gang that grows
    may stay up where they can."""
    left_us = max(0, stop.requested_us + stop.grace_us - now_us)
    stay = stop.outcome is AttemptOutcome.RESIZED and not job.demand.exclusive
    keep_us = state.settings.reform_us if stay else 0
    return tuple(
        StopTask(task.node, job.key(task.task), left_us, stop.outcome.value, keep_us)
        for task in job.tasks
        if task.state is not TaskState.ENDED
    )


def on_trust(state: ClusterState, asked: TrustCluster, now_us: Micros) -> Plan[None]:
    if not state.suspected:
        return Plan(None)
    return Plan(None, (ClusterTrusted(now_us, asked.by or "an operator"),))
