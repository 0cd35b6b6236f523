"""Journal entries as the core wants them: checked and bounded, in microseconds."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from ...proto.codecs import task_key_of
from ...proto.generated import agent_pb2
from ...spec.errors import InvalidRequest
from ..core import stimuli
from ..core.hang import RankLook
from ..core.pace import RankPace

_SECOND_US: Final = 1_000_000
_VALUES_MAX: Final = 1000
_TEXT_MAX: Final = 500
_PATH_MAX: Final = 4096
_RANKS_MAX: Final = 1024
_STACK_MAX: Final = 4096


def entry_of(message: agent_pb2.JournalEntry) -> stimuli.Entry:
    """Raises InvalidRequest on an entry that makes no sense."""
    task = task_key_of(message.task)
    kind = message.WhichOneof("kind")
    if message.seq < 1 or kind is None or kind not in _READERS:
        raise InvalidRequest(f"entry {message.seq} of task {task}'s journal is of no known kind ({kind})")
    return stimuli.Entry(task, message.seq, _READERS[kind](getattr(message, kind)))


def _started(said: agent_pb2.TaskStarted) -> stimuli.Started:
    return stimuli.Started(tuple(said.pids), said.start_mode[:_TEXT_MAX])


def _exited(said: agent_pb2.RankExited) -> stimuli.Exited:
    return stimuli.Exited(
        said.local_rank,
        said.exit_code,
        said.last_line[:_TEXT_MAX],
        said.killed_by_us,
        said.cause[:_TEXT_MAX],
    )


def _ended(said: agent_pb2.TaskEnded) -> stimuli.Ended:
    return stimuli.Ended(tuple(said.exit_codes), tuple(said.log_bytes), said.why[:_TEXT_MAX])


def _metrics(said: agent_pb2.MetricsReported) -> stimuli.Metrics:
    return stimuli.Metrics(said.rank, said.step, _values(said.values))


def _published(said: agent_pb2.CheckpointPublished) -> stimuli.Published:
    return stimuli.Published(
        step=said.step,
        path=said.path[:_PATH_MAX],
        manifest_hash=said.manifest_hash[:_TEXT_MAX],
        size_bytes=said.size_bytes,
        stall_us=_micros(said.stall_s),
        metrics=_values(said.metrics),
        removed_steps=tuple(said.removed_steps),
    )


def _restored(said: agent_pb2.CheckpointRestored) -> stimuli.Restored:
    rejected = tuple(text[:_TEXT_MAX] for text in said.rejected[:100])
    return stimuli.Restored(said.step, said.path[:_PATH_MAX], _micros(said.seconds), rejected)


def _save_failed(said: agent_pb2.CheckpointFailed) -> stimuli.SaveFailed:
    return stimuli.SaveFailed(said.step, said.why[:_TEXT_MAX])


def _refused(said: agent_pb2.StartRefused) -> stimuli.Refused:
    return stimuli.Refused(said.reason.code[:100], said.reason.text[: 4 * _TEXT_MAX], said.transient)


def _stalled(said: agent_pb2.TaskStalled) -> stimuli.Stalled:
    return stimuli.Stalled(
        _micros(said.still_s), _micros(said.limit_s), _micros(said.longest_s), said.step, said.idle
    )


def _inspected(said: agent_pb2.RanksInspected) -> stimuli.Inspected:
    return stimuli.Inspected(said.begun, said.stalled, tuple(map(_look, said.ranks[:_RANKS_MAX])))


def _look(said: agent_pb2.RankInspected) -> RankLook:
    return RankLook(
        said.rank,
        said.steps,
        said.reports,
        said.step,
        _micros(said.still_s),
        said.state[:100],
        said.how[:100],
        said.stack[:_STACK_MAX],
        said.trace[:_PATH_MAX],
    )


def _paced(said: agent_pb2.RanksPaced) -> stimuli.Paced:
    return stimuli.Paced(tuple(map(_pace, said.ranks[:_RANKS_MAX])))


def _pace(said: agent_pb2.RankPaced) -> RankPace:
    shares = (said.compute_share, said.peers_share, said.data_share)
    if not all(0 <= share <= 1 for share in shares):
        shares = (0.0, 0.0, 0.0)
    return RankPace(said.rank, _micros(said.step_s), *shares)


def _micros(seconds: float) -> int:
    return round(seconds * _SECOND_US) if math.isfinite(seconds) and 0 <= seconds < 1e9 else 0


def _values(values: Mapping[str, float]) -> dict[str, float]:
    return {name[:200]: value for name, value in sorted(values.items())[:_VALUES_MAX]}


_READERS: Final[dict[str, Callable[[Any], stimuli.Said]]] = {
    "started": _started,
    "exited": _exited,
    "ended": _ended,
    "metrics": _metrics,
    "checkpoint": _published,
    "restored": _restored,
    "refused": _refused,
    "checkpoint_failed": _save_failed,
    "stalled": _stalled,
    "inspected": _inspected,
    "paced": _paced,
}
