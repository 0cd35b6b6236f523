"""Task folders that are used again, with their files.

Where many files were deleted in the last seconds, ext4 searches long for an inode that was not: making and
dropping a task's few files then costs more than all else that an agent does for a small task. So the folder
of a task that is over and done with is emptied and kept for the next. The files are cut to nothing before the
folder moves: file systems keep that order over a crash, so no task ever finds another's journal.
"""

import contextlib
import os
import shutil
import stat
from collections import deque
from itertools import count
from pathlib import Path
from typing import Final

from .claims import SPARE

SPARE_MAX: Final = 256
_EMPTIED: Final = {"journal.jsonl": 0, "task.json": 1, "rank-0.log": 0, "shim.pid": 0}
"""What is left of each, in bytes. A "{" is no task, and ext4 does not hurry to write out what replaces it, as
it does for files that were cut to nothing."""
_BYTES_MAX: Final = 64 * 1024
"""What is longer is deleted: giving its blocks back is most of the work then."""


class SpareFolders:
    """Of one agent. May be called from any thread."""

    def __init__(self, root: Path) -> None:
        """`root`: a folder on the file system of the tasks' folders."""
        self._root = root
        self._numbers = count()
        self._free: deque[str] = deque()

    def begin(self) -> None:
        """Once: those of an earlier agent go. Raises OSError."""
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir(mode=0o700, exist_ok=True)

    def take(self, folder: Path) -> bool:
        """Move one to `folder`. False: there is none."""
        try:
            spare = self._free.pop()
        except IndexError:
            return False
        os.rename(spare, folder)  # noqa: PTH104
        return True

    def keep(self, folder: Path) -> None:
        """Empty that of a task which is over, in which nobody has a file open, and keep it; else drop it."""
        if len(self._free) >= SPARE_MAX or not self._empty(str(folder)):
            drop_folder(folder)

    def _empty(self, folder: str) -> bool:
        spare = f"{self._root}/{next(self._numbers)}"
        try:
            for name in os.listdir(folder):  # noqa: PTH208
                path = f"{folder}/{name}"
                found = os.lstat(path)
                ours = name in _EMPTIED and stat.S_ISREG(found.st_mode) and found.st_nlink == 1
                if not ours or found.st_size > _BYTES_MAX:
                    os.unlink(path)  # noqa: PTH108
                elif found.st_size:
                    os.truncate(path, _EMPTIED[name])
            os.rename(f"{folder}/shim.pid", f"{folder}/{SPARE}")  # noqa: PTH104
            os.rename(folder, spare)  # noqa: PTH104
        except OSError:  # a folder in it, a disk that takes nothing more
            return False
        self._free.append(spare)
        return True


def drop_folder(folder: Path) -> None:
    """All that is in it; usually a handful of files, for which rmtree is slow."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208
            os.unlink(f"{folder}/{name}")  # noqa: PTH108
        os.rmdir(folder)  # noqa: PTH106
        return
    shutil.rmtree(folder, ignore_errors=True)
