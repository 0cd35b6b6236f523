"""What people ask of a job's checkpoints: save now, go on from that one, save and make way.

A job that is to end after it has saved is given what its saves have taken, and a margin. Whoever asks twice
with the same key asked once.
"""

from ...spec.errors import Conflict, NotFound
from ...spec.ids import JobId, Micros
from ...spec.lifecycle import AttemptOutcome, JobState
from .checkpoint_events import CheckpointRequested, RestoreRequested
from .copies import is_good
from .effects import AskSave, Effect, Plan, SaveAsked
from .ending import end_attempt
from .evolve_checkpoints import up_to
from .grace import save_grace_us
from .job import Checkpoint, Ending, Job, SaveAsk, Stop, TaskState, with_course
from .state import ClusterState
from .stimuli import AskCheckpoint, Preempt, Restore
from .submit import request_stop


def on_ask_checkpoint(state: ClusterState, asked: AskCheckpoint, now_us: Micros) -> Plan[SaveAsked]:
    """Raises NotFound, and Conflict where the job cannot save now."""
    job = _live(state, asked.job)
    before = job.course.save_ask
    if before is not None and (before.pending or before.key == asked.key):
        return Plan(SaveAsked(before.number, job.attempt))
    if job.state is not JobState.RUNNING:
        raise Conflict(
            f"job {job.number} is {job.state} and has no state to save",
            hint=f"`pace why {job.number}` says what it waits for",
            job=job.number,
        )
    if job.course.stop is not None:
        raise Conflict(f"job {job.number} is being stopped: it was told to save and leave", job=job.number)
    number = state.last_seq + 1
    event = CheckpointRequested(now_us, job.number, job.attempt, number, asked.key, asked.by)
    ask = SaveAsk(number, asked.key)
    return Plan(SaveAsked(number, job.attempt), (event,), ask_effects(job, ask))


def ask_effects(job: Job, ask: SaveAsk) -> tuple[Effect, ...]:
    """To each task that has not ended."""
    return tuple(
        AskSave(task.node, job.key(task.task), ask.number)
        for task in job.tasks
        if task.state is not TaskState.ENDED
    )


def on_preempt(
    state: ClusterState, asked: Preempt, now_us: Micros, known: tuple[JobId, ...] | None
) -> Plan[None]:
    """The attempt saves and ends; the job waits again. Raises NotFound, and Conflict for one that waits."""
    if known is not None:
        return Plan(None)
    job = _live(state, asked.job)
    if not job.placed:
        raise Conflict(
            f"job {job.number} is {job.state}: it holds nothing that it could give up", job=job.number
        )
    if job.course.stop is not None:
        raise Conflict(f"job {job.number} is being stopped already", job=job.number)
    grace_us = save_grace_us(job) if asked.grace_us is None else asked.grace_us
    return request_stop(state, job, Stop(AttemptOutcome.PREEMPTED, now_us, grace_us, asked.by))


def on_restore(
    state: ClusterState, asked: Restore, now_us: Micros, known: tuple[JobId, ...] | None
) -> Plan[None]:
    """A running attempt is over at once: what it does from now on would not count. Raises NotFound,
    Conflict."""
    if known is not None:
        return Plan(None)
    job = _live(state, asked.job)
    chosen = checkpoint_of(job, asked.step)
    if job.course.stop is not None:
        raise Conflict(f"job {job.number} is being stopped", hint="wait until it is over", job=job.number)
    requested = RestoreRequested(now_us, job.number, job.attempt, chosen.step, chosen.path, asked.by)
    if not job.placed:
        return Plan(None, (requested,))
    by = f" by {asked.by}" if asked.by else ""
    text = f"sent back to the checkpoint of step {chosen.step}{by}"
    ending = Ending(AttemptOutcome.RESTORED, "restored", text)
    kept = with_course(job, checkpoints=up_to(job.course.checkpoints, chosen.path))
    ended = end_attempt(state, kept, now_us, ending)
    return Plan(None, (requested, *ended.events), ended.effects)


def checkpoint_of(job: Job, step: int) -> Checkpoint:
    """The newest good one of that step. Raises NotFound, saying which there are."""
    good = [one for one in job.course.checkpoints if is_good(one)]
    for one in good:
        if one.step == step:
            return one
    steps = sorted({one.step for one in good})
    there = f"it has those of steps {', '.join(map(str, steps))}" if steps else "it has none"
    raise NotFound(
        f"job {job.number} has no good checkpoint of step {step}; {there}",
        hint=f"`pace checkpoints {job.number}` lists what there is, and what became of others",
        job=job.number,
        step=step,
    )


def _live(state: ClusterState, number: JobId) -> Job:
    job = state.jobs.get(number)
    if job is None:
        raise NotFound(f"job {number} is not waiting or running", job=number)
    return job
