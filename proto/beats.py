"""A rank's heartbeat: a slot in a small file in the task's folder, which the ranks map and the shim reads.

A beat is four stores into memory: no system call, no lock, nothing that can fail or wait. The ranks write,
nobody else does; whoever reads must take what stands there for what the job's own code may have written.
Standard library only: ranks, shim and whatever runs in the job's interpreter use it.
"""

import contextlib
import faulthandler
import mmap
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Final, NamedTuple

NAME: Final = "beats"
RANKS_MAX: Final = 1024
STACK_SIGNAL: Final = signal.SIGRTMIN + 20
"""At which a rank writes the stacks of its threads to its stderr. Sent only to a process that catches it."""

TRAINS, SAVES, RESTORES = 0, 1, 2
"""Phases: in the latter two, no step is expected."""

_PID, _STEPS, _REPORTS, _STEP, _AT, _LONGEST, _PHASE, _FETCHING = range(8)
_FIELDS: Final = 8
SLOT_BYTES: Final = 8 * _FIELDS
"""Doubles, a cache line of them."""


class Beats(NamedTuple):
    """What stands in one slot. Times are of the node's monotonic clock."""

    slot: int
    """The local rank."""
    pid: int
    steps: int
    """Steps of optimizers, as torch counts them: every rank makes as many."""
    reports: int
    """Calls of `run.report`: maybe of one rank only."""
    step: int
    """The number last reported; -1: none."""
    at_s: float
    longest_s: float
    """Between two beats, so far."""
    phase: int
    fetching_s: float
    """What its main thread has waited for data loaders, so far."""

    @property
    def begun(self) -> bool:
        """It has made a step: from then on, silence says something."""
        return self.steps + self.reports > 0


class Beat:
    """This process's slot. It is made at the first beat, since most processes of this world never train: in
    them, nothing is other than it would be without us."""

    def __init__(self) -> None:
        self._slot: memoryview[float] | None = None
        self._closed = False
        self.on_open: Callable[[], None] | None = None
        """What else is to be done where there is a slot."""

    def stepped(self) -> None:
        """An optimizer has made a step."""
        slot = self._slot
        if slot is None:
            slot = self._open()
            if slot is None:
                return
        now = monotonic()
        gap = now - slot[_AT]
        slot[_LONGEST] = max(slot[_LONGEST], gap)
        slot[_AT] = now
        slot[_STEPS] += 1

    def reported(self, step: int) -> None:
        """The script has said where it stands."""
        slot = self._slot or self._open()
        if slot is None:
            return
        now = monotonic()
        slot[_LONGEST] = max(slot[_LONGEST], now - slot[_AT])
        slot[_AT] = now
        slot[_STEP] = step
        slot[_REPORTS] += 1

    def fetched(self, seconds: float) -> None:
        """A data loader has given a batch, for which so long was waited."""
        slot = self._slot
        if slot is not None:
            slot[_FETCHING] += seconds

    @contextlib.contextmanager
    def phase(self, phase: int) -> Iterator[None]:
        """In it, no step is expected; how long it took says nothing about steps."""
        slot = self._slot or self._open()
        if slot is None:
            yield
            return
        slot[_PHASE], slot[_AT] = phase, monotonic()
        try:
            yield
        finally:
            slot[_PHASE], slot[_AT] = TRAINS, monotonic()

    @contextlib.contextmanager
    def meeting(self) -> Iterator[None]:
        """Within a phase: this rank is through with its own part, and waits for its peers as in any step.
        Whether they take long is for them to show; one that never comes must not be taken for a long save."""
        slot = self._slot
        phase = TRAINS if slot is None else slot[_PHASE]
        if slot is None or phase == TRAINS:
            yield
            return
        slot[_PHASE], slot[_AT] = TRAINS, monotonic()
        try:
            yield
        finally:
            slot[_PHASE], slot[_AT] = phase, monotonic()

    def _open(self) -> "memoryview[float] | None":
        """None: this process has no slot, and asks no more."""
        if self._closed:
            return None
        self._closed = True
        with contextlib.suppress(OSError, ValueError):  # no room on the disk: it trains unwatched
            self._slot = _map(os.environ)
        if self._slot is not None:
            answer_stack_signal()
            os.register_at_fork(after_in_child=self._let_go)
            if self.on_open is not None:
                self.on_open()
        return self._slot

    def move(self) -> None:
        """This rank has gone on to another task, as the environment says: its slot is there."""
        self._slot, self._closed = None, False

    def _let_go(self) -> None:
        """In a forked child: the slot is the parent's."""
        self._slot = None


BEAT: Final = Beat()


def _map(environment: Mapping[str, str]) -> "memoryview[float] | None":
    folder = environment.get("PACELINE_TASK_FOLDER", "")
    local_rank = int(environment.get("LOCAL_RANK") or environment.get("OMPI_COMM_WORLD_LOCAL_RANK") or 0)
    if not folder or not 0 <= local_rank < RANKS_MAX:
        return None
    fd = os.open(f"{folder}/{NAME}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        end = (local_rank + 1) * SLOT_BYTES
        os.posix_fallocate(
            fd, 0, end
        )  # a store into a page that the disk has no room for would kill the rank
        whole = memoryview(mmap.mmap(fd, end)).cast("d")
    finally:
        os.close(fd)
    slot = whole[local_rank * _FIELDS :]
    if slot[_PID] and slot[_PID] != os.getpid() and os.path.exists(f"/proc/{int(slot[_PID])}"):  # noqa: PTH110
        return None  # another process of this rank has it
    slot[_PID], slot[_STEP], slot[_AT] = os.getpid(), -1, monotonic()
    return slot


def read_beats(fd: int) -> list[Beats]:
    """All slots that are taken. Read, not mapped: a file that shrinks must not kill its reader."""
    data = os.pread(fd, RANKS_MAX * SLOT_BYTES, 0)
    fields = memoryview(data[: len(data) // SLOT_BYTES * SLOT_BYTES]).cast("d")
    found = []
    for slot in range(len(fields) // _FIELDS):
        values = fields[slot * _FIELDS : (slot + 1) * _FIELDS].tolist()
        if values[_PID] and all(-1 <= value < 2**53 for value in values):
            pid, steps, reports, step, phase = (
                int(values[at]) for at in (_PID, _STEPS, _REPORTS, _STEP, _PHASE)
            )
            at_s, longest_s, fetching_s = values[_AT], values[_LONGEST], values[_FETCHING]
            found.append(Beats(slot, pid, steps, reports, step, at_s, longest_s, phase, fetching_s))
    return found


def answer_stack_signal() -> None:
    """From now on, STACK_SIGNAL makes this process write its stacks, whatever it is doing. What Python code
    can see of signals stays as it was: the handler is below it."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # no such signal here
        faulthandler.register(STACK_SIGNAL, file=2, all_threads=True, chain=False)
