"""`evolve(state, event)`: the only thing that changes a ClusterState.

Facts are applied, never judged: whether they should have happened was decided before. The one check is the
table of legal transitions. Each change of a job or node goes through `put_job` or `put_node`, which keep the
indexes true.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import isfinite
from typing import Any, Final

from ...spec.ids import JobId
from ...spec.lifecycle import AttemptOutcome, JobState, NodeContact
from .attempt_events import (
    AttemptEnded,
    AttemptStarted,
    FirstFailureFound,
    GrowthDropped,
    GrowthPlanned,
    JobEnded,
    JobSubmitted,
    LaneParked,
    LingererGone,
    StopRequested,
)
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
from .events import DurableEvent, Event, LateFact, job_of
from .hang import Suspicion, with_look
from .indexes import put_job, put_node, set_node_timer, settle_timers
from .job import NEVER, Checkpoint, Growth, Job, Lingering, SaveAsk, TaskRun, TaskState
from .node import Node
from .node_events import (
    ClusterSuspected,
    ClusterTrusted,
    NodeChanged,
    NodeConnected,
    NodeDrained,
    NodeForgotten,
    NodeHeard,
    NodeJoined,
    NodeLost,
    NodeRested,
    NodeUnknown,
    SchedulerStarted,
    TimersPassed,
)
from .pace import GangPaces
from .progress_events import (
    GangHung,
    PacesReported,
    RanksInspected,
    StragglerFound,
    SuspicionCleared,
    TaskStalled,
)
from .rates import FAULTS
from .settings import Settings
from .state import ClusterState
from .task_events import (
    GangReformed,
    MetricsReported,
    RankExited,
    StartRefused,
    StopSeen,
    TaskEnded,
    TaskStarted,
)

Touched = Job | Node | None


def evolve(state: ClusterState, event: Event) -> Touched:
    """Apply one fact; returns what it changed, as it now is (a job that is over has left the state)."""
    state.last_at_us = max(state.last_at_us, event.at_us)
    if isinstance(event, DurableEvent):
        state.last_seq += 1
    return HANDLERS[type(event)](state, event)


def replay(history: Iterable[Event], settings: Settings | None = None) -> ClusterState:
    """The state that a history leads to."""
    state = ClusterState(settings or Settings())
    for event in history:
        evolve(state, event)
    return state


def started_job(job: Job, event: AttemptStarted) -> Job:
    """The job as it is once placed."""
    tasks = tuple(TaskRun(task, place.node, place.gpu_indices) for task, place in enumerate(event.places))
    return _with(
        job,
        state=JobState.STARTING,
        attempt=event.attempt,
        tasks=tasks,
        rendezvous_port=event.rendezvous_port,
        attempt_us=event.at_us,
        attempt_step=-1,
        save_ask=None,
        held_until_us=NEVER,
    )


def with_fact(job: Job, event: LateFact) -> Job:
    """The job when one of its tasks has said how it left; true in any state of the job, and changes none."""
    match event:
        case RankExited():
            return _with_task(job, event)
        case TaskEnded(exit_codes=codes, log_bytes=sizes, why=why):
            ended = {"exit_codes": codes, "log_bytes": sizes, "ended_why": why}
            return _with_task(job, event, state=TaskState.ENDED, **ended)
        case StartRefused():
            return _with_task(job, event, state=TaskState.ENDED, ended_why="refused")
        case FirstFailureFound():
            return _with(job, ending=event.ending)


def _with(job: Job, **changes: Any) -> Job:
    return replace(job, course=replace(job.course, **changes))


def _with_task(job: Job, event: Any, **changes: Any) -> Job:
    """The journal of the event's task is applied up to the event."""
    course = job.course
    task = replace(course.tasks[event.task.task], applied_seq=event.seq, **changes)
    tasks = (*course.tasks[: task.task], task, *course.tasks[task.task + 1 :])
    return replace(job, course=replace(course, tasks=tasks))


# --- jobs


def _job_submitted(state: ClusterState, event: JobSubmitted) -> Touched:
    shape = state.shapes.setdefault(event.shape, event.shape)
    job = Job(event.job, event.name, event.user, event.priority, event.at_us, shape)
    if event.checkpoint is not None:
        job = _with(job, parent=event.parent, checkpoints=(event.checkpoint,))
    state.last_job = JobId(max(state.last_job, event.job))
    if len(state.shapes) > 2 * len(state.jobs) + 1024:
        state.shapes = {live.shape: live.shape for live in state.jobs.values()}
    return put_job(state, None, job)


def _attempt_started(state: ClusterState, event: AttemptStarted) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, started_job(job, event))


def _task_started(state: ClusterState, event: TaskStarted) -> Touched:
    job = state.jobs[event.task.job]
    new = _with_task(job, event, state=TaskState.RUNNING, pids=event.pids, start_mode=event.start_mode)
    if job.state is JobState.STARTING and all(task.state is not TaskState.ASSIGNED for task in new.tasks):
        first_us = job.course.started_us or event.at_us
        new = _with(new, state=JobState.RUNNING, started_us=first_us, avoid=())
    return put_job(state, job, new)


def _task_left(state: ClusterState, event: LateFact) -> Touched:
    """Of a job that is over, only its stored record changes: whoever decided applies it there."""
    number = job_of(event)
    job = None if number is None else state.jobs.get(number)
    return None if job is None else put_job(state, job, with_fact(job, event))


def _checkpoint_accepted(state: ClusterState, event: CheckpointAccepted) -> Touched:
    job = state.jobs[event.task.job]
    new = Checkpoint(
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
    )
    kept = (
        old for old in job.course.checkpoints if old.step not in event.removed_steps and old.path != new.path
    )
    checkpoints = (new, *kept)[: state.settings.checkpoints_max]
    asked = _answered(job, event.request)
    return put_job(state, job, _with(_with_task(job, event), checkpoints=checkpoints, save_ask=asked))


def _answered(job: Job, request: int) -> SaveAsk | None:
    ask = job.course.save_ask
    return ask if ask is None or request < ask.number else replace(ask, pending=False)


def _checkpoint_requested(state: ClusterState, event: CheckpointRequested) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, _with(job, save_ask=SaveAsk(event.number, event.key)))


def _restore_requested(state: ClusterState, event: RestoreRequested) -> Touched:
    job = state.jobs[event.job]
    kept = job.course.checkpoints
    kept = kept[next(at for at, one in enumerate(kept) if one.path == event.path) :]
    return put_job(state, job, _with(job, checkpoints=kept, step=event.step))


def _only_told(state: ClusterState, event: StopSeen | PeerMemoryTold) -> Touched:
    job = state.jobs[event.task.job]
    return put_job(state, job, _with_task(job, event))


def _checkpoint_restored(state: ClusterState, event: CheckpointRestored) -> Touched:
    job = state.jobs[event.task.job]
    return put_job(state, job, _with_task(job, event))


def _checkpoint_failed(state: ClusterState, event: CheckpointFailed) -> Touched:
    job = state.jobs[event.task.job]
    return put_job(state, job, _with(_with_task(job, event), save_ask=_answered(job, event.request)))


def _checkpoint_uploaded(state: ClusterState, event: CheckpointUploaded) -> Touched:
    job = _with_task(state.jobs[event.task.job], event)
    if event.why:
        return put_job(state, job, job)
    return put_job(
        state, job, _with(job, checkpoints=with_upload(job.course.checkpoints, event.path, event.url))
    )


def _checkpoint_damaged(state: ClusterState, event: CheckpointDamaged) -> Touched:
    job = state.jobs[event.task.job]
    checkpoints = with_damage(job.course.checkpoints, event.path, event.copy, event.why)
    return put_job(state, job, _with(_with_task(job, event), checkpoints=checkpoints))


def _gang_reformed(state: ClusterState, event: GangReformed) -> Touched:
    job = state.jobs[event.task.job]
    return put_job(state, job, _with_task(job, event))


def _task_stalled(state: ClusterState, event: TaskStalled) -> Touched:
    """The first suspicion stands until it is settled."""
    job = state.jobs[event.task.job]
    course = job.course
    suspicion = course.suspicion or Suspicion(
        event.at_us, event.task.task, event.since_us, event.limit_us, event.step
    )
    new = _with(_with_task(job, event), suspicion=None if course.stop is not None else suspicion)
    return put_job(state, job, new)


def _ranks_inspected(state: ClusterState, event: RanksInspected) -> Touched:
    job = state.jobs[event.task.job]
    new = _with(_with_task(job, event), suspicion=with_look(job.course.suspicion, event))
    return put_job(state, job, new)


def _suspicion_cleared(state: ClusterState, event: SuspicionCleared) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, _with(job, suspicion=None))


def _gang_hung(state: ClusterState, event: GangHung) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, _with(job, suspicion=None, hangs=job.course.hangs + 1))


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
    new = _with(
        _with_task(job, event),
        step=max(event.step, course.step),
        attempt_step=max(event.step, course.attempt_step),
        metrics=metrics,
        metric_rows=rows,
    )
    return put_job(state, job, new)


def _paces_reported(state: ClusterState, event: PacesReported) -> Touched:
    job = state.jobs[event.task.job]
    known = state.paces.setdefault(job.number, GangPaces())
    known.ranks.update((pace.rank, pace) for pace in event.ranks)
    known.slow.update(event.slow)
    return put_job(state, job, _with_task(job, event))


def _straggler_found(state: ClusterState, event: StragglerFound) -> Touched:
    node = state.nodes[event.node]
    return put_node(state, node, replace(node, slow_reports=node.slow_reports + 1))


def _growth_planned(state: ClusterState, event: GrowthPlanned) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, _with(job, growth=Growth(event.at_us, event.to)))


def _growth_dropped(state: ClusterState, event: GrowthDropped) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, _with(job, growth=None))


def _stop_requested(state: ClusterState, event: StopRequested) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, _with(job, stop=event.stop, suspicion=None))


def _attempt_ended(state: ClusterState, event: AttemptEnded) -> Touched:
    job = state.jobs[event.job]
    state.paces.pop(event.job, None)
    course = job.course
    again = event.then is JobState.QUEUED
    node_us = (event.at_us - course.attempt_us) * len(course.tasks)
    fault = again and event.ending.outcome in FAULTS
    state.rate = state.rate.with_end(node_us, fault=fault)
    free = again and not event.counted and event.ending.outcome is not AttemptOutcome.RESIZED
    new = _with(
        job,
        state=event.then,
        ending=event.ending,
        stop=None if again else course.stop,
        growth=None,
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
    )
    return put_job(state, job, new)


def _lingerer_gone(state: ClusterState, event: LingererGone) -> Touched:
    job = state.jobs[event.task.job]
    left = tuple(one for one in job.course.lingering if one.key != event.task)
    return put_job(state, job, _with(job, lingering=left))


def _job_ended(state: ClusterState, event: JobEnded) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, _with(job, state=event.state, ending=event.ending, finished_us=event.at_us))


# --- nodes and the cluster


def _node_joined(state: ClusterState, event: NodeJoined) -> Touched:
    return put_node(state, None, Node(event.node, event.inventory, since_us=event.at_us))


def _node_changed(state: ClusterState, event: NodeChanged) -> Touched:
    node = state.nodes[event.node]
    return put_node(state, node, replace(node, inventory=event.inventory))


def _node_connected(state: ClusterState, event: NodeConnected) -> Touched:
    node = state.nodes[event.node]
    new = replace(
        node,
        contact=NodeContact.CONNECTED,
        incarnation=event.incarnation,
        session=event.session,
        since_us=event.at_us if node.contact is not NodeContact.CONNECTED else node.since_us,
        last_heard_us=event.at_us,
        why="",
    )
    touched = put_node(state, node, new)
    if not state.contacts[NodeContact.UNKNOWN]:
        state.overruled = False
    return touched


def _node_unknown(state: ClusterState, event: NodeUnknown) -> Touched:
    node = state.nodes[event.node]
    new = replace(
        node,
        contact=NodeContact.UNKNOWN,
        since_us=event.at_us,
        last_heard_us=event.last_heard_us,
        why=event.why,
    )
    return put_node(state, node, new)


def _node_lost(state: ClusterState, event: NodeLost) -> Touched:
    node = state.nodes[event.node]
    new = replace(node, contact=NodeContact.LOST, since_us=event.at_us, last_heard_us=event.last_heard_us)
    return put_node(state, node, new)


def _node_rested(state: ClusterState, event: NodeRested) -> Touched:
    node = state.nodes[event.node]
    new = replace(node, refusals=event.refusals, rests_until_us=event.until_us, refusal=event.why)
    return put_node(state, node, new)


def _node_drained(state: ClusterState, event: NodeDrained) -> Touched:
    node = state.nodes[event.node]
    new = replace(node, slow_reports=0, refusals=0, rests_until_us=event.until_us, refusal=event.why)
    return put_node(state, node, new)


def _node_forgotten(state: ClusterState, event: NodeForgotten) -> Touched:
    return put_node(state, state.nodes[event.node], None)


def _scheduler_started(state: ClusterState, event: SchedulerStarted) -> Touched:
    state.suspected = state.overruled = False
    state.trusted_us = event.at_us
    for node in list(state.nodes.values()):
        if node.contact is NodeContact.LOST:
            set_node_timer(state, node)
            continue
        why = "the scheduler has started anew and has not heard of it yet"
        put_node(
            state,
            node,
            replace(node, contact=NodeContact.UNKNOWN, since_us=event.at_us, session=0, why=why),
        )
    return None


def _cluster_suspected(state: ClusterState, event: ClusterSuspected) -> Touched:
    state.suspected = True
    return None


def _cluster_trusted(state: ClusterState, event: ClusterTrusted) -> Touched:
    state.suspected = False
    state.overruled = bool(event.by)
    state.trusted_us = event.at_us
    for node in state.nodes.values():
        set_node_timer(state, node)
    return None


# --- volatile


def _node_heard(state: ClusterState, event: NodeHeard) -> Touched:
    node = state.nodes[event.node]
    new = state.nodes[event.node] = replace(node, last_heard_us=max(node.last_heard_us, event.at_us))
    if new.contact is not NodeContact.CONNECTED:  # less patience with it than with one not heard of at all
        set_node_timer(state, new)
    return None


def _lane_parked(state: ClusterState, event: LaneParked) -> Touched:
    state.queue.park(state.jobs[event.job])
    return None


def _timers_passed(state: ClusterState, event: TimersPassed) -> Touched:
    settle_timers(state, event.at_us)
    return None


HANDLERS: Final[dict[type[Any], Callable[[ClusterState, Any], Touched]]] = {
    JobSubmitted: _job_submitted,
    AttemptStarted: _attempt_started,
    TaskStarted: _task_started,
    RankExited: _task_left,
    TaskEnded: _task_left,
    CheckpointAccepted: _checkpoint_accepted,
    CheckpointRestored: _checkpoint_restored,
    CheckpointFailed: _checkpoint_failed,
    CheckpointUploaded: _checkpoint_uploaded,
    CheckpointDamaged: _checkpoint_damaged,
    GangReformed: _gang_reformed,
    StartRefused: _task_left,
    TaskStalled: _task_stalled,
    RanksInspected: _ranks_inspected,
    SuspicionCleared: _suspicion_cleared,
    GangHung: _gang_hung,
    StragglerFound: _straggler_found,
    GrowthPlanned: _growth_planned,
    GrowthDropped: _growth_dropped,
    StopRequested: _stop_requested,
    PeerMemoryTold: _only_told,
    StopSeen: _only_told,
    CheckpointRequested: _checkpoint_requested,
    RestoreRequested: _restore_requested,
    AttemptEnded: _attempt_ended,
    FirstFailureFound: _task_left,
    LingererGone: _lingerer_gone,
    JobEnded: _job_ended,
    NodeJoined: _node_joined,
    NodeChanged: _node_changed,
    NodeConnected: _node_connected,
    NodeUnknown: _node_unknown,
    NodeLost: _node_lost,
    NodeRested: _node_rested,
    NodeDrained: _node_drained,
    NodeForgotten: _node_forgotten,
    SchedulerStarted: _scheduler_started,
    ClusterSuspected: _cluster_suspected,
    ClusterTrusted: _cluster_trusted,
    NodeHeard: _node_heard,
    MetricsReported: _metrics_reported,
    PacesReported: _paces_reported,
    LaneParked: _lane_parked,
    TimersPassed: _timers_passed,
}
