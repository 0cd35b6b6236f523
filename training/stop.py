"""Whether the job should stop, with one answer for all ranks at the same call.

A rank hears it from the notice byte that the shim sets, or from SIGTERM. Ranks hear at different moments, but
must leave their loop at the same step, or the rest wait in a collective for ever; so they agree over the
gang, about ten times a second, not at every call: the number of calls between two agreements is itself agreed
on.
"""

import mmap
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from .gang import Gang

AGREE_EVERY_S = 0.1
CALLS_MAX = 100


class StopNotice:
    """What this rank alone knows."""

    def __init__(self, task_folder: Path | None) -> None:
        self._path = task_folder / "notice" if task_folder else None
        self._byte: mmap.mmap | None = None
        self._terminated = False

    def move(self, task_folder: Path) -> None:
        """The rank has gone on to another task."""
        self._path, self._byte = task_folder / "notice", None

    def seen(self) -> bool:
        """True once the shim has set the notice or SIGTERM has come."""
        return self._terminated or self._noticed()

    def catch_sigterm(self) -> None:
        """From now on SIGTERM asks instead of killing; only where the script has no handler of its own."""
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        ):
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        self._terminated = True

    def _noticed(self) -> bool:
        if self._path is None:
            return False
        if self._byte is None:
            self._byte = _map_byte(self._path)
        return self._byte is not None and self._byte[0] != 0


class StopAgreement:
    """Turns what each rank knows into one answer. `should_stop` is collective once the gang is joined."""

    def __init__(self, gang: Gang, notice: StopNotice, *, catches_sigterm: bool) -> None:
        self._gang = gang
        self._notice = notice
        self._catches_sigterm = catches_sigterm
        self._stop = False
        self._calls_left = 0
        self._calls = 0
        self._since_s: float | None = None

    def should_stop(self) -> bool:
        """True from the same call on at every rank."""
        if self._catches_sigterm:
            self._catches_sigterm = False
            self._notice.catch_sigterm()
        if self._stop:
            return True
        if not self._gang.joined:
            self._stop = self._notice.seen()
            return self._stop
        self._calls += 1
        if self._calls_left > 0:
            self._calls_left -= 1
            return False
        return self._agree()

    def _agree(self) -> bool:
        stop, hurry = self._gang.largest(int(self._notice.seen()), CALLS_MAX - self._calls_wanted())
        self._stop = bool(stop)
        self._calls_left = CALLS_MAX - hurry - 1
        self._calls = 0
        self._since_s = time.monotonic()
        return self._stop

    def _calls_wanted(self) -> int:
        """How many calls make AGREE_EVERY_S at the pace since the last agreement; the slowest rank's number
        counts.
        """
        if self._since_s is None:
            return 1
        per_call_s = (time.monotonic() - self._since_s) / max(1, self._calls)
        return max(1, min(CALLS_MAX, int(AGREE_EVERY_S / max(per_call_s, 1e-6))))


def _map_byte(path: Path) -> mmap.mmap | None:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # not there yet, or still empty: asked again next time
        return None
