"""What the facts of checkpoints mean for their job: see checkpoint_events."""

from typing import Final

from msgspec.structs import replace

from .checkpoint_events import (
    CheckpointAccepted,
    CheckpointDamaged,
    CheckpointFailed,
    CheckpointRequested,
    CheckpointRestored,
    CheckpointUploaded,
    PeerMemoryTold,
    RestoreRequested,
)
from .copies import with_damage, with_upload
from .evolve_tasks import only_told, with_task
from .indexes import put_job
from .job import Checkpoint, Job, SaveAsk, with_course
from .speeds import with_speed
from .state import ClusterState, Handlers, Touched


def accepted(event: CheckpointAccepted) -> Checkpoint:
    """As the job's record has it."""
    return Checkpoint(
        event.step,
        event.task.attempt,
        event.path,
        event.manifest_hash,
        event.size_bytes,
        event.at_us,
        event.metrics,
        event.stall_us,
        event.persist_us,
        event.why,
        image=event.image,
    )


def up_to(checkpoints: tuple[Checkpoint, ...], path: str) -> tuple[Checkpoint, ...]:
    """From that one on, newest first: what was accepted after it does not count any more."""
    at = next(at for at, one in enumerate(checkpoints) if one.path == path)
    return checkpoints[at:]


def _checkpoint_requested(state: ClusterState, event: CheckpointRequested) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, with_course(job, save_ask=SaveAsk(event.number, event.key)))


def _checkpoint_accepted(state: ClusterState, event: CheckpointAccepted) -> Touched:
    job = state.jobs[event.task.job]
    new = accepted(event)
    kept = (
        old for old in job.course.checkpoints if old.step not in event.removed_steps and old.path != new.path
    )
    checkpoints = (new, *kept)[: state.settings.checkpoints_max]
    asked, speeds = _answered(job, event.request), job.course.speeds
    if event.step_us:
        speeds = with_speed(speeds, len(job.tasks), event.step_us)
    told = with_task(job, event)
    return put_job(state, job, with_course(told, checkpoints=checkpoints, save_ask=asked, speeds=speeds))


def _checkpoint_failed(state: ClusterState, event: CheckpointFailed) -> Touched:
    job = state.jobs[event.task.job]
    return put_job(state, job, with_course(with_task(job, event), save_ask=_answered(job, event.request)))


def _checkpoint_uploaded(state: ClusterState, event: CheckpointUploaded) -> Touched:
    job = with_task(state.jobs[event.task.job], event)
    if event.why:
        return put_job(state, job, job)
    return put_job(
        state, job, with_course(job, checkpoints=with_upload(job.course.checkpoints, event.path, event.url))
    )


def _checkpoint_damaged(state: ClusterState, event: CheckpointDamaged) -> Touched:
    job = state.jobs[event.task.job]
    checkpoints = with_damage(job.course.checkpoints, event.path, event.copy, event.why)
    return put_job(state, job, with_course(with_task(job, event), checkpoints=checkpoints))


def _restore_requested(state: ClusterState, event: RestoreRequested) -> Touched:
    job = state.jobs[event.job]
    kept = up_to(job.course.checkpoints, event.path)
    return put_job(state, job, with_course(job, checkpoints=kept, step=event.step))


def _answered(job: Job, request: int) -> SaveAsk | None:
    ask = job.course.save_ask
    return ask if ask is None or request < ask.number else replace(ask, pending=False)


HANDLERS: Final[Handlers] = {
    CheckpointAccepted: _checkpoint_accepted,
    CheckpointRestored: only_told,
    CheckpointFailed: _checkpoint_failed,
    CheckpointUploaded: _checkpoint_uploaded,
    CheckpointDamaged: _checkpoint_damaged,
    PeerMemoryTold: only_told,
    CheckpointRequested: _checkpoint_requested,
    RestoreRequested: _restore_requested,
}
