"""How an attempt ends: is it over, does the job go on, who must be stopped, who must first be gone."""

from collections.abc import Collection

from msgspec.structs import replace

from ...spec.failures import FAILURES, FailureClass
from ...spec.ids import Micros, NodeId
from ...spec.lifecycle import AttemptOutcome, JobState
from .amounts import lost_text
from .attempt_events import AttemptEnded
from .deadlines import silent_since
from .effects import Effect, Plan, StopTask
from .failure import Failure
from .job import NEVER, Ending, Job, TaskState
from .node import Node
from .order import service_class
from .state import ClusterState

EXIT_TIMED_OUT = 124
EXIT_NOT_RUN = 125
EXIT_NOT_STARTABLE = 126
EXIT_CANCELLED = 130

COUNTED = frozenset({AttemptOutcome.WORKER_FAILED})
"""Outcomes that use up a retry of the job's own budget."""

AGAIN = frozenset(
    {
        AttemptOutcome.NODE_LOST,
        AttemptOutcome.START_FAILED,
        AttemptOutcome.PREEMPTED,
        AttemptOutcome.RESTORED,
        AttemptOutcome.RESIZED,
        AttemptOutcome.WORKER_FAILED,
    }
)
"""Outcomes after which a job may be tried again."""


KEEPING = frozenset({AttemptOutcome.WORKER_FAILED, AttemptOutcome.NODE_LOST, AttemptOutcome.RESIZED})
"""Outcomes that ranks may outlive."""

KINDS = {
    AttemptOutcome.NODE_LOST: FailureClass.NODE_LOST,
    AttemptOutcome.START_FAILED: FailureClass.START_FAILED,
    AttemptOutcome.TIMED_OUT: FailureClass.TIMEOUT,
    AttemptOutcome.PREEMPTED: FailureClass.PREEMPTED,
}
"""The class of what is not a rank's own doing."""


def end_attempt(
    state: ClusterState,
    job: Job,
    now_us: Micros,
    ending: Ending,
    *,
    again: bool = True,
    gone: Collection[NodeId] = (),
    avoid: NodeId | None = None,
    held_us: int = 0,
) -> Plan[None]:
    """`gone`: nodes whose tasks are surely dead. `again` False: not even where the budget allows."""
    ending = _with_failure(job, _as_stopped(job, ending))
    then, ending = _then(state, job, ending, again=again)
    counted = then is JobState.QUEUED and ending.outcome in COUNTED
    in_row = _failed_in_row(job, now_us) if counted else 0
    held_us = max(held_us, _backoff_us(job, in_row))
    left = tuple(task for task in job.tasks if task.state is not TaskState.ENDED)
    waits = then is JobState.QUEUED and job.demand.exclusive
    event = AttemptEnded(
        now_us,
        job.number,
        job.attempt,
        then,
        ending,
        counted=counted,
        lingering=tuple(task.task for task in left if waits and task.node not in gone),
        avoid=avoid if then is JobState.QUEUED else None,
        held_until_us=Micros(now_us + held_us) if held_us and then is JobState.QUEUED else NEVER,
        failed_in_row=in_row,
        service=service_class(state.order, job, now_us) if then is JobState.QUEUED else 0,
        lost=_lost(job, now_us, again=then is JobState.QUEUED),
    )
    why = f"attempt {job.attempt} is over: {ending.code}"
    keep_us = state.settings.reform_us + held_us if then is JobState.QUEUED and _may_keep(job, ending) else 0
    stops: tuple[Effect, ...] = tuple(
        StopTask(task.node, job.key(task.task), 0, why, keep_us) for task in left
    )
    return Plan(None, (event,), stops)


def _lost(job: Job, now_us: Micros, *, again: bool) -> str:
    """Of a job that goes on, or was given notice; nothing is lost where the script has saved what it had."""
    course = job.course
    newest = course.checkpoints[0] if course.checkpoints else None
    saved = newest.step if newest is not None else -1
    if (not again and course.stop is None) or course.attempt_step <= saved:
        return ""
    mine = newest is not None and newest.job is None and newest.attempt == job.attempt
    since_us = newest.accepted_us - newest.persist_us if newest is not None and mine else course.attempt_us
    return lost_text(course.attempt_step, saved, now_us - since_us)


def _may_keep(job: Job, ending: Ending) -> bool:
    """Ranks that are healthy may stay up for the next attempt: after a fall, not of a gang that stood still,
    to grow, and not where every process of the attempt must be gone before the next."""
    kind = ending.failure.kind if ending.failure is not None else None
    return ending.outcome in KEEPING and kind is not FailureClass.HANG and not job.demand.exclusive


def _as_stopped(job: Job, ending: Ending) -> Ending:
    """An attempt that was being stopped ends as that, whatever its ranks did; success stays success."""
    stop = job.course.stop
    if stop is None or ending.outcome in (AttemptOutcome.SUCCEEDED, stop.outcome):
        return ending
    return stopped(job)


def _with_failure(job: Job, ending: Ending) -> Ending:
    """Every end that is a failure says of what class."""
    kind = KINDS.get(ending.outcome)
    if ending.failure is not None or kind is None:
        return ending
    hint = ending.hint or FAILURES[kind].hint
    return replace(ending, failure=Failure(kind, job.attempt, hint, ending.node))


def _failed_in_row(job: Job, now_us: Micros) -> int:
    """Counted failures up to this one since the job last made progress."""
    course = job.course
    newest = course.checkpoints[0] if course.checkpoints else None
    published = newest is not None and newest.job is None and newest.attempt == job.attempt
    ran_long = now_us - course.attempt_us >= job.shape.policy.backoff_max_us
    return 1 if published or ran_long else course.failed_in_row + 1


def _backoff_us(job: Job, in_row: int) -> int:
    policy = job.shape.policy
    if in_row < 2:
        return 0
    return min(policy.backoff_start_us << min(in_row - 2, 40), policy.backoff_max_us)


def stopped(job: Job) -> Ending:
    """The ending of a job that was asked to stop."""
    stop = job.course.stop
    assert stop is not None
    if stop.outcome is AttemptOutcome.RESIZED:
        return Ending(stop.outcome, "resized", f"stopped at a checkpoint {stop.why}", exit_code=EXIT_NOT_RUN)
    if stop.outcome is AttemptOutcome.TIMED_OUT:
        return timed_out(job)
    by = f" by {stop.by}" if stop.by else ""
    if stop.outcome is AttemptOutcome.PREEMPTED:
        why = f": {stop.why}" if stop.why else ""
        return Ending(stop.outcome, "preempted", f"preempted{by}{why}", exit_code=EXIT_NOT_RUN)
    return Ending(stop.outcome, "cancelled", f"cancelled{by}", exit_code=EXIT_CANCELLED)


def node_lost(state: ClusterState, node: Node, now_us: Micros) -> Ending:
    """The ending of an attempt whose part on a silent node was given up."""
    silent_s = (now_us - silent_since(state, node)) / 1e6
    why = f" ({node.why})" if node.why else ""
    text = f"{node.name} has not been heard of for {silent_s:.1f} s{why}"
    return Ending(AttemptOutcome.NODE_LOST, "node-lost", text, exit_code=EXIT_NOT_RUN, node=node.node)


def timed_out(job: Job) -> Ending:
    limit_s = job.shape.policy.timeout_us / 1e6
    return Ending(
        AttemptOutcome.TIMED_OUT,
        "timed-out",
        f"ran longer than its limits.timeout of {limit_s:g} s",
        "raise limits.timeout (a job that says none has that of its pool: `pace pools`), or submit it again: "
        "it goes on from a checkpoint only within one job",
        EXIT_TIMED_OUT,
    )


def _then(state: ClusterState, job: Job, ending: Ending, *, again: bool) -> tuple[JobState, Ending]:
    outcome = ending.outcome
    if outcome is AttemptOutcome.SUCCEEDED:
        return JobState.SUCCEEDED, ending
    if outcome is AttemptOutcome.CANCELLED:
        return JobState.CANCELLED, ending
    if not again or outcome not in AGAIN:
        return JobState.FAILED, ending
    kind = ending.failure.kind if ending.failure is not None else None
    if kind is not None and FAILURES[kind].choice and kind not in job.shape.policy.retry_on:
        return JobState.FAILED, _final(job, ending, kind)
    if outcome in COUNTED:
        return _within_retries(job, ending)
    if outcome is AttemptOutcome.RESIZED:
        return JobState.QUEUED, ending
    if job.course.stop is not None and job.course.stop.for_job is not None:
        return JobState.QUEUED, ending
    if job.course.free_restarts >= state.settings.free_restarts_max:
        text = (
            f"{ending.text}; given up after {job.course.free_restarts} restarts that were not the job's fault"
        )
        exit_code = ending.exit_code or EXIT_NOT_RUN
        return JobState.FAILED, replace(ending, text=text, exit_code=exit_code)
    return JobState.QUEUED, ending


def _final(job: Job, ending: Ending, kind: FailureClass) -> Ending:
    """Says why there is no other attempt, where more were allowed."""
    if not job.shape.policy.retries_max:
        return ending
    why = f"retry.on does not name {kind}" if FAILURES[kind].retried else f"a {kind} recurs"
    return replace(ending, text=f"{ending.text}; not tried again, {why}")


def _within_retries(job: Job, ending: Ending) -> tuple[JobState, Ending]:
    used, most = job.course.retries_used, job.shape.policy.retries_max
    if used < most:
        return JobState.QUEUED, ending
    if not most:
        return JobState.FAILED, ending
    return JobState.FAILED, replace(ending, text=f"{ending.text}; all {most} retries are used up")
