"""Folders for images where no agent gives one: they go with the run, however it ends.

Whoever uses one holds a lock on it (flock, which ends with the last process that has it); the next run on
this machine removes what nobody holds.
"""

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

from . import images

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "paceline-run-"


class Scratch:
    """One rank's: `memory`, and `disk` for when that has no room (made only then). Its persister inherits
    `lock_fd`.
    """

    def __init__(self, shared_memory: Path = SHARED_MEMORY) -> None:
        where = shared_memory if os.access(shared_memory, os.W_OK) else Path(tempfile.gettempdir())
        _sweep(where)
        self.lock_fd = -1
        while self.lock_fd < 0:
            self.memory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
            self.lock_fd = lock(self.memory)  # a sweep may have come in between
        self.disk = _disk_of(self.memory)


def drop(memory: Path) -> None:
    images.drop(memory)
    images.drop(_disk_of(memory))


def _disk_of(memory: Path) -> Path:
    return Path(tempfile.gettempdir()) / f"{memory.name}-disk"


def _sweep(where: Path) -> None:
    for found in where.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or gone
            if not found.name.endswith("-disk") and (fd := lock(found)) >= 0:
                drop(found)
                os.close(fd)


def lock(folder: Path) -> int:
    """A descriptor that holds it; -1: somebody else does, or it is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return -1
