"""Files that are written, until they are durable under their final names: many at once cost as one.

A file gets its name only when its bytes are on the disk, so that what has its name is whole after any crash.
"""

import os
import threading
from collections import deque
from pathlib import Path
from typing import Final

from .kernel import sync_file_system

_EACH_MAX: Final = 32
"""Up to so many, each is synced; of more, the file system as a whole, with whatever else is written there."""


class Settling:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Path, Path]] = deque()
        self._lock = threading.Lock()

    def add(self, aside: Path, final: Path) -> None:
        """Nobody writes to `aside` any more. What is at `final` already is as good: it has the same bytes."""
        self._waiting.append((aside, final))

    def settle(self) -> None:
        """All that was added before is durable under its final name. Raises OSError."""
        with self._lock:  # also for those that another thread has just taken up
            some = []
            while self._waiting:
                some.append(self._waiting.popleft())
            if not some:
                return
            asides = [aside for aside, _ in some]
            _sync(asides, asides[0].parent)
            folders: dict[Path, None] = {}
            for aside, final in some:
                final.parent.mkdir(parents=True, exist_ok=True)
                os.rename(aside, final)  # noqa: PTH104
                folders[final.parent] = None
            _sync(list(folders), asides[0].parent)


def _sync(paths: list[Path], folder: Path) -> None:
    if len(paths) > _EACH_MAX:
        sync_file_system(folder)
        return
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
