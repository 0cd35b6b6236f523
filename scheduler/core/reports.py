"""What agents report: each entry of a task's journal, decided alone.

Only the current attempt is listened to (fencing); of one that is over, but still the last, how its tasks left
is noted, and changes nothing else. An entry that was applied before is dropped by its seq; one
that skips a seq is not taken, so the agent sends again from the committed position.
"""

from collections.abc import Mapping
from math import isfinite

from ...spec.ids import Micros, NodeId
from .attempt_events import LingererGone
from .checkpoint_events import CheckpointAccepted, CheckpointFailed, CheckpointRestored, PeerMemoryTold
from .copies import on_copy
from .effects import Plan
from .elastic import faster_text, grow_at_checkpoint, measured
from .events import Event
from .exits import (
    failure_of,
    late_facts,
    on_ended,
    on_exited,
    on_refused,
    on_waiting,
    starts_again,
    told_anew,
)
from .hangs import on_inspected, on_stalled
from .job import Job, TaskState
from .paces import on_paced
from .speeds import measured_us
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
    Serves,
    Stalled,
    Started,
    Uploaded,
    Waiting,
)
from .task_events import GangReformed, MetricsReported, StopSeen, TaskServes, TaskStarted


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
    return Plan(entry.seq, late_facts(state, job, node, entry, now_us))


def _stale(state: ClusterState, job: Job, node: NodeId, entry: Entry, now_us: Micros) -> Plan[int]:
    """Nothing of it counts, except that a leftover of an exclusive attempt is gone, and what it shows of the
    attempt that failed last."""
    if isinstance(entry.said, Exited) and entry.task.task < job.demand.instance_count_max:
        failure = failure_of(job, node, entry, entry.said, now_us)
        return Plan(entry.seq, told_anew(state, job, failure, entry.said, now_us))
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
        case Started(pids, mode, prepared, record, unrecorded, network):
            started = TaskStarted(now_us, key, seq, pids, mode, prepared, record, unrecorded, network)
            return Plan(None, (started, *starts_again(state, job.tasks[key.task].node, now_us)))
        case Exited():
            return on_exited(state, job, entry, entry.said, now_us)
        case Ended():
            return on_ended(state, job, entry, entry.said, now_us)
        case Published() as said:
            accepted = _accepted(job, entry, said, now_us)
            grown = grow_at_checkpoint(state, measured(job, accepted), now_us)
            return Plan(None, (accepted, *grown.events), grown.effects)
        case Metrics() | Restored() | SaveFailed() | SawStop() | PeerMemory() | Reformed() | Serves() as said:
            return Plan(None, (_as_said(entry, said, now_us),))
        case Uploaded() | Damaged() as said:
            return on_copy(job, entry, said, now_us)
        case Refused():
            return on_refused(state, job, entry, entry.said, now_us)
        case Waiting() as said:
            return on_waiting(state, job, entry, said, now_us)
        case Stalled() as said:
            return on_stalled(job, entry, said, now_us)
        case Inspected() as said:
            return on_inspected(state, job, entry, said, now_us)
        case Paced() as said:
            return on_paced(state, job, entry, said, now_us)


def _as_said(
    entry: Entry,
    said: Metrics | Restored | SaveFailed | SawStop | PeerMemory | Reformed | Serves,
    now_us: Micros,
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
        case Serves(url):
            return TaskServes(now_us, key, seq, url)


def _accepted(job: Job, entry: Entry, said: Published, now_us: Micros) -> CheckpointAccepted:
    took_us = measured_us(job, said.step, now_us) if job.demand.elastic else 0.0
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
        took_us,
        faster_text(job, took_us),
        said.waited_us,
        said.image,
    )


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """JSON has no NaN and no infinity; metric rows have."""
    return {name: value for name, value in values.items() if isfinite(value)}
