"""Reads kept checkpoints again, long after they were good: slowly, in rank 0's persister, beside all else.

A copy is looked at when its last look, or its making, is `every_s` ago; those of attempts before this one are
looked at first. Only what differs is damage: a disk or a store that cannot be read just now is looked at
again later. What is found goes to the job's page once, and fills no place among those that are kept.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..proto.shim_line import ShimLink
from ..spec.folder_names import FolderName
from . import manifest
from .errors import StorageFailed
from .manifest import FileEntry, Manifest
from .remote import Remote
from .retention import Kept
from .say import say

RATE_BYTES_S: Final = 32e6
_CHUNK_BYTES: Final = 1024 * 1024
_LOOK_S: Final = 1.0
_NICENESS: Final = 19
STORAGE, UPLOAD = "storage", "upload"

Copy = tuple[Path, str]
"""A checkpoint's folder, and which copy of it."""


class Stopped(Exception):
    """The process ends."""


@dataclass(slots=True)
class Scrubber:
    """`kept` gives what is there now; `uploaded` those of them that are at the URL, too."""

    kept: Callable[[], Sequence[Kept]]
    uploaded: Callable[[], frozenset[FolderName]]
    remote: Remote | None
    link: ShimLink
    every_s: float
    damaged: dict[Copy, str] = field(default_factory=dict)
    _looked_s: dict[Copy, float] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def begun(self) -> bool:
        return self._thread is not None

    def begin(self) -> None:
        self._thread = threading.Thread(target=self._run, name="scrub")
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def is_bad(self, path: Path) -> bool:
        """No copy of it is good."""
        name = FolderName.parse(path.name)
        there = [STORAGE, UPLOAD] if name in self.uploaded() else [STORAGE]
        return all((path, copy) in self.damaged for copy in there)

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            while not self._stopping.wait(min(_LOOK_S, self.every_s)):
                for one, copy in self._due():
                    self._look(one, copy)
        except Stopped:
            return

    def _due(self) -> list[tuple[Kept, str]]:
        """Those of this attempt are as good as looked at when they are first seen."""
        now_s, uploaded = time.monotonic(), self.uploaded()
        due = []
        for one in self.kept():
            copies = [STORAGE]
            if self.remote is not None and FolderName.parse(one.path.name) in uploaded:
                copies.append(UPLOAD)
            for copy in copies:
                new_s = now_s if one.seq is not None else now_s - self.every_s
                last_s = self._looked_s.setdefault((one.path, copy), new_s)
                if now_s - last_s >= self.every_s and (one.path, copy) not in self.damaged:
                    due.append((one, copy))
        return due

    def _look(self, one: Kept, copy: str) -> None:
        self._looked_s[one.path, copy] = time.monotonic()
        reader: _Reader = _Folder(one.path) if copy == STORAGE else _Uploaded(self._store(), one.path)
        try:
            why = self._difference(reader, one)
        except (OSError, StorageFailed) as failure:
            say(f"{copy} of the checkpoint of step {one.step} cannot be looked at now: {failure}")
            return
        if why and any(still.path == one.path for still in self.kept()):
            self._tell(one, copy, why)

    def _store(self) -> Remote:
        assert self.remote is not None
        return self.remote

    def _tell(self, one: Kept, copy: str, why: str) -> None:
        say(f"the checkpoint of step {one.step} is damaged in {copy}: {why}")
        told = {"op": "damaged", "step": one.step, "path": str(one.path), "copy": copy, "why": why}
        answer = self.link.ask(told)
        if answer is not None and answer.get("ok"):  # else again at the next look
            self.damaged[one.path, copy] = why

    def _difference(self, reader: "_Reader", one: Kept) -> str:
        """What is wrong with the first file that is not as it was accepted; empty: all is well."""
        whole = bytearray()
        found = self._read(reader, manifest.NAME, whole.extend)
        if found is None:
            return f"{manifest.NAME}: missing"
        try:
            document: Manifest = manifest.accepted(bytes(whole), one.manifest_hash)
        except StorageFailed as failure:
            return failure.message
        for file, entry in sorted(document.files.items()):
            found = self._read(reader, file, None)
            if found is None:
                return f"{file}: missing"
            if difference := manifest.difference(found, entry):
                return f"{file}: {difference}"
        return ""

    def _read(self, reader: "_Reader", file: str, also: Callable[[bytes], None] | None) -> FileEntry | None:
        """What is in the file now, at no more than the rate; None: it is not there. Raises OSError and
        StorageFailed.
        """
        digest, size_bytes, since_s = manifest.new_hash(), 0, time.monotonic()

        def take(chunk: bytes) -> None:
            nonlocal size_bytes
            digest.update(chunk)
            size_bytes += len(chunk)
            if also is not None:
                also(chunk)
            ahead_s = size_bytes / RATE_BYTES_S - (time.monotonic() - since_s)
            if self._stopping.wait(max(0.0, ahead_s)):
                raise Stopped

        try:
            reader.read(file, take)
        except FileNotFoundError:
            return None
        return FileEntry(size_bytes, digest.hexdigest())


class _Reader:
    """One copy of a checkpoint. Raises FileNotFoundError for what is surely not there."""

    def read(self, file: str, take: Callable[[bytes], None]) -> None:
        raise NotImplementedError


class _Folder(_Reader):
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, file: str, take: Callable[[bytes], None]) -> None:
        """From the disk, and not from what the kernel remembers of it."""
        if not self._path.parent.is_dir():  # not mounted, say
            raise StorageFailed(f"{self._path.parent} is not there")
        with (self._path / file).open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := stream.read(_CHUNK_BYTES):
                take(chunk)


class _Uploaded(_Reader):
    def __init__(self, remote: Remote, path: Path) -> None:
        name = FolderName.parse(path.name)
        assert name is not None
        self._remote, self._name = remote, name

    def read(self, file: str, take: Callable[[bytes], None]) -> None:
        self._remote.read(self._name, file, take)
