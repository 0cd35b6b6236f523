"""What agents report: each entry of a task's journal, decided alone.

Only the current attempt is listened to (fencing); of one that is over, but still the last, how its tasks left
is noted, and changes nothing else. An entry that was applied before is dropped by its seq; one
that skips a seq is not taken, so the agent sends again from the committed position. The first rank that is
heard to have failed on its own ends the attempt; when one is heard later that had failed before it, the
report of the last failure says so, and nothing else changes.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite

from ...spec.failures import FailureClass
from ...spec.ids import Attempt, Micros, NodeId
from ...spec.lifecycle import AttemptOutcome
from .attempt_events import FirstFailureFound, LingererGone
from .checkpoint_events import CheckpointAccepted, CheckpointFailed, CheckpointRestored, PeerMemoryTold
from .copies import on_copy
from .deadlines import went_silent
from .effects import Plan
from .elastic import grow_at_checkpoint
from .ending import EXIT_NOT_RUN, EXIT_NOT_STARTABLE, end_attempt, stopped, timed_out
from .events import Event
from .failure import AFTER_A_PEER, Failure
from .failures import (
    class_of,
    could_be_cause,
    death_text,
    doubt_of,
    error_text,
    hint_of,
    is_before,
    is_gpus_fault,
    xid_text,
)
from .gpus import gpu_fault
from .hangs import on_inspected, on_stalled
from .job import NEVER, Ending, Job, TaskState
from .node_events import NodeRested
from .paces import on_paced
from .signals import job_exit_code
from .state import ClusterState
from .stimuli import (
    Damaged,
    Ended,
    Entry,
    Exited,
    Inspected,
    Metrics,
    Paced,
    PeerMemory,
    Published,
    Reformed,
    Refused,
    Restored,
    SaveFailed,
    SawStop,
    Stalled,
    Started,
    Uploaded,
)
from .stranding import within_reach
from .task_events import (
    GangReformed,
    MetricsReported,
    RankExited,
    StartRefused,
    StopSeen,
    TaskEnded,
    TaskStarted,
)

AGENT_GAVE_UP = frozenset({"lease ran out", "superseded"})


def on_entry(state: ClusterState, node: NodeId, entry: Entry, now_us: Micros) -> Plan[int]:
    """Answer: the seq up to which this task's journal is now applied (stale tasks: all of it)."""
    job = state.jobs.get(entry.task.job)
    if job is None:
        return Plan(entry.seq)
    if job.attempt != entry.task.attempt:
        return _stale(state, job, node, entry, now_us)
    if not job.placed:
        late, gone = on_late_entry(state, job, node, entry, now_us), _gone(job, entry, now_us)
        return Plan(entry.seq, (*late.events, *gone))
    if entry.task.task >= len(job.tasks) or job.tasks[entry.task.task].node != node:
        return Plan(entry.seq)
    task = job.tasks[entry.task.task]
    if entry.seq != task.applied_seq + 1:
        return Plan(task.applied_seq)
    plan = _decide(state, job, entry, now_us)
    return Plan(entry.seq, plan.events, plan.effects)


def on_late_entry(state: ClusterState, job: Job, node: NodeId, entry: Entry, now_us: Micros) -> Plan[int]:
    """`job`: it waits again, or is over. How a task of its last attempt left is still told, once."""
    key = entry.task
    if key.attempt != job.attempt or key.task >= len(job.tasks) or job.tasks[key.task].node != node:
        return Plan(entry.seq)
    task = job.tasks[key.task]
    if entry.seq <= task.applied_seq or task.state is TaskState.ENDED:
        return Plan(entry.seq)
    match entry.said:
        case Exited():
            failure = _failure_of(job, node, entry, entry.said, now_us)
            exited = _exit(job, entry, entry.said, failure, now_us)
            return Plan(entry.seq, (exited, *_told_anew(state, job, failure, entry.said, now_us)))
        case Ended():
            return Plan(entry.seq, (_end(entry, entry.said, now_us),))
        case Refused():
            return Plan(entry.seq, (_refusal(entry, entry.said, now_us),))
    return Plan(entry.seq)


def _exit(job: Job, entry: Entry, said: Exited, failure: Failure | None, now_us: Micros) -> RankExited:
    rank = job.first_rank(entry.task.task) + said.local_rank
    last_line = said.last_line if failure is None else error_text(said)
    event = RankExited(
        now_us,
        entry.task,
        entry.seq,
        rank,
        said.exit_code,
        last_line,
        said.killed_by_us,
        said.cause or xid_text(said),
    )
    if failure is None:
        return event
    return replace(event, kind=failure.kind, died_us=failure.died_us or NEVER, doubt=failure.doubt)


def _failure_of(job: Job, node: NodeId, entry: Entry, said: Exited, now_us: Micros) -> Failure | None:
    """None: its end cannot be what the attempt failed of."""
    if not could_be_cause(said):
        return None
    rank = job.first_rank(entry.task.task) + said.local_rank
    kind = class_of(said, trained=job.course.step >= 0 or bool(job.course.checkpoints))
    found = said.evidence
    several = entry.task.attempt > 1 or job.shape.policy.retries_max > 0
    attempt = f" --attempt {entry.task.attempt}" if several else ""
    return Failure(
        kind=kind,
        hint=hint_of(said, kind, job.demand, f"`pace logs {job.number} --rank {rank}{attempt}`"),
        attempt=entry.task.attempt,
        node=node,
        rank=rank,
        exit_code=None if said.killed_by_us else said.exit_code,
        died_us=Micros(min(said.died_us, now_us)) if said.died_us else now_us,
        doubt=doubt_of(said, _world_size(job, entry.task.attempt)),
        error_type=found.error_type,
        message=found.message,
        traceback=found.traceback,
        last_lines=found.last_lines or said.last_line,
    )


def _world_size(job: Job, attempt: Attempt) -> int:
    """Of an earlier attempt that may have had another size: the largest it can have been."""
    if attempt == job.attempt:
        return job.world_size
    return job.demand.instance_count_max * job.demand.processes_per_task


def _told_anew(
    state: ClusterState, job: Job, failure: Failure | None, said: Exited, now_us: Micros
) -> tuple[Event, ...]:
    """The attempt that failed last was put down to another rank, which had failed later."""
    ending = job.course.ending
    if failure is None or ending is None or ending.failure is None or failure.rank is None:
        return ()
    told = ending.failure
    if ending.outcome is not AttemptOutcome.WORKER_FAILED or told.attempt != failure.attempt:
        return ()
    if not is_before(failure, told):
        return ()
    anew = replace(
        ending,
        code=failure.kind.value,
        text=death_text(said, failure.rank, _name(state, failure.node)),
        hint=failure.hint,
        node=failure.node,
        rank=failure.rank,
        failure=failure,
    )
    return (FirstFailureFound(now_us, job.number, failure.attempt, anew),)


def _name(state: ClusterState, node: NodeId | None) -> str:
    known = None if node is None else state.nodes.get(node)
    return known.name if known is not None else str(node)


def _end(entry: Entry, said: Ended, now_us: Micros) -> TaskEnded:
    return TaskEnded(now_us, entry.task, entry.seq, said.exit_codes, said.log_bytes, said.why)


def _refusal(entry: Entry, said: Refused, now_us: Micros) -> StartRefused:
    return StartRefused(now_us, entry.task, entry.seq, said.code, said.text, said.transient)


def _stale(state: ClusterState, job: Job, node: NodeId, entry: Entry, now_us: Micros) -> Plan[int]:
    """Nothing of it counts, except that a leftover of an exclusive attempt is gone, and what it shows of the
    attempt that failed last."""
    if isinstance(entry.said, Exited) and entry.task.task < job.demand.instance_count_max:
        failure = _failure_of(job, node, entry, entry.said, now_us)
        return Plan(entry.seq, _told_anew(state, job, failure, entry.said, now_us))
    return Plan(entry.seq, _gone(job, entry, now_us))


def _gone(job: Job, entry: Entry, now_us: Micros) -> tuple[Event, ...]:
    if not isinstance(entry.said, Ended | Refused):
        return ()
    why = "it has ended" if isinstance(entry.said, Ended) else "it never started"
    return tuple(
        LingererGone(now_us, one.key, one.node, why) for one in job.course.lingering if one.key == entry.task
    )


def _decide(state: ClusterState, job: Job, entry: Entry, now_us: Micros) -> Plan[None]:
    key, seq = entry.task, entry.seq
    match entry.said:
        case Started(pids, start_mode):
            started = TaskStarted(now_us, key, seq, pids, start_mode)
            return Plan(None, (started, *_starts_again(state, job.tasks[key.task].node, now_us)))
        case Exited():
            return _on_exited(state, job, entry, entry.said, now_us)
        case Ended():
            return _on_ended(state, job, entry, entry.said, now_us)
        case Published() as said:
            grown = grow_at_checkpoint(state, job, now_us)
            return Plan(None, (_accepted(entry, said, now_us), *grown.events), grown.effects)
        case Metrics() | Restored() | SaveFailed() | SawStop() | PeerMemory() | Reformed() as said:
            return Plan(None, (_as_said(entry, said, now_us),))
        case Uploaded() | Damaged() as said:
            return on_copy(job, entry, said, now_us)
        case Refused():
            return _on_refused(state, job, entry, entry.said, now_us)
        case Stalled() as said:
            return on_stalled(job, entry, said, now_us)
        case Inspected() as said:
            return on_inspected(state, job, entry, said, now_us)
        case Paced() as said:
            return on_paced(state, job, entry, said, now_us)


def _as_said(
    entry: Entry, said: Metrics | Restored | SaveFailed | SawStop | PeerMemory | Reformed, now_us: Micros
) -> Event:
    """What needs no decision."""
    key, seq = entry.task, entry.seq
    match said:
        case Metrics(rank, step, values):
            return MetricsReported(now_us, key, seq, rank, step, values)
        case Restored(step, path, duration_us, rejected, tier):
            return CheckpointRestored(now_us, key, seq, step, path, duration_us, rejected, tier)
        case SaveFailed(step, why, request):
            return CheckpointFailed(now_us, key, seq, step, why, request)
        case SawStop(step, left_us):
            return StopSeen(now_us, key, seq, step, left_us)
        case PeerMemory(rank, node, step, size_bytes, duration_us, why):
            return PeerMemoryTold(now_us, key, seq, rank, node, step, size_bytes, duration_us, why)
        case Reformed(replaced, world_size, step, duration_us):
            return GangReformed(now_us, key, seq, replaced, world_size, step, duration_us)


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """JSON has no NaN and no infinity; metric rows have."""
    return {name: value for name, value in values.items() if isfinite(value)}


def _accepted(entry: Entry, said: Published, now_us: Micros) -> CheckpointAccepted:
    return CheckpointAccepted(
        now_us,
        entry.task,
        entry.seq,
        said.step,
        said.path,
        said.manifest_hash,
        said.size_bytes,
        said.stall_us,
        _finite(said.metrics),
        said.removed_steps,
        said.persist_us,
        Micros(min(said.staged_us, now_us)),
        said.why,
        said.request,
    )


def _on_exited(state: ClusterState, job: Job, entry: Entry, said: Exited, now_us: Micros) -> Plan[None]:
    node = job.tasks[entry.task.task].node
    failure = _failure_of(job, node, entry, said, now_us)
    event = _exit(job, entry, said, failure, now_us)
    if failure is None or said.killed_by_us or job.course.stop is not None:
        return Plan(None, (event,))
    return _and_end(state, job, now_us, event, _ending_of(state, job, failure, said))


def _ending_of(state: ClusterState, job: Job, failure: Failure, said: Exited) -> Ending:
    """A rank fell. When a peer's node went silent, that node is the likelier cause, and no retry is used,
    unless the rank says itself what it fell of."""
    assert failure.rank is not None
    text = death_text(said, failure.rank, _name(state, failure.node))
    if is_gpus_fault(said):
        assert failure.node is not None
        return gpu_fault(failure.node, text)
    silent = _silent_peer(state, job, failure)
    if silent is not None:
        text = f"{state.nodes[silent].name} is silent and its peer fell: {text}"
        return Ending(AttemptOutcome.NODE_LOST, "node-lost", text, node=silent, exit_code=EXIT_NOT_RUN)
    return Ending(
        AttemptOutcome.WORKER_FAILED,
        failure.kind.value,
        text,
        failure.hint,
        job_exit_code(said.exit_code),
        failure.node,
        failure.rank,
        failure,
    )


def _silent_peer(state: ClusterState, job: Job, failure: Failure) -> NodeId | None:
    own = failure.kind in (FailureClass.USER_ERROR, FailureClass.OUT_OF_MEMORY)
    if own and failure.doubt != AFTER_A_PEER:
        return None
    peers = (task.node for task in job.tasks if task.node != failure.node)
    return next((peer for peer in peers if went_silent(state.nodes[peer])), None)


def _on_ended(state: ClusterState, job: Job, entry: Entry, said: Ended, now_us: Micros) -> Plan[None]:
    task = job.tasks[entry.task.task]
    event = _end(entry, said, now_us)
    ending = _ending_of_task(state, job, entry, said, now_us)
    if ending is not None:
        return _and_end(state, job, now_us, event, ending)
    others = [other for other in job.tasks if other.task != task.task]
    open_tasks = [other for other in others if other.state is not TaskState.ENDED]
    reachable = job.course.stop is None or within_reach(state, job.with_task_ended(task.task))
    if open_tasks and reachable:
        return Plan(None, (event,))
    by_itself = said.why == "exited" and all(other.ended_why == "exited" for other in others)
    codes = [code for codes in (said.exit_codes, *(other.exit_codes for other in others)) for code in codes]
    if job.course.stop is not None and not (by_itself and not any(codes)):
        return _and_end(state, job, now_us, event, stopped(job))
    succeeded = Ending(AttemptOutcome.SUCCEEDED, "succeeded", "all ranks exited with code 0")
    return _and_end(state, job, now_us, event, succeeded)


def _ending_of_task(
    state: ClusterState, job: Job, entry: Entry, said: Ended, now_us: Micros
) -> Ending | None:
    """How the attempt ends because of the way this task ended; None: it goes on, or ends when all have."""
    task = job.tasks[entry.task.task]
    name = state.nodes[task.node].name
    if job.course.stop is not None:
        return None
    if said.why == "timeout":
        return timed_out(job)
    if said.why in AGENT_GAVE_UP:
        text = f"the agent on {name} ended task {task.task}: {said.why}"
        return Ending(AttemptOutcome.NODE_LOST, "node-lost", text, node=task.node, exit_code=EXIT_NOT_RUN)
    failed = next(((at, code) for at, code in enumerate(said.exit_codes) if code), None)
    if said.why == "stopped" or (failed is None and said.why != "exited"):
        text = f"the agent on {name} stopped task {task.task} without being asked to: {said.why}"
        return Ending(AttemptOutcome.NODE_LOST, "node-lost", text, node=task.node, exit_code=EXIT_NOT_RUN)
    if failed is None:
        return None
    exited = Exited(failed[0], failed[1])
    failure = _failure_of(job, task.node, entry, exited, now_us)
    assert failure is not None
    return _ending_of(state, job, failure, exited)


def _on_refused(state: ClusterState, job: Job, entry: Entry, said: Refused, now_us: Micros) -> Plan[None]:
    """The job's fault: it is over. The node's fault or a race: elsewhere, after a short, growing backoff."""
    task = job.tasks[entry.task.task]
    event = _refusal(entry, said, now_us)
    text = f"{state.nodes[task.node].name} refused to start task {task.task}: {said.text}"
    ending = Ending(AttemptOutcome.START_FAILED, said.code, text, "", EXIT_NOT_STARTABLE, task.node)
    if not said.transient:
        return _and_end(state, job, now_us, event, ending, again=False)
    again = len(job.course.avoid)
    held_us = state.settings.refusal_backoff_us * min(2**again, 64)
    avoid = None if task.node in job.course.avoid else task.node
    plan = _and_end(state, job, now_us, event, ending, avoid=avoid, held_us=held_us)
    return Plan(None, (*plan.events, *_rests(state, task.node, said, now_us)), plan.effects)


def _rests(state: ClusterState, name: NodeId, said: Refused, now_us: Micros) -> tuple[Event, ...]:
    """What is wrong on a node fails every job that is sent there: it gets none for a growing time."""
    node, settings = state.nodes[name], state.settings
    if node.rests_until_us > now_us:  # several starts, refused together
        return ()
    rest_us = min(settings.refusal_backoff_us * 2 ** min(node.refusals, 32), settings.rest_max_us)
    return (NodeRested(now_us, name, node.refusals + 1, Micros(now_us + rest_us), said.text),)


def _starts_again(state: ClusterState, name: NodeId, now_us: Micros) -> tuple[Event, ...]:
    return (NodeRested(now_us, name, 0),) if state.nodes[name].refusals else ()


def _and_end(
    state: ClusterState,
    job: Job,
    now_us: Micros,
    event: Event,
    ending: Ending,
    *,
    again: bool = True,
    avoid: NodeId | None = None,
    held_us: int = 0,
) -> Plan[None]:
    """The entry, and the attempt's end because of it. The task of an end or a refusal is itself gone."""
    gone_task = event.task.task if isinstance(event, TaskEnded | StartRefused) else None
    plan = end_attempt(
        state, _without(job, gone_task), now_us, ending, again=again, avoid=avoid, held_us=held_us
    )
    return Plan(None, (event, *plan.events), plan.effects)


def _without(job: Job, gone_task: int | None) -> Job:
    if gone_task is None:
        return job
    return job.with_task_ended(gone_task)
