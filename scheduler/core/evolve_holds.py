"""What an admin's word on a job means for the state: see hold_events."""

from typing import Final

from msgspec.structs import replace

from .hold_events import JobHeld, JobReleased, PriorityChanged
from .indexes import put_job
from .job import Hold, with_course
from .state import ClusterState, Handlers, Touched


def _job_held(state: ClusterState, event: JobHeld) -> Touched:
    """Said again, it stays since when it was."""
    job = state.jobs[event.job]
    since_us = event.at_us if job.course.hold is None else job.course.hold.since_us
    return put_job(state, job, with_course(job, hold=Hold(event.by, since_us, event.why)))


def _job_released(state: ClusterState, event: JobReleased) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, with_course(job, hold=None))


def _priority_changed(state: ClusterState, event: PriorityChanged) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, replace(job, priority=event.priority))


HANDLERS: Final[Handlers] = {
    JobHeld: _job_held,
    JobReleased: _job_released,
    PriorityChanged: _priority_changed,
}
