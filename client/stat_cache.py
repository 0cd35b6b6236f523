"""Hashes of files that have not changed since: an unchanged project is looked at, and not read.

A file is taken to be unchanged when size, times, inode and device are. One that was changed a moment before
it was hashed is not noted: it may change again within the same tick of the file system's clock.
"""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Final

_TICK_NS: Final = 2_000_000_000
"""The coarsest clock of a file system in use: FAT's."""
_VERSION: Final = 2


class StatCache:
    """Of one folder, in a file of its own. A cache that cannot be read or written is none."""

    def __init__(self, file: Path, now_ns: int) -> None:
        self._file = file
        self._now_ns = now_ns
        self._known: dict[str, str] = {}
        """How a file stands -> its hash."""
        self._noted: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            said = json.loads(file.read_bytes())
            self._known = dict(said["hashes"]) if said["version"] == _VERSION else {}

    def hash_of(self, path: str, info: os.stat_result) -> str | None:
        """None: it has to be read."""
        stands = _stands(path, info)
        known = self._known.get(stands)
        if known is None:
            return None
        self._noted[stands] = known
        return str(known)

    def note(self, path: str, info: os.stat_result, hash_: str) -> None:
        if max(info.st_mtime_ns, info.st_ctime_ns) < self._now_ns - _TICK_NS:
            self._noted[_stands(path, info)] = hash_

    def save(self) -> None:
        if self._noted != self._known:
            write_cache(self._file, json.dumps({"version": _VERSION, "hashes": self._noted}).encode())


def write_cache(file: Path, data: bytes) -> None:
    """All of it or nothing: where it cannot be written, what was there stays."""
    aside = file.with_name(f".{secrets.token_hex(8)}")
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside.write_bytes(data)
        aside.replace(file)


def _stands(path: str, info: os.stat_result) -> str:
    times = f"{info.st_mtime_ns} {info.st_ctime_ns}"
    return f"{info.st_size} {times} {info.st_ino} {info.st_dev} {path}"
