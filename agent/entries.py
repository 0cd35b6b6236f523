"""Reads a task's journal as it grows, and makes messages of its lines.

The latest lines are kept in memory, a bounded number; older ones are read from the file again.
"""

import os
from collections import deque
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format

from ..proto.generated import agent_pb2
from .journal import read_lines

_KEPT: Final = 2000
_READ_BYTES: Final = 1 << 20
LIFECYCLE: Final = ("started", "exited", "ended", "refused")


class JournalReader:
    """One task's. `started`, `exited`, `last` hold what the lines said that matter for the task's life."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: deque[tuple[int, dict[str, Any]]] = deque(maxlen=_KEPT)
        self._read_bytes = 0
        self.started: dict[str, Any] | None = None
        self.exited: dict[int, dict[str, Any]] = {}
        self.has_checkpoints = False
        self.last: dict[str, Any] | None = None
        """The `ended` or `refused` entry: nothing comes after it."""

    def grow(self) -> bool:
        """Read what is new. True when there was something."""
        grown = False
        while lines := self._read(self._read_bytes):
            grown = True
            self._read_bytes = lines[-1][0]
            self._lines.extend(lines)
            for _, entry in lines:
                self._note(entry)
        return grown

    def keep(self, kind: str, fields: dict[str, Any], at_s: float) -> None:
        """An entry that could not be written: it lives here alone."""
        seq = self._lines[-1][1]["seq"] + 1 if self._lines else 1
        entry = {"seq": seq, "at": at_s, "kind": kind, **fields}
        self._lines.append((0, entry))
        self._note(entry)

    def entries(self, after_seq: int, limit: int) -> list[agent_pb2.JournalEntry]:
        """Those with a greater seq, at most `limit`."""
        if not self._lines or self._lines[-1][1]["seq"] <= after_seq:
            return []
        if self._lines[0][1]["seq"] <= after_seq + 1:
            found = [entry for _, entry in self._lines if entry["seq"] > after_seq]
        else:
            found = self._older(after_seq, limit)
        return [to_message(entry) for entry in found[:limit]]

    def end_of(self, seq: int) -> int:
        """Where the line of that seq ends in the file; 0 when it is no longer known."""
        return next((end for end, entry in reversed(self._lines) if entry["seq"] == seq), 0)

    def _older(self, after_seq: int, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        offset = 0
        while len(found) < limit and (lines := self._read(offset)):
            offset = lines[-1][0]
            found += [entry for _, entry in lines if entry["seq"] > after_seq]
        return found

    def _read(self, offset: int) -> list[tuple[int, dict[str, Any]]]:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        try:
            return read_lines(fd, offset, _READ_BYTES)
        finally:
            os.close(fd)

    def _note(self, entry: dict[str, Any]) -> None:
        match entry["kind"]:
            case "started":
                self.started = entry
            case "exited":
                self.exited[entry["local_rank"]] = entry
            case "checkpoint":
                self.has_checkpoints = True
            case "ended" | "refused":
                self.last = entry


def to_message(entry: dict[str, Any]) -> agent_pb2.JournalEntry:
    """A line of the journal as it goes over the wire."""
    kind = entry["kind"]
    message = agent_pb2.JournalEntry(seq=entry["seq"], at_monotonic_s=entry["at"])
    part = getattr(message, kind)
    names = part.DESCRIPTOR.fields_by_name
    fields = {name: value for name, value in entry.items() if name in names}
    if kind in LIFECYCLE:  # nothing in them needs JSON's mapping, which is ten times slower
        part.MergeFrom(type(part)(**fields))
    else:
        json_format.ParseDict(fields, part, ignore_unknown_fields=True)
    part.SetInParent()
    return message
