"""The story of a job or node: one line of text for each event."""

from collections.abc import Mapping
from typing import Final

from ...spec.ids import NodeId
from ...spec.lifecycle import AttemptOutcome, JobState
from ...spec.slices import index_text
from .amounts import demand_text, duration_text, others_of, ranks_text, size_text
from .attempt_events import (
    AttemptEnded,
    AttemptStarted,
    ClaimDropped,
    FirstFailureFound,
    GrowthDropped,
    GrowthPlanned,
    JobEnded,
    JobSubmitted,
    LingererGone,
    Place,
    PlacesClaimed,
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
from .ending import COUNTED
from .events import Event, node_of
from .gpus import sick_text
from .hang import RankLook, place_of, silence_text, step_of
from .hold_events import JobHeld, JobReleased, PriorityChanged
from .job import NEVER, Stop
from .node_events import (
    ClusterSuspected,
    ClusterTrusted,
    NodeChanged,
    NodeConnected,
    NodeCordoned,
    NodeDrained,
    NodeForgotten,
    NodeJoined,
    NodeLost,
    NodeRested,
    NodeUncordoned,
    NodeUnknown,
    SchedulerStarted,
)
from .policy_events import AccountsClosed, PolicyChanged
from .progress_events import GangHung, RanksInspected, StragglerFound, SuspicionCleared, TaskStalled
from .signals import how_it_exited
from .task_events import (
    GangReformed,
    RankExited,
    RanksWaiting,
    StartRefused,
    StopSeen,
    TaskEnded,
    TaskServes,
    TaskStarted,
)

Names = Mapping[NodeId, str]
NO_NAMES: Names = {}
_WAIT_WORTH_SAYING_US: Final = 10_000
STOPS = {AttemptOutcome.TIMED_OUT: "timeout", AttemptOutcome.PREEMPTED: "preemption"}


def attempt_of(event: Event) -> int:
    """The attempt that an event belongs to; 0: none."""
    task = getattr(event, "task", None)
    return int(task.attempt if task is not None else getattr(event, "attempt", 0))


def describe(event: Event, names: Names = NO_NAMES) -> str:
    """One line for a person; `names` says how nodes are called."""
    text = _job_text(event, names) or _task_text(event) or _node_text(event, names)
    return " ".join(text.split())


def _job_text(event: Event, names: Names) -> str:
    match event:
        case JobSubmitted():
            who = f" by {event.user}" if event.user else ""
            parent = event.parent
            fork = f", a fork of job {parent.job} from its step {parent.step}" if parent is not None else ""
            return f"submitted{who}: {demand_text(event.shape.demand)}{fork}"
        case AttemptStarted():
            more = (f"; {event.size}" if event.size else "") + _loan_text(event)
            return f"attempt {event.attempt} placed on {_places_text(event.places, names)}{more}"
        case AttemptEnded():
            return _attempt_ended_text(event)
        case JobEnded():
            return f"{event.state}: {event.ending.text}"
        case SuspicionCleared():
            return f"no hang: {event.why}"
        case StragglerFound():
            return event.text
        case GangHung():
            return f"the gang hangs: {event.text}"
        case FirstFailureFound():
            kind = event.ending.code
            return f"what failed first in attempt {event.attempt} was another ({kind}): {event.ending.text}"
        case LingererGone():
            return f"task {event.task} on {names.get(event.node, event.node)} is gone: {event.why}"
    return _wish_text(event, names)


def _loan_text(event: AttemptStarted) -> str:
    if event.loan is None:
        return ""
    left = duration_text(event.loan.until_us - event.at_us)
    return f"; on nodes that are kept for job {event.loan.job}, which is expected to have them in {left}"


def _wish_text(event: Event, names: Names) -> str:
    """What is to become of a job that runs."""
    match event:
        case GrowthPlanned():
            gain = f", {event.gain}" if event.gain else ""
            return (
                f"room for {event.to} instances (has {event.instances}{gain}): grows at its next checkpoint"
            )
        case GrowthDropped():
            return f"does not grow at this checkpoint: {event.why}"
        case PlacesClaimed():
            nodes = ", ".join(dict.fromkeys(names.get(node, node) for node in event.nodes))
            told = ", ".join(f"job {number}" for number in event.victims)
            leave = "move elsewhere" if event.moves else "leave"
            return f"{nodes} kept for it" + (f": {told} told to save and {leave}" if told else "")
        case ClaimDropped():
            return f"stands in line again: {event.why}"
        case StopRequested():
            stop = event.stop
            return f"{_stop_text(stop)}: the tasks have {duration_text(stop.grace_us)} to end"
        case CheckpointRequested():
            return f"a checkpoint is asked for{f' by {event.by}' if event.by else ''}"
        case RestoreRequested():
            by = f" by {event.by}" if event.by else ""
            return f"sent back{by} to the checkpoint of step {event.step}: later ones do not count any more"
        case JobHeld():
            return f"held by {event.by} until it is released{f': {event.why}' if event.why else ''}"
        case JobReleased():
            return f"released by {event.by}"
        case PriorityChanged():
            return f"given priority {event.priority} by {event.by}"
    return ""


def _stop_text(stop: Stop) -> str:
    if stop.outcome is AttemptOutcome.RESIZED:
        return stop.why
    by = f" by {stop.by}" if stop.by else ""
    why = f" ({stop.why})" if stop.why else ""
    return f"{STOPS.get(stop.outcome, 'cancel')}{by}{why}"


def _attempt_ended_text(event: AttemptEnded) -> str:
    ending = event.ending
    lost = f"; lost: {event.lost}" if event.lost else ""
    if event.then is not JobState.QUEUED:
        return f"{event.then}: {ending.text}{lost}"
    counts = "uses a retry" if ending.outcome in COUNTED else "uses no retry"
    waits = "; the next one waits until its tasks are gone" if event.lingering else ""
    kind = ending.failure.kind if ending.failure is not None else ending.outcome
    if event.held_until_us > event.at_us:
        waits += f"; the next one waits {duration_text(event.held_until_us - event.at_us)}"
    return f"attempt {event.attempt} ended ({kind}, {counts}): {ending.text}{lost}{waits}"


def _places_text(places: tuple[Place, ...], names: Names) -> str:
    """`n1 (tasks 0-1, GPUs 0,1,2,3), n2 (task 2)`; of a large gang the first eight nodes."""
    by_node: dict[NodeId, list[int]] = {}
    for task, place in enumerate(places):
        by_node.setdefault(place.node, []).append(task)
    parts = []
    for node, tasks in list(by_node.items())[:8]:
        gpus = [index for task in tasks for index in places[task].gpu_indices]
        span = f"task {tasks[0]}" if len(tasks) == 1 else f"tasks {tasks[0]}-{tasks[-1]}"
        with_gpus = f", GPUs {','.join(map(index_text, gpus))}" if gpus else ""
        parts.append(f"{names.get(node, node)} ({span}{with_gpus})")
    more = f" and {len(by_node) - 8} more nodes" if len(by_node) > 8 else ""
    return ", ".join(parts) + more


def _task_text(event: Event) -> str:
    match event:
        case TaskStarted():
            mode = f", {event.start_mode}" if event.start_mode else ""
            prepared = f"; prepared {event.prepared}" if event.prepared else ""
            network = f"; other nodes over {event.network}" if event.network else ""
            why = f"; what it runs with is not recorded: {event.unrecorded}" if event.unrecorded else ""
            return (
                f"task {event.task.task} started with {len(event.pids)} ranks{mode}{network}{prepared}{why}"
            )
        case RankExited():
            by_us = " (we killed it)" if event.killed_by_us else ""
            last = f": {event.last_line}" if event.last_line and event.exit_code else ""
            return f"rank {event.rank} {how_it_exited(event.exit_code, event.cause)}{by_us}{last}"
        case TaskEnded():
            codes = ", ".join(map(str, event.exit_codes))
            return f"task {event.task.task} ended ({event.why}), exit codes {codes or 'unknown'}"
        case StopSeen():
            at = f" after step {event.step}" if event.step >= 0 else ""
            return f"the script has seen the notice{at}, with {duration_text(event.left_us)} left"
        case TaskServes():
            return f"task {event.task.task} answers at {event.url}"
        case RanksWaiting():
            return f"task {event.task.task}: {event.ranks} ranks left the gang and wait for the next attempt"
        case GangReformed():
            return _reformed_text(event)
        case TaskStalled():
            return _stalled_text(event)
        case RanksInspected():
            return _inspected_text(event)
        case StartRefused():
            kind = "for now" if event.transient else "for good"
            return f"start of task {event.task.task} refused {kind} ({event.code}): {event.text}"
    return _checkpoint_text(event)


def _checkpoint_text(event: Event) -> str:
    match event:
        case CheckpointAccepted():
            size = f", {size_text(event.size_bytes)}" if event.size_bytes else ""
            disk = f", on disk after {duration_text(event.persist_us)}" if event.persist_us else ""
            why = f"; {event.why}" if event.why else ""
            stall = duration_text(event.stall_us)
            if event.waited_us >= _WAIT_WORTH_SAYING_US:
                stall += f" ({duration_text(event.waited_us)} of it until the one before was on disk)"
            faster = f"; {event.faster}" if event.faster else ""
            return f"checkpoint of step {event.step} accepted{size}, stalled {stall}{disk}{why}{faster}"
        case CheckpointRestored():
            return _restored_text(event)
        case CheckpointFailed():
            return f"checkpoint of step {event.step} could not be written: {event.why}"
        case CheckpointUploaded():
            if event.why:
                return f"checkpoint of step {event.step} could not be uploaded to {event.url}: {event.why}"
            took = duration_text(event.duration_us)
            return f"checkpoint of step {event.step} uploaded to {event.url} in {took}"
        case PeerMemoryTold():
            return _peer_memory_text(event)
        case CheckpointDamaged():
            return _damaged_text(event)
    return ""


def _damaged_text(event: CheckpointDamaged) -> str:
    good = (
        f"step {event.newest_good} is the newest good one"
        if event.newest_good >= 0
        else "no checkpoint is good"
    )
    return f"checkpoint of step {event.step} is damaged in {event.copy}: {event.why}; {good}"


def _peer_memory_text(event: PeerMemoryTold) -> str:
    where, part = f"in the memory of {event.peer}", f"rank {event.rank}'s part of checkpoints"
    if event.why:
        return f"{part} is not kept {where}: {event.why}"
    took = duration_text(event.duration_us)
    return f"{part} is kept {where}, too: that of step {event.step}, {size_text(event.size_bytes)}, in {took}"


def _reformed_text(event: GangReformed) -> str:
    stayed = ranks_text(others_of(event.replaced, event.world_size))
    new = ranks_text([(rank, rank) for rank in event.replaced]) if event.replaced else "no rank"
    took = duration_text(event.duration_us)
    return (
        f"{stayed} of {event.world_size} stayed up, {new} new, in {took}; "
        f"goes on after step {event.step}, no step repeated"
    )


def _stalled_text(event: TaskStalled) -> str:
    still, longest = duration_text(event.at_us - event.since_us), duration_text(event.longest_us)
    idle = ", and no CPU used," if event.idle else ""
    pauses = f", longest pause so far {longest}" if event.step >= 0 else ""
    return (
        f"task {event.task.task}: {silence_text(event.step, still, idle)} (limit "
        f"{duration_text(event.limit_us)}{pauses}); looking where all ranks are"
    )


def _inspected_text(event: RanksInspected) -> str:
    """Of many ranks, the first eight."""
    places = [f"rank {look.rank} {_at_step(look)} {place_of(look)}" for look in event.ranks[:8]]
    more = f"; and {len(event.ranks) - 8} more" if len(event.ranks) > 8 else ""
    traces = [look.trace for look in event.ranks if look.trace]
    recorded = f"; flight recorder: {traces[0]}" + (" and others" if traces[1:] else "") if traces else ""
    return f"task {event.task.task}: {'; '.join(places) or 'no rank lives'}{more}{recorded}"


def _at_step(look: RankLook) -> str:
    return f"at step {step_of(look)}" if look.steps or look.reports else "before its first step"


def _restored_text(event: CheckpointRestored) -> str:
    rejected = f"; not good: {'; '.join(event.rejected)}" if event.rejected else ""
    if event.step < 0:
        return f"no checkpoint to go on from, starts anew{rejected}"
    took = duration_text(event.duration_us)
    source = f" from {event.tier}" if event.tier else ""
    return f"goes on from the checkpoint of step {event.step}, read{source} in {took}{rejected}"


def _node_text(event: Event, names: Names) -> str:
    node = node_of(event)
    name = names.get(node, node) if node is not None else ""
    match event:
        case NodeJoined():
            return f"node {event.inventory.name or name} joined"
        case NodeChanged():
            sick = event.inventory.sick
            bad = f": {sick_text(event.inventory, name, sick, NEVER)}" if sick else ""
            return f"the inventory of node {name} changed{bad}"
        case NodeConnected():
            return f"node {name} is connected"
        case NodeUnknown():
            return f"contact with node {name} is lost: {event.why}"
        case NodeLost():
            return (
                f"node {name} is given up after {duration_text(event.at_us - event.last_heard_us)} of silence"
            )
        case NodeRested():
            if not event.refusals:
                return f"node {name} starts tasks again"
            rest = duration_text(event.until_us - event.at_us)
            return f"node {name} gets no work for {rest}, it refused {event.refusals} in a row: {event.why}"
        case NodeDrained():
            return f"node {name} is drained for {duration_text(event.until_us - event.at_us)}: {event.why}"
        case NodeCordoned():
            why = f": {event.why}" if event.why else ""
            return f"node {name} is {'drained' if event.drains else 'cordoned'} by {event.by}{why}"
        case NodeUncordoned():
            return f"node {name} is put back into service by {event.by}"
        case NodeForgotten():
            return f"node {name} is forgotten"
    return _cluster_text(event)


def _cluster_text(event: Event) -> str:
    match event:
        case SchedulerStarted():
            return "the scheduler started"
        case ClusterSuspected():
            return f"{event.silent} of {event.known} nodes are silent at once: none is replaced"
        case ClusterTrusted():
            return f"silence counts again: {event.by or 'contact has returned'}"
        case AccountsClosed(paths=paths):
            accounts = "1 account" if len(paths) == 1 else f"{len(paths)} accounts"
            return f"{accounts} of usage closed: next to nothing is left of what was used"
        case PolicyChanged():
            return f"policy changed by {event.by}: {'; '.join(event.changes)}"
    return type(event).__name__
