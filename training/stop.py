"""Whether the job should stop, with one answer for all ranks at the same call.

A rank hears it from the notice that the shim writes, or from SIGTERM, which outside Paceline is all there is.
Ranks hear at different moments, but must leave their loop at the same step, or the rest wait in a collective
for ever; so they agree over the gang, about ten times a second, not at every call: the number of calls
between two agreements is itself agreed on.
"""

import mmap
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType

from ..proto.notice import SIZE, Notice, decode
from .gang import Gang

NOTHING, STAY, STOP = range(3)
"""What the ranks are asked: the greater counts. STAY: leave the gang, and stay up for the next attempt."""
AGREE_EVERY_S = 0.1
CALLS_MAX = 100
AGAIN_S = 2.0
"""A SIGTERM sooner after the first is the same one: systemd and Slurm send it to every process, and torchrun
hands its own on."""


class StopNotice:
    """What this rank alone knows."""

    def __init__(self, task_folder: Path | None) -> None:
        self._path = task_folder / "notice" if task_folder else None
        self._map: mmap.mmap | None = None
        self._terminated_s: float | None = None
        """When SIGTERM came."""

    def move(self, task_folder: Path) -> None:
        """The rank has gone on to another task."""
        self._path, self._map = task_folder / "notice", None

    def seen(self) -> bool:
        """True once the shim has set the notice or SIGTERM has come."""
        return self._terminated_s is not None or self._read().stop

    def asks(self) -> int:
        """STAY is no stop to those who have had SIGTERM."""
        if not self.seen():
            return NOTHING
        return STAY if self._terminated_s is None and self._read().stay else STOP

    def left_s(self) -> float | None:
        """Until this rank is killed; None: no stop was asked, or nobody said when."""
        told = self._read()
        if not told.stop or not told.kill_at_s:
            return None
        return max(0.0, told.kill_at_s - time.monotonic())

    def save_request(self) -> int:
        """The number of the last checkpoint that was asked for; 0: none."""
        return self._read().save_request

    def catch_sigterm(self) -> None:
        """From now on SIGTERM asks instead of killing; only where the script has no handler of its own, and
        only in the main thread. Outside Paceline, where nobody sets a deadline, a second one kills."""
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        ):
            signal.signal(signal.SIGTERM, self._on_sigterm)
            _let_forks_die_of_it()

    def _on_sigterm(self, number: int, _frame: FrameType | None) -> None:
        now_s = time.monotonic()
        self._terminated_s = self._terminated_s or now_s
        if self._path is None and now_s - self._terminated_s >= AGAIN_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _read(self) -> Notice:
        if self._path is None:
            return Notice()
        if self._map is None:
            self._map = _map_notice(self._path)
        return Notice() if self._map is None else decode(self._map[:SIZE])


_forking = threading.local()


@cache
def _let_forks_die_of_it() -> None:
    """In a forked child nobody asks. What comes while it is made waits: the interpreter drops signals that it
    has noted there, and Process.terminate() would be waited for in vain."""
    os.register_at_fork(before=_hold_sigterm, after_in_parent=_release_sigterm, after_in_child=_in_child)


def _hold_sigterm() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _in_child() -> None:
    if getattr(signal.getsignal(signal.SIGTERM), "__func__", None) is StopNotice._on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _release_sigterm()


class StopAgreement:
    """Turns what each rank knows into one answer. `should_stop` and `look` are collective once the gang is
    joined. `on_stop` is called once, when the ranks have agreed to stop."""

    def __init__(
        self,
        gang: Gang,
        notice: StopNotice,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._gang = gang
        self._notice = notice
        self._asked_before = False
        self._on_stop = on_stop
        self._asked = NOTHING
        """Agreed on."""
        self.save_request = 0
        """The newest that the ranks agreed on."""
        self._looked = False
        self._calls_left = 0
        self._calls = 0
        self._since_s: float | None = None

    @property
    def stop(self) -> bool:
        """Agreed on."""
        return self._asked == STOP

    @property
    def stay(self) -> bool:
        """Agreed on. Only ranks that have told the shim that they can are asked to."""
        return self._asked == STAY

    def should_stop(self) -> bool:
        """True from the same call on at every rank. Where `look` is called, the agreement is made there: it
        must come first, so that no rank leaves before it was asked to save."""
        if not self._looked:
            self._ask(due=False)
        return self.stop

    def look(self, due: bool) -> bool:
        """Agree as `should_stop` does; True at all ranks when any found it `due` at a call at which they
        agreed."""
        self._looked = True
        return self._ask(due)

    def _ask(self, due: bool) -> bool:
        if not self._asked_before:
            self._asked_before = True
            self._notice.catch_sigterm()
        if self.stop:
            return False
        if not self._gang.joined:
            self._settle(self._notice.asks(), self._notice.save_request())
            return due
        self._calls += 1
        if self._calls_left > 0:
            self._calls_left -= 1
            return False
        return self._agree(due)

    def _agree(self, due: bool) -> bool:
        asked, request, any_due, hurry = self._gang.largest(
            self._notice.asks(),
            self._notice.save_request(),
            int(due),
            CALLS_MAX - self._calls_wanted(),
        )
        self._settle(asked, request)
        self._calls_left = CALLS_MAX - hurry - 1
        self._calls = 0
        self._since_s = time.monotonic()
        return bool(any_due)

    def _settle(self, asked: int, request: int) -> None:
        self.save_request = max(self.save_request, request)
        self._asked = max(self._asked, asked)
        if self.stop:
            self._on_stop()

    def _calls_wanted(self) -> int:
        """How many calls make AGREE_EVERY_S at the pace since the last agreement; the slowest rank's number
        counts.
        """
        if self._since_s is None:
            return 1
        per_call_s = (time.monotonic() - self._since_s) / max(1, self._calls)
        return max(1, min(CALLS_MAX, int(AGREE_EVERY_S / max(per_call_s, 1e-6))))


def _map_notice(path: Path) -> mmap.mmap | None:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # not there yet, or still empty: asked again next time
        return None
