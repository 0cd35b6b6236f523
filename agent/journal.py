"""A task's journal: JSON lines, numbered from 1, written by one process, durable before anyone hears of them.

Space is reserved ahead, so that an exit code can be written when the disk is full: what matters less
(metrics) is left out then. Standard library only: the shim writes it.
"""

import json
import math
import os
import time
from typing import Any

from . import kernel

AHEAD_BYTES = 64 * 1024
"""Reserved beyond the last line: room for every rank's exit and the end."""
METRICS_BYTES_MAX = 64 * 1024 * 1024
"""Metrics that no scheduler has acknowledged are dropped beyond this; all else is kept."""


class Journal:
    """The one writer. `append` buffers, `flush` writes and makes durable; nothing is told before `flush`."""

    def __init__(self, path: str) -> None:
        """Open or go on; a last line that was cut short is cut off."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size_bytes, self.seq = _last_line(self._fd)
        if os.fstat(self._fd).st_size > self.size_bytes:  # else the blocks reserved beyond the end must stay
            os.ftruncate(self._fd, self.size_bytes)
        self._reserved_bytes = 0
        self._trimmed_bytes = 0
        self._buffer = bytearray()
        self._room()

    def append(self, kind: str, fields: dict[str, Any]) -> int:
        """Add an entry to what the next flush writes; returns its seq."""
        self.seq += 1
        entry = {"seq": self.seq, "at": round(time.monotonic(), 6), "kind": kind, **fields}
        self._buffer += json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        return self.seq

    def append_metrics(self, fields: dict[str, Any], kind: str = "metrics") -> bool:
        """Add metrics where there is room for them: False when the disk or the journal is full."""
        if self.size_bytes - self._trimmed_bytes > METRICS_BYTES_MAX or not self._room():
            return False
        self.append(kind, fields)
        return True

    def flush(self, durable: bool = True) -> None:
        """Write what was appended; with `durable`, it survives a crash of the machine when this returns."""
        while self._buffer:
            written = os.pwrite(self._fd, self._buffer, self.size_bytes)
            self.size_bytes += written
            del self._buffer[:written]
        if durable:
            os.fdatasync(self._fd)
        self._room()

    def trim(self, size_bytes: int) -> None:
        """What stands before is acknowledged: give its blocks back. Never the last line."""
        end = min(size_bytes, self.size_bytes) // kernel.BLOCK_BYTES * kernel.BLOCK_BYTES
        if end > self._trimmed_bytes:
            kernel.punch_hole(self._fd, self._trimmed_bytes, end - self._trimmed_bytes)
            self._trimmed_bytes = end

    def close(self) -> None:
        """Close the file; give back what was reserved and not used."""
        os.ftruncate(self._fd, self.size_bytes)
        os.close(self._fd)

    def _room(self) -> bool:
        """Keep AHEAD_BYTES reserved; False when the disk has no more."""
        if self._reserved_bytes - self.size_bytes >= AHEAD_BYTES:
            return True
        try:
            kernel.reserve(self._fd, self.size_bytes, 2 * AHEAD_BYTES)
        except OSError:  # full: what was reserved before is kept for what matters
            return False
        self._reserved_bytes = self.size_bytes + 2 * AHEAD_BYTES
        return True


def json_double(value: float) -> float | str:
    """A double in protobuf's JSON mapping: what is not finite is a word."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _last_line(fd: int) -> tuple[int, int]:
    """Size up to the last whole line, and its seq."""
    lines = read_lines(fd, 0)
    return (lines[-1][0], lines[-1][1]["seq"]) if lines else (0, 0)


def read_lines(fd: int, offset: int, bytes_max: int = 1 << 40) -> list[tuple[int, dict[str, Any]]]:
    """(end of line, entry) of every whole line from `offset` on, of about `bytes_max` bytes. Zeros of a
    trimmed beginning are skipped, and the rest of a line that was cut by it."""
    found: list[tuple[int, dict[str, Any]]] = []
    data = b""
    while len(data) < bytes_max and (chunk := os.pread(fd, min(1 << 20, bytes_max), offset + len(data))):
        data += chunk
    for line in data.split(b"\n")[:-1]:
        offset += len(line) + 1
        entry = _parse(line)
        if entry is not None:
            found.append((offset, entry))
    return found


def _parse(line: bytes) -> dict[str, Any] | None:
    text = line.lstrip(b"\0")
    if len(text) == len(line):
        return json.loads(line)  # type: ignore[no-any-return]
    if not text.startswith(b'{"seq":'):
        return None
    try:
        return json.loads(text)  # type: ignore[no-any-return]
    except ValueError:  # the end of an acknowledged line whose beginning was trimmed
        return None
