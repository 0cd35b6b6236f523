"""What nodes have told of their tasks, and what that means for their job: see task_events."""

from math import isfinite
from typing import Any, Final

from msgspec.structs import replace

from ...spec.lifecycle import JobState
from .attempt_events import FirstFailureFound
from .checkpoint_events import CheckpointRestored, PeerMemoryTold
from .events import LateFact, job_of
from .indexes import put_job
from .job import Job, Reported, TaskState, with_course
from .state import ClusterState, Handlers, Touched
from .task_events import (
    GangReformed,
    MetricsReported,
    RankExited,
    RanksWaiting,
    StartRefused,
    StopSeen,
    TaskEnded,
    TaskServes,
    TaskStarted,
)


def with_fact(job: Job, event: LateFact) -> Job:
    """The job when one of its tasks has said how it left; true in any state of the job, and changes none."""
    match event:
        case RankExited():
            return with_task(job, event)
        case TaskEnded(exit_codes=codes, log_bytes=sizes, why=why):
            ended = {"exit_codes": codes, "log_bytes": sizes, "ended_why": why}
            return with_task(job, event, state=TaskState.ENDED, **ended)
        case StartRefused():
            return with_task(job, event, state=TaskState.ENDED, ended_why="refused")
        case FirstFailureFound():
            return with_course(job, ending=event.ending)


def with_task(job: Job, event: Any, **changes: Any) -> Job:
    """The journal of the event's task is applied up to the event."""
    course = job.course
    task = replace(course.tasks[event.task.task], applied_seq=event.seq, **changes)
    tasks = (*course.tasks[: task.task], task, *course.tasks[task.task + 1 :])
    return replace(job, course=replace(course, tasks=tasks))


def only_told(
    state: ClusterState, event: StopSeen | GangReformed | RanksWaiting | CheckpointRestored | PeerMemoryTold
) -> Touched:
    """It is in the history, and changes nothing of its job."""
    job = state.jobs[event.task.job]
    return put_job(state, job, with_task(job, event))


def _task_started(state: ClusterState, event: TaskStarted) -> Touched:
    job = state.jobs[event.task.job]
    told: dict[str, Any] = {"pids": event.pids, "start_mode": event.start_mode, "record": event.record}
    new = with_task(job, event, state=TaskState.RUNNING, **told)
    if job.state is JobState.STARTING and all(task.state is not TaskState.ASSIGNED for task in new.tasks):
        first_us = job.course.started_us or event.at_us
        new = with_course(new, state=JobState.RUNNING, started_us=first_us, avoid=())
    return put_job(state, job, new)


def _task_serves(state: ClusterState, event: TaskServes) -> Touched:
    job = state.jobs[event.task.job]
    return put_job(state, job, with_task(job, event, url=event.url))


def _task_left(state: ClusterState, event: LateFact) -> Touched:
    """Of a job that is over, only its stored record changes: whoever decided applies it there."""
    number = job_of(event)
    job = None if number is None else state.jobs.get(number)
    return None if job is None else put_job(state, job, with_fact(job, event))


def _metrics_reported(state: ClusterState, event: MetricsReported) -> Touched:
    job = state.jobs[event.task.job]
    course, settings = job.course, state.settings
    metrics = dict(course.metrics)
    for name, value in event.values.items():
        if not isfinite(value):  # its row says so; the record, which is JSON, cannot
            metrics.pop(name, None)
        elif name in metrics or len(metrics) < settings.metric_names_max:
            metrics[name] = value
    rows = min(course.metric_rows + len(event.values), settings.metric_rows_max)
    new = with_course(
        with_task(job, event),
        step=max(event.step, course.step),
        attempt_step=max(event.step, course.attempt_step),
        first=course.first or Reported(event.step, event.at_us),
        metrics=metrics,
        metric_rows=rows,
    )
    return put_job(state, job, new)


HANDLERS: Final[Handlers] = {
    TaskStarted: _task_started,
    TaskServes: _task_serves,
    RankExited: _task_left,
    TaskEnded: _task_left,
    FirstFailureFound: _task_left,
    GangReformed: only_told,
    RanksWaiting: only_told,
    StartRefused: _task_left,
    StopSeen: only_told,
    MetricsReported: _metrics_reported,
}
