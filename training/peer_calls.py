"""Calls at another node's door (proto/peer_door.py): a file of a checkpoint is left in that node's memory, or
got from there.

Each call has a bound, and what fails is a StorageFailed that names the node. torch is not needed here.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ..proto.peer_door import CHUNK_BYTES, GET_BYTES_S, PUT_BYTES_S, Door, Line, Request
from ..spec.folder_names import FolderName
from . import manifest
from .errors import StorageFailed
from .fetching import Take, fetch
from .manifest import FileEntry

_DIAL_S: Final = 2.0
_DESCRIPTORS = "/proc/self/fd"


@dataclass(frozen=True, slots=True)
class Caller:
    """One attempt's, at one door."""

    door: Door
    job: int
    attempt: int

    def put_file(self, name: FolderName, file: str, descriptor: int, entry: FileEntry) -> None:
        """All of an open file. Raises StorageFailed."""

        def send(line: Line) -> None:
            with Path(_DESCRIPTORS, str(descriptor)).open("rb") as source:
                line.send_file(source, entry.size_bytes)

        self._put(name, file, entry, send)

    def put_bytes(self, name: FolderName, file: str, data: bytes) -> None:
        """Raises StorageFailed."""
        entry = FileEntry(len(data), manifest.hash_bytes(data))
        self._put(name, file, entry, lambda line: line.send(data))

    def read_small(self, name: FolderName, file: str, entry: FileEntry | None) -> bytes:
        """A manifest, or `entry`'s metadata. Raises StorageFailed."""
        data = bytearray()
        bound = entry.size_bytes if entry is not None else manifest.MANIFEST_BYTES_MAX
        self._get(name, file, lambda size_bytes: size_bytes <= bound, data.extend)
        return bytes(data)

    def fetch(self, name: FolderName, file: str, entry: FileEntry, target: Path) -> str:
        """Bring it to `target` if it is as the manifest says; else what is wrong."""

        def read(take: Take) -> None:
            self._get(name, file, lambda size_bytes: size_bytes == entry.size_bytes, take)

        return fetch(target, entry, self.door.node, read)

    def _put(self, name: FolderName, file: str, entry: FileEntry, send: Callable[[Line], None]) -> None:
        with self._line() as line:
            self._ask(line, self._request("put", name, file, entry))
            line.allow(entry.size_bytes, PUT_BYTES_S)
            try:
                send(line)
            except ConnectionError:  # why it was cut off may have been said before
                self._hear(line)
                raise
            self._hear(line)

    def _get(
        self,
        name: FolderName,
        file: str,
        is_size: Callable[[int], bool],
        on_chunk: Callable[[memoryview], None],
    ) -> None:
        with self._line() as line:
            told = self._ask(line, self._request("get", name, file))
            left = told.get("size_bytes")
            if type(left) is not int or left < 0 or not is_size(left):
                raise StorageFailed(f"has {left} bytes at {self.door.node}")
            line.allow(left, GET_BYTES_S)
            buffer = memoryview(bytearray(min(CHUNK_BYTES, left)))
            while left:
                received = line.receive_into(buffer[: min(left, CHUNK_BYTES)])
                on_chunk(buffer[:received])
                left -= received

    def _request(self, op: str, name: FolderName, file: str, entry: FileEntry | None = None) -> Request:
        size_bytes, xxh3 = (entry.size_bytes, entry.xxh3) if entry is not None else (0, "")
        return Request(op, self.job, self.attempt, self.door.token, str(name), file, size_bytes, xxh3)

    def _ask(self, line: Line, request: Request) -> dict[str, object]:
        line.say(asdict(request))
        return self._hear(line)

    def _hear(self, line: Line) -> dict[str, object]:
        told = line.hear()
        if not told.get("ok"):
            raise StorageFailed(f"{str(told.get('error'))[:300]} at {self.door.node}")
        return told

    @contextlib.contextmanager
    def _line(self) -> Iterator[Line]:
        try:
            with socket.create_connection(self.door.place, _DIAL_S) as connection:
                yield Line(connection)
        except (OSError, ValueError) as failure:
            why = getattr(failure, "strerror", None) or str(failure)
            raise StorageFailed(f"{why} at {self.door.node}") from failure
