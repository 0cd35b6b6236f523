"""A bounded, append-only file addressed by stream offset: byte N of the stream is byte N of the file.

The bound drops the head by punching a hole, so offsets never move and nothing is copied. What is missing
(dropped, or never arrived) is written down beside the file before it goes, so a reader never takes a
hole for data. Standard library only.
"""

import ctypes
import errno
import os
import secrets
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from ..spec.errors import InvalidRequest

BLOCK_BYTES: Final = 4096
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_GAPS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a stream. `dropped_bytes` stood before `offset`, after what was asked for, and are gone."""

    offset: int
    data: bytes | memoryview
    dropped_bytes: int = 0

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class LogFile:
    """One stream, written by one holder; `read` may be called from any thread.

    `size` is where the stream ends, `start` its first byte that is still there.
    """

    def __init__(self, path: Path, *, bytes_max: int) -> None:
        if bytes_max < 16 * BLOCK_BYTES:
            raise InvalidRequest(
                f"a log's bound is {bytes_max} bytes; at least {16 * BLOCK_BYTES} are needed"
            )
        self._gaps_path = path.with_name(path.name + ".gaps")
        self.bytes_max = bytes_max
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.size = os.fstat(self._fd).st_size
        self._gaps = [gap for gap in _read_gaps(self._gaps_path) if gap[0] <= self.size]
        if self._gaps and self._gaps[-1][1] > self.size:
            # It was written down that bytes are missing, and the ones after them never came.
            self.size = self._gaps[-1][1]
            os.ftruncate(self._fd, self.size)

    @property
    def start(self) -> int:
        return self._gaps[0][1] if self._gaps and self._gaps[0][0] == 0 else 0

    def append(self, offset: int, data: bytes | memoryview) -> int:
        """Add the stream's bytes from `offset` on; returns the new size.

        What is there already is skipped; a jump beyond the end is kept as a gap. Raises OSError.
        """
        if offset + len(data) <= self.size:
            return self.size
        if offset > self.size:
            self._add_gap(self.size, offset)
            os.ftruncate(self._fd, offset)
            self.size = offset
        view = memoryview(data)[self.size - offset :]
        while view:
            written = os.pwrite(self._fd, view, self.size)
            self.size += written
            view = view[written:]
        self._keep_bound()
        return self.size

    def read(self, offset: int, count: int) -> Piece:
        """Up to `count` bytes from `offset` or the first byte after it that is there; empty at the end.

        Raises BlockingIOError never: it waits for the disk.
        """
        return self._read(offset, count, 0)

    def read_cached(self, offset: int, count: int) -> Piece | None:
        """As `read`, but None when the bytes are not in memory (or the system cannot tell)."""
        if not _NOWAIT:
            return None
        try:
            return self._read(offset, count, _NOWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS):
                return None
            raise

    def sync(self) -> None:
        """Return when what was appended survives a crash of the machine."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _read(self, offset: int, count: int, flags: int) -> Piece:
        while True:
            gaps = self._gaps
            at, until = _after_gaps(gaps, offset, self.size)
            wanted = min(count, until - at)
            if wanted <= 0:
                return Piece(at, b"", at - offset)
            buffer = bytearray(wanted)
            got = os.preadv(self._fd, [buffer], at, flags) if flags else os.preadv(self._fd, [buffer], at)
            if gaps is self._gaps:  # else the head was dropped meanwhile, and this may be a hole
                return Piece(at, memoryview(buffer)[:got], at - offset)

    def _keep_bound(self) -> None:
        """Drop the oldest sixteenth, so that most appends drop nothing."""
        if self.size - self.start > self.bytes_max:
            keep = self.bytes_max - self.bytes_max // 16
            new_start = (self.size - keep) // BLOCK_BYTES * BLOCK_BYTES
            self._add_gap(0, new_start)
            _punch(self._fd, 0, new_start)

    def _add_gap(self, start: int, end: int) -> None:
        gaps = _merged([*self._gaps, (start, end)])
        while len(gaps) > _GAPS_MAX:  # a stream of holes: what stands between the two oldest goes as well
            gaps = [(gaps[0][0], gaps[1][1]), *gaps[2:]]
        _write_gaps(self._gaps_path, gaps)
        self._gaps = gaps


_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0) if hasattr(os, "preadv") else 0


def _after_gaps(gaps: list[tuple[int, int]], offset: int, size: int) -> tuple[int, int]:
    """The first byte at or after `offset` that is there, and where the data from it on ends."""
    at = bisect_right(gaps, (offset, 1 << 62)) - 1
    if at >= 0 and offset < gaps[at][1]:
        offset = gaps[at][1]
    until = gaps[at + 1][0] if at + 1 < len(gaps) else size
    return offset, until


def _merged(gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(gaps):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _read_gaps(path: Path) -> list[tuple[int, int]]:
    return _merged(list(_parsed(path)))


def _parsed(path: Path) -> Iterator[tuple[int, int]]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        start, end = line.split()
        yield int(start), int(end)


def _write_gaps(path: Path, gaps: list[tuple[int, int]]) -> None:
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fresh.write_text("".join(f"{start} {end}\n" for start, end in gaps), encoding="ascii")
        fresh.rename(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


@cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    found: Callable[[int, int, int, int], int] = function
    return found


def _punch(fd: int, start: int, end: int) -> None:
    """Give the blocks back. Where the file system cannot, the file keeps its size on disk."""
    function = _fallocate()
    if function is None or function(fd, _PUNCH_HOLE | _KEEP_SIZE, start, end - start) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(number, os.strerror(number))
