"""`shim.pid` in a task's folder: whoever makes it owns the task, so that none is started twice.

"PID STARTTIME" while that shim is at the task, "0 0" when nobody may start it (any more). Standard library
only.
"""

import contextlib
import functools
import os

from . import kernel

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
SPARE = "claim"
"""Lies ready, empty, in a folder that is used again (agent/spare_folders.py): renamed, it is shim.pid."""


def claim(folder: str) -> int:
    """Make shim.pid, and keep it open. -1 when somebody has: the task is theirs."""
    try:
        fd = _make(folder + "/shim.pid", f"{folder}/{SPARE}")
    except FileExistsError:
        return -1
    os.write(fd, _identity(os.getpid()))
    return fd


def _make(path: str, spare: str) -> int:
    """By one caller only. Raises FileExistsError in all others."""
    try:
        os.rename(spare, path)  # noqa: PTH104
    except FileNotFoundError:
        return os.open(path, _FLAGS, 0o600)
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


@functools.lru_cache(maxsize=1)
def _identity(pid: int) -> bytes:
    return f"{pid} {kernel.start_time(pid)}".encode()


def disclaim(claim_fd: int) -> None:
    """The task has ended, this process goes on: nobody may take it for the task's any more."""
    os.pwrite(claim_fd, b"0 0".ljust(os.fstat(claim_fd).st_size), 0)
    os.close(claim_fd)


def forbid(folder: str) -> None:
    """If nobody has claimed the task, nobody may any more: a late shim finds this and goes."""
    with contextlib.suppress(FileExistsError):
        fd = _make(folder + "/shim.pid", f"{folder}/{SPARE}")
        os.write(fd, b"0 0")
        os.close(fd)


def owner(folder: str) -> tuple[int, int] | None:
    """(pid, start time) of whoever claimed the task; (0, 0): nobody ever may. None: not claimed."""
    try:
        with open(folder + "/shim.pid", encoding="ascii") as file:  # noqa: PTH123
            pid, started = file.read().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(pid), int(started)
