"""How far each task's journal has been sent and stored, and which entries go up next.

Nothing is kept here but positions: entries are read from the journals. What is unacknowledged is bounded, in
entries; a batch is bounded, in entries and bytes; tasks take turns.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..proto.codecs import task_key_message
from ..proto.generated import agent_pb2
from ..proto.limits import REPORTS_BYTES_MAX, REPORTS_MAX
from ..spec.ids import TaskKey

ENTRIES_UNACKNOWLEDGED: Final = 8 * REPORTS_MAX


@dataclass(slots=True)
class Position:
    """How far one task's journal has come on its way."""

    sent: int = 0
    stored: int = 0
    superseded: bool = False
    """What is acknowledged of it does not count any more: it was told to stop or to be forgotten, and may
    have a successor by now, so that the scheduler perhaps only takes note of what it still says."""

    def on_stored(self, seq: int) -> bool:
        """The scheduler has committed entries up to there. False: it had said so before."""
        if seq <= self.stored:
            return False
        self.stored = seq
        self.sent = max(self.sent, seq)
        return True


class Reports:
    """Of one stream at a time."""

    def __init__(self, entries: Callable[[TaskKey, int, int], list[agent_pb2.JournalEntry]]) -> None:
        """`entries(key, after_seq, limit)` as agent.supervisor.Supervisor has it."""
        self._entries = entries
        self._positions: dict[TaskKey, Position] = {}
        self._grown: OrderedDict[TaskKey, None] = OrderedDict()

    def start_over(self) -> set[TaskKey]:
        """A new stream, whose scheduler says anew where to go on; the superseded among those forgotten."""
        superseded = {key for key, each in self._positions.items() if each.superseded}
        self._positions.clear()
        self._grown.clear()
        return superseded

    def track(self, key: TaskKey, seq: int, *, superseded: bool) -> None:
        """Go on from there with this task."""
        self._positions[key] = Position(seq, seq, superseded)

    def position(self, key: TaskKey) -> Position | None:
        """None: this stream's scheduler does not know of it."""
        return self._positions.get(key)

    def drop(self, key: TaskKey) -> None:
        """No more of this task."""
        self._positions.pop(key, None)

    def grew(self, key: TaskKey) -> None:
        """Its journal has more."""
        self._grown[key] = None

    @property
    def waiting(self) -> bool:
        return bool(self._grown)

    def next_batch(self) -> list[agent_pb2.JournalEntry]:
        """Some of each task that has grown, within the batch's bounds and the window."""
        batch: list[agent_pb2.JournalEntry] = []
        bytes_left = REPORTS_BYTES_MAX - (16 << 10)
        flying = sum(each.sent - each.stored for each in self._positions.values())
        room = min(REPORTS_MAX, ENTRIES_UNACKNOWLEDGED - flying)
        for key in list(self._grown):
            if room <= len(batch):
                break
            position = self._positions.get(key)
            if position is None:
                del self._grown[key]
                continue
            asked = room - len(batch)
            entries = self._entries(key, position.sent, asked)
            for entry in entries:
                size = entry.ByteSize() + 8
                if size > bytes_left and batch:
                    return batch
                bytes_left -= size
                entry.task.CopyFrom(task_key_message(key))
                batch.append(entry)
                position.sent = entry.seq
            if len(entries) < asked:
                del self._grown[key]
            else:
                self._grown.move_to_end(key)
        return batch
