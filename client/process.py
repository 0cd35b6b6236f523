"""Processes by pid and start time: a pid alone may by now be somebody else's.

Signals go through a pidfd that was opened before the start time was checked, so that the process
which gets the signal is the one that was meant. Linux only, as agents are.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ENVIRON_BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """A process: its pid, and field 22 of /proc/PID/stat (clock ticks after boot)."""

    pid: int
    start_time: int

    def is_alive(self) -> bool:
        """True while this very process runs; a zombie does not run."""
        stat = _stat(self.pid)
        return stat is not None and stat[1] == self.start_time and stat[0] != "Z"


def processes_are_visible() -> bool:
    """Whether this machine shows its processes under /proc, as Linux does."""
    return Path("/proc/self/stat").exists()


def identify(pid: int) -> Identity | None:
    """The process that has this pid now; None when there is none (or a zombie)."""
    stat = _stat(pid)
    return None if stat is None or stat[0] == "Z" else Identity(pid, stat[1])


def send(process: Identity, signum: int) -> bool:
    """Send a signal to this very process; False when it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not process.is_alive():
            return False
        signal.pidfd_send_signal(fd, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def wait_gone(process: Identity, timeout_s: float) -> bool:
    """Wait until the process has ended (as a zombie it has); False when the time ran out."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not process.is_alive():
            return True
        readable, _, _ = select.select([fd], [], [], max(timeout_s, 0))
        return bool(readable)
    finally:
        os.close(fd)


def with_environment(name: str, is_ours: Callable[[str], bool]) -> Iterator[Identity]:
    """Running processes of this user whose environment has `name` with a value that `is_ours`."""
    prefix = name.encode() + b"="
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        process = identify(int(entry.name))
        if process is None:
            continue
        with suppress(OSError), (entry / "environ").open("rb") as file:
            for pair in file.read(ENVIRON_BYTES_MAX).split(b"\0"):
                if pair.startswith(prefix) and is_ours(os.fsdecode(pair[len(prefix) :])):
                    yield process
                    break


def parent_of(process: Identity) -> int | None:
    """Pid of its parent; None when it is gone."""
    stat = _stat(process.pid)
    return stat[2] if stat is not None and stat[1] == process.start_time else None


def descendants(process: Identity) -> Iterator[Identity]:
    """Running processes below this one, as of one look at /proc."""
    children: dict[int, list[Identity]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None and stat[0] != "Z":
            children.setdefault(stat[2], []).append(Identity(int(entry.name), stat[1]))
    pending = [process.pid]
    while pending:
        for child in children.pop(pending.pop(), []):
            yield child
            pending.append(child.pid)


def kill_all(find: Callable[[], Iterator[Identity]], timeout_s: float) -> list[Identity]:
    """SIGKILL what `find` finds until it finds nothing; the processes killed. Raises TimeoutError."""
    killed: dict[Identity, None] = {}
    deadline = time.monotonic() + timeout_s
    while found := list(find()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {[p.pid for p in found]} do not die of SIGKILL")
        for process in found:
            if send(process, signal.SIGKILL):
                killed[process] = None
        for process in found:
            wait_gone(process, max(0.0, deadline - time.monotonic()))
    return list(killed)


def _stat(pid: int) -> tuple[str, int, int] | None:
    """(state, start time, parent's pid) of a pid; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0].decode(), int(fields[19]), int(fields[1])
