"""Journal entries as the core wants them: checked and bounded, in microseconds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from ...content.paths import HASH
from ...proto.codecs import task_key_of
from ...proto.generated import agent_pb2
from ...spec.errors import InvalidRequest
from ...spec.ids import Micros
from ..core import stimuli
from ..core.copies import DISK, MEMORY
from ..core.failure import NOTHING, Evidence
from ..core.hang import GroupLook, RankLook
from ..core.pace import RankPace

_SECOND_US: Final = 1_000_000
_VALUES_MAX: Final = 1000
_TEXT_MAX: Final = 500
_PATH_MAX: Final = 4096
_GROUPS_MAX: Final = 16
_RANKS_MAX: Final = 1024
_STACK_MAX: Final = 4096
_LONG_TEXT_MAX: Final = 4000


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a message came, on the scheduler's clock, and when it was sent, on the node's own."""

    at_us: Micros
    sent_monotonic_s: float = 0.0

    def time_of(self, monotonic_s: float) -> Micros:
        """When something was that the node saw at `monotonic_s`; too late by the message's way here."""
        ago_s = self.sent_monotonic_s - monotonic_s if self.sent_monotonic_s and monotonic_s else 0.0
        return Micros(max(0, self.at_us - _micros(ago_s)))


def entry_of(message: agent_pb2.JournalEntry, arrival: Arrival) -> stimuli.Entry:
    """Raises InvalidRequest on an entry that makes no sense."""
    task = task_key_of(message.task)
    kind = message.WhichOneof("kind")
    if message.seq < 1 or kind is None or kind not in ("exited", "checkpoint", *_READERS):
        raise InvalidRequest(f"entry {message.seq} of task {task}'s journal is of no known kind ({kind})")
    if kind == "checkpoint":
        staged_us = arrival.time_of(message.at_monotonic_s - message.checkpoint.persist_s)
        return stimuli.Entry(task, message.seq, _published(message.checkpoint, staged_us))
    if kind == "exited":
        seen_s = message.exited.evidence.at_monotonic_s or message.at_monotonic_s
        died_us = arrival.time_of(min(seen_s, message.at_monotonic_s))
        return stimuli.Entry(task, message.seq, _exited(message.exited, died_us))
    return stimuli.Entry(task, message.seq, _READERS[kind](getattr(message, kind)))


def _started(said: agent_pb2.TaskStarted) -> stimuli.Started:
    return stimuli.Started(
        tuple(said.pids),
        said.start_mode[:_TEXT_MAX],
        said.prepared[:_TEXT_MAX],
        said.record if HASH.fullmatch(said.record) else "",
        said.unrecorded[:_TEXT_MAX],
        said.network[:_TEXT_MAX],
    )


def _exited(said: agent_pb2.RankExited, died_us: Micros) -> stimuli.Exited:
    if said.local_rank < 0:
        raise InvalidRequest(f"{said.local_rank} is no local rank")
    return stimuli.Exited(
        said.local_rank,
        said.exit_code,
        said.last_line[:_TEXT_MAX],
        said.killed_by_us,
        said.cause[:_TEXT_MAX],
        _evidence(said.evidence) if said.HasField("evidence") else NOTHING,
        died_us,
        said.xid,
        said.xid_gpu,
    )


def _evidence(found: agent_pb2.Evidence) -> Evidence:
    return Evidence(
        error_type=found.error_type[:_TEXT_MAX],
        message=found.message[: 2 * _TEXT_MAX],
        traceback=found.traceback[-_LONG_TEXT_MAX:],
        last_lines=found.last_lines[-_LONG_TEXT_MAX:],
        recorded=found.recorded,
    )


def _ended(said: agent_pb2.TaskEnded) -> stimuli.Ended:
    return stimuli.Ended(tuple(said.exit_codes), tuple(said.log_bytes), said.why[:_TEXT_MAX])


def _metrics(said: agent_pb2.MetricsReported) -> stimuli.Metrics:
    values = _values(said.values)
    names = dict.fromkeys([*(name for name in said.order if name in values), *values])
    return stimuli.Metrics(said.rank, said.step, {name: values[name] for name in names})


def _published(said: agent_pb2.CheckpointPublished, staged_us: Micros) -> stimuli.Published:
    return stimuli.Published(
        step=said.step,
        path=said.path[:_PATH_MAX],
        manifest_hash=said.manifest_hash[:_TEXT_MAX],
        size_bytes=said.size_bytes,
        stall_us=_micros(said.stall_s),
        metrics=_values(said.metrics),
        removed_steps=tuple(said.removed_steps),
        persist_us=_micros(said.persist_s),
        staged_us=staged_us,
        why=said.why[:_TEXT_MAX],
        request=said.request,
        waited_us=_micros(said.waited_s),
        image=said.image if said.image in (MEMORY, DISK) else "",
    )


def _restored(said: agent_pb2.CheckpointRestored) -> stimuli.Restored:
    rejected = tuple(text[:_TEXT_MAX] for text in said.rejected[:100])
    return stimuli.Restored(
        said.step, said.path[:_PATH_MAX], _micros(said.seconds), rejected, said.tier[:_TEXT_MAX]
    )


def _save_failed(said: agent_pb2.CheckpointFailed) -> stimuli.SaveFailed:
    return stimuli.SaveFailed(said.step, said.why[:_TEXT_MAX], said.request)


def _saw_stop(said: agent_pb2.StopSeen) -> stimuli.SawStop:
    return stimuli.SawStop(said.step, _micros(said.left_s))


def _uploaded(said: agent_pb2.CheckpointUploaded) -> stimuli.Uploaded:
    return stimuli.Uploaded(
        said.step, said.path[:_PATH_MAX], said.url[:_PATH_MAX], _micros(said.seconds), said.why[:_TEXT_MAX]
    )


def _damaged(said: agent_pb2.CheckpointDamaged) -> stimuli.Damaged:
    return stimuli.Damaged(said.step, said.path[:_PATH_MAX], said.copy[:_TEXT_MAX], said.why[:_TEXT_MAX])


def _peer_memory(said: agent_pb2.PeerMemoryTold) -> stimuli.PeerMemory:
    return stimuli.PeerMemory(
        said.rank,
        said.node[:_TEXT_MAX],
        said.step,
        max(0, said.size_bytes),
        _micros(said.seconds),
        said.why[:_TEXT_MAX],
    )


def _reformed(said: agent_pb2.GangReformed) -> stimuli.Reformed:
    replaced = tuple(said.replaced[:_RANKS_MAX])
    return stimuli.Reformed(replaced, said.world_size, said.step, _micros(said.seconds))


def _waiting(said: agent_pb2.RanksWaiting) -> stimuli.Waiting:
    return stimuli.Waiting(said.ranks)


def _serves(said: agent_pb2.TaskServing) -> stimuli.Serves:
    url = urlsplit(said.url)
    if len(said.url) > _TEXT_MAX or url.scheme != "http" or not url.hostname or not said.url.isprintable():
        raise InvalidRequest(f"{said.url[:80]!r} is no place where a task answers; expected http://HOST:PORT")
    return stimuli.Serves(said.url)


def _refused(said: agent_pb2.StartRefused) -> stimuli.Refused:
    reason = said.reason
    text, hint = reason.text[: 4 * _TEXT_MAX], reason.hint[:_TEXT_MAX]
    return stimuli.Refused(reason.code[:100], text, said.transient, hint)


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
        tuple(
            GroupLook(one.group[:100], one.last, one.last_name[:100], one.waiting, one.waiting_name[:100])
            for one in said.groups[:_GROUPS_MAX]
        ),
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
    "ended": _ended,
    "metrics": _metrics,
    "restored": _restored,
    "refused": _refused,
    "checkpoint_failed": _save_failed,
    "uploaded": _uploaded,
    "damaged": _damaged,
    "stop_seen": _saw_stop,
    "reformed": _reformed,
    "serving": _serves,
    "waiting": _waiting,
    "peer_memory": _peer_memory,
    "stalled": _stalled,
    "inspected": _inspected,
    "paced": _paced,
}
