"""Serves a node's door for its peers (proto/peer_door.py), in a process of its own: what is large does not
pass through the agent.

    python -P -m paceline.agent.peer_receiver LISTENER_FD ROOT    until stdin ends

Who may come is what the agent has left in ROOT (agent/peer_door.py). A file is written aside and gets its
name when all of it has come and its hash is right. Of a job the last two checkpoints are kept, each attempt
may bring only its own, and a tenth of the memory stays free: what would take of that is refused, with
numbers. A folder that the agent has taken away is never made again.
"""

import contextlib
import hmac
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import xxhash

from ..proto.peer_door import CHUNK_BYTES, GET_BYTES_S, KEPT, PEERS, PUT_BYTES_S, Line, Request
from ..spec.folder_names import FolderName
from .peer_door import token_file

SHARE_LEFT: Final = 0.1
"""Of the node's memory, and of shared memory: so much stays available."""
CONNECTIONS_MAX: Final = 32
_NICENESS: Final = 10
"""While a file comes: nobody waits for it, and there is training here. While one is given, a gang waits."""
_REST_S: Final = 0.1
_ASIDE: Final = "~"


class Refused(Exception):
    """What the other end is told."""


class Receiver:
    """`root`: the agent's folder in memory. `serve` in as many threads as there are connections."""

    def __init__(self, root: Path, share_left: float = SHARE_LEFT) -> None:
        self._root = root
        self._share_left = share_left
        self._coming_bytes = 0
        self._lock = threading.Lock()
        """Over what is promised, and which folders there are."""

    def serve(self, connection: socket.socket) -> None:
        """One request. What goes wrong is told to the other end, as long as it hears."""
        with connection:
            line = Line(connection)
            try:
                self._answer(line)
            except (Refused, ValueError) as refusal:
                with contextlib.suppress(OSError):
                    line.say({"ok": False, "error": str(refusal)})
            except OSError as failure:
                with contextlib.suppress(OSError):
                    line.say({"ok": False, "error": failure.strerror or str(failure)})

    def _answer(self, line: Line) -> None:
        request = Request.of(line.hear())
        folder = self._checked(request)
        if request.op == "put":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)  # of this thread, for good
            self._take(line, request, folder)
        elif request.op == "get":
            _give(line, request, folder)
        else:
            raise Refused(f"unknown op {request.op[:20]!r}, expected put or get")

    def _checked(self, request: Request) -> Path:
        """The job's folder, if that attempt is let in (agent/peer_door.py) with that token."""
        folder = self._root / str(request.job)
        try:
            token = (folder / token_file(request.attempt)).read_bytes()
        except FileNotFoundError:
            token = b""
        if not token or not hmac.compare_digest(token, request.token.encode()):
            raise Refused(f"attempt {request.attempt} of job {request.job} is not let in with this token")
        return folder

    def _take(self, line: Line, request: Request, folder: Path) -> None:
        name = FolderName.parse(request.checkpoint)
        if name is None or name.attempt != request.attempt:
            raise Refused(f"{request.checkpoint} is not of attempt {request.attempt}")
        aside = folder / PEERS / request.checkpoint / f"{_ASIDE}{request.file}"
        with self._promised(folder, name, request.size_bytes):
            try:
                line.say({"ok": True})
                _receive(line, request, aside)
                self._checked(request)
                aside.rename(aside.with_name(request.file))
            except BaseException:
                aside.unlink(missing_ok=True)
                raise
        line.say({"ok": True})

    @contextlib.contextmanager
    def _promised(self, folder: Path, name: FolderName, size_bytes: int) -> Iterator[None]:
        """Room for it, in a folder that is there."""
        with self._lock:
            _make_place(folder / PEERS, name)
            self._check_room(folder, size_bytes)
            self._coming_bytes += size_bytes
        try:
            yield
        finally:
            with self._lock:
                self._coming_bytes -= size_bytes

    def _check_room(self, folder: Path, size_bytes: int) -> None:
        """Beside what is promised already, and what this node's own images will take yet."""
        beside = self._coming_bytes + _own_bytes_to_come(folder)
        memory, shared = psutil.virtual_memory(), shutil.disk_usage(folder)
        for what, free, total in (
            ("memory", memory.available, memory.total),
            ("shared memory", shared.free, shared.total),
        ):
            if free - beside - size_bytes < self._share_left * total:
                raise Refused(
                    f"no room: {_mb(size_bytes)} MB wanted beside {_mb(beside)} MB that are promised, "
                    f"{_mb(free)} of {_mb(total)} MB of {what} are free, and {self._share_left:.0%} stay so"
                )


def _make_place(peers: Path, name: FolderName) -> None:
    """The newest so many stay, `name` among them. The folder above is the agent's to make."""
    there = {found for entry in os.listdir(peers) if (found := FolderName.parse(entry))}  # noqa: PTH208
    kept = sorted(there | {name}, reverse=True)[:KEPT]
    if name not in kept:
        raise Refused(f"{name} is older than what is kept: {', '.join(map(str, kept))}")
    for old in there - set(kept):
        shutil.rmtree(peers / str(old))
    if name not in there:
        (peers / str(name)).mkdir(mode=0o700)


def _own_bytes_to_come(folder: Path) -> int:
    """This node's own images are two of each: at the first save there is one."""
    sizes = [0, 0]
    for path in folder.glob("[01]/__*.distcp"):
        with contextlib.suppress(FileNotFoundError):  # a rank lets go of it just now
            sizes[int(path.parent.name)] += path.stat().st_size
    return abs(sizes[0] - sizes[1])


def _receive(line: Line, request: Request, aside: Path) -> None:
    line.allow(request.size_bytes, PUT_BYTES_S)
    digest, buffer, left = xxhash.xxh3_128(), memoryview(bytearray(CHUNK_BYTES)), request.size_bytes
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(aside, flags, 0o600), "wb", buffering=0) as file:
        while left:
            chunk = buffer[: line.receive_into(buffer[: min(left, CHUNK_BYTES)])]
            digest.update(chunk)
            left -= len(chunk)
            while chunk:
                chunk = chunk[file.write(chunk) :]
    if digest.hexdigest() != request.xxh3:
        raise Refused(f"{request.file}: hash differs")


def _give(line: Line, request: Request, folder: Path) -> None:
    path = _find(folder, request.checkpoint, request.file)
    if path is None:
        raise Refused("not in memory there")
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        line.say({"ok": True, "size_bytes": size_bytes})
        line.allow(size_bytes, GET_BYTES_S)
        line.send_file(file, size_bytes)


def _find(folder: Path, checkpoint: str, file: str) -> Path | None:
    """A peer's, or this node's own image that says to be of it (training/images.py)."""
    kept = folder / PEERS / checkpoint / file
    if kept.exists():
        return kept
    for label in folder.glob(f"[0-9]/{file}.of"):
        with contextlib.suppress(OSError, ValueError):  # goes away just now, or is damaged
            if label.read_text() == checkpoint:
                return label.with_name(file)
    return None


def _mb(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.0f}"


def _accept(listener: socket.socket, receiver: Receiver) -> None:
    free = threading.Semaphore(CONNECTIONS_MAX)

    def serve(connection: socket.socket) -> None:
        try:
            receiver.serve(connection)
        finally:
            free.release()

    while True:
        free.acquire()  # who dials now waits in the listen queue, and no longer than it likes
        try:
            connection, _ = listener.accept()
        except OSError:  # gone before it was let in; or no descriptor is free until another has ended
            free.release()
            time.sleep(_REST_S)
            continue
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    receiver = Receiver(Path(sys.argv[2]))
    threading.Thread(target=_accept, args=(listener, receiver), daemon=True).start()
    sys.stdin.buffer.read()
    os._exit(0)  # the agent has gone: nobody says any more who may come


if __name__ == "__main__":
    main()
