"""Events as lines of a timeline: one line for a person, and the event itself for a program."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from ...proto.generated import jobs_pb2
from ...spec.ids import NodeId
from ..core import events as e
from ..core.signals import how_it_exited
from ..store.base import EventRow

Names = Mapping[NodeId, str]


def entry_message(row: EventRow, event: e.Event, names: Names) -> jobs_pb2.TimelineEntry:
    """`row.body` is the event as JSON."""
    return jobs_pb2.TimelineEntry(
        seq=row.seq,
        at_us=row.at_us,
        attempt=attempt_of(event),
        kind=row.kind,
        text=line_of(event, names),
        body=row.body,
    )


def attempt_of(event: e.Event) -> int:
    """The attempt that the event speaks of; 0 where it is the job's own."""
    task = getattr(event, "task", None)
    return int(task.attempt) if task is not None else int(getattr(event, "attempt", 0))


def line_of(event: e.Event, names: Names) -> str:
    """What happened, in one line."""
    if isinstance(event, e.AttemptStarted):
        where = _listed([names.get(place.node, place.node) for place in event.places])
        return f"attempt {event.attempt} starts on {where}"
    line = _LINES.get(type(event))
    return line(event) if line is not None else type(event).__name__


def _submitted(event: e.JobSubmitted) -> str:
    demand = event.shape.demand
    by = f" by {event.user}" if event.user else ""
    return f"submitted{by}: {demand.instance_count} instances of {demand.processes_per_task} processes"


def _task_started(event: e.TaskStarted) -> str:
    return f"task {event.task.task} runs: {len(event.pids)} processes, {event.start_mode or 'started'}"


def _rank_exited(event: e.RankExited) -> str:
    why = " (stopped by us)" if event.killed_by_us else ""
    last = f": {event.last_line}" if event.last_line and event.exit_code else ""
    return f"rank {event.rank} {how_it_exited(event.exit_code)}{why}{last}"


def _task_ended(event: e.TaskEnded) -> str:
    return f"task {event.task.task} is over: {event.why}"


def _checkpoint_accepted(event: e.CheckpointAccepted) -> str:
    size_mb, stall_s = event.size_bytes / 1e6, event.stall_us / 1e6
    return f"checkpoint of step {event.step} accepted: {size_mb:.1f} MB, training stood {stall_s:.3f} s"


def _checkpoint_restored(event: e.CheckpointRestored) -> str:
    passed = f"; passed over: {'; '.join(event.rejected)}" if event.rejected else ""
    if event.step < 0:
        return f"no checkpoint was good: the run starts anew{passed}"
    return f"restored step {event.step} in {event.duration_us / 1e6:.3f} s{passed}"


def _start_refused(event: e.StartRefused) -> str:
    again = "; tried again" if event.transient else ""
    return f"task {event.task.task} could not start: {event.text}{again}"


def _stop_requested(event: e.StopRequested) -> str:
    return f"told to stop ({event.stop.outcome}) within {event.stop.grace_us / 1e6:g} s"


def _attempt_ended(event: e.AttemptEnded) -> str:
    ending = event.ending
    return f"attempt {event.attempt} ended ({ending.outcome}): {ending.text}; the job is {event.then}"


def _lingerer_gone(event: e.LingererGone) -> str:
    return f"task {event.task} is gone: {event.why}"


def _job_ended(event: e.JobEnded) -> str:
    return f"{event.state}: {event.ending.text}"


def _listed(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - 8} more nodes" if len(unique) > 8 else ""
    return ", ".join(unique[:8]) + more


_LINES: Final[dict[type, Callable[[Any], str]]] = {
    e.JobSubmitted: _submitted,
    e.TaskStarted: _task_started,
    e.RankExited: _rank_exited,
    e.TaskEnded: _task_ended,
    e.CheckpointAccepted: _checkpoint_accepted,
    e.CheckpointRestored: _checkpoint_restored,
    e.StartRefused: _start_refused,
    e.StopRequested: _stop_requested,
    e.AttemptEnded: _attempt_ended,
    e.LingererGone: _lingerer_gone,
    e.JobEnded: _job_ended,
}
