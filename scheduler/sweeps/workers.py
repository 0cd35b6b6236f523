"""Jobs that run trials of a sweep by function: whose word counts."""

from ...proto.auth import Worker
from ...spec.errors import StaleAttempt
from ..core.state import ClusterState


def check_current(state: ClusterState, by: Worker) -> None:
    """Only the current attempt of a job that is not over may speak for it. Raises StaleAttempt."""
    job = state.jobs.get(by.job)
    if job is None or job.over:
        raise StaleAttempt(f"job {by.job} is over", job=by.job, attempt=by.attempt)
    if job.attempt != by.attempt or not job.placed:
        raise StaleAttempt(
            f"attempt {by.attempt} of job {by.job} is no longer the current one",
            job=by.job,
            attempt=by.attempt,
            current=job.attempt,
        )
