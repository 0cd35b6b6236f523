"""The door of a node's memory: where others of a gang leave files of checkpoints, and get them again.

    -> {"op": "put", "job", "attempt", "token", "checkpoint", "file", "size_bytes", "xxh3"}
    <- {"ok": true}, then SIZE bytes come, then {"ok": true} when they are there and their hash is that
    -> {"op": "get", ...without size and hash}
    <- {"ok": true, "size_bytes": SIZE}, then SIZE bytes
    <- {"ok": false, "error": TEXT} to what is refused, and the connection is closed

One request a connection. The door is known to the ranks of one attempt on its node by a file in their task's
folder; they tell the others of their gang. Nothing of a file is trusted: who reads it compares its hash with
the manifest that was accepted. Standard library only.
"""

import json
import re
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

FILE: Final = "peer-door.json"
PEERS: Final = "peers"
"""In a job's folder in memory: PEERS/step-00000040.a2/__1_0.distcp, another node's, whole."""
KEPT: Final = 2
"""Checkpoints there; the older one goes before the next comes."""
LINE_BYTES_MAX: Final = 4096
CHUNK_BYTES: Final = 1 << 20
STILL_S: Final = 5.0
"""An end that neither gives nor takes a byte for so long is given up."""
PUT_BYTES_S: Final = 2e6
GET_BYTES_S: Final = 20e6
"""And one that moves less than this, on the average: nobody waits while a file is put, a gang may while it is
got. `STILL_S` is granted to all."""
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,200}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Door:
    """Where it is, and what lets one in: for one attempt, whose end is the token's."""

    node: str
    address: str
    port: int
    token: str

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @property
    def place(self) -> tuple[str, int]:
        return self.address, self.port


def read_door(folder: Path) -> Door | None:
    """That of the node whose task's folder this is. None: it has none for this attempt. Raises ValueError."""
    try:
        told = json.loads((folder / FILE).read_bytes())
        return Door(str(told["node"]), str(told["address"]), int(told["port"]), str(told["token"]))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / FILE}: {type(error).__name__}: {error}") from None


@dataclass(frozen=True, slots=True)
class Request:
    op: str
    job: int
    attempt: int
    token: str
    checkpoint: str
    file: str
    size_bytes: int = 0
    xxh3: str = ""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Request":
        """Raises ValueError for what is not one."""
        try:
            numbers = [told["job"], told["attempt"], told.get("size_bytes", 0)]
            texts = [told[key] for key in ("op", "token", "checkpoint", "file")] + [told.get("xxh3", "")]
        except KeyError as error:
            raise ValueError(f"the request has no {error}") from None
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError("job, attempt and size_bytes are whole numbers of at least 0")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("op, token, checkpoint, file and xxh3 are texts")
        op, token, checkpoint, file, xxh3 = texts
        if not is_plain(file) or not is_plain(checkpoint):
            raise ValueError(f"{file[:80]!r} of {checkpoint[:80]!r} is no file of a checkpoint")
        return cls(op, numbers[0], numbers[1], token, checkpoint, file, numbers[2], xxh3)


def is_plain(name: str) -> bool:
    """It names a file, and no other place."""
    return _NAME.fullmatch(name) is not None and name not in (".", "..")


class Line:
    """One end of a connection, with the bounds that both ends keep. All calls raise OSError: TimeoutError for
    an end that is too slow, ConnectionError for one that is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.settimeout(STILL_S)
        self._until_s = time.monotonic() + STILL_S

    def allow(self, size_bytes: int, slowest_bytes_s: float) -> None:
        """From now on it may take as long as that needs at the slowest."""
        self._until_s = time.monotonic() + STILL_S + size_bytes / slowest_bytes_s

    def say(self, message: Mapping[str, Any]) -> None:
        self._connection.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """One line. Raises ValueError for what is not an object in JSON, or longer than a line may be."""
        received = bytearray()
        while not received.endswith(b"\n"):
            self._check_time()
            data = self._connection.recv(1)  # what follows are a file's bytes
            if not data:
                raise ConnectionError("the other end has closed the connection")
            received += data
            if len(received) > LINE_BYTES_MAX:
                raise ValueError(f"a line is longer than {LINE_BYTES_MAX} bytes")
        try:
            told = json.loads(received)
        except RecursionError:
            raise ValueError("too deep") from None
        if not isinstance(told, dict):
            raise ValueError("expected an object")
        return told

    def receive_into(self, buffer: memoryview) -> int:
        """At least one byte."""
        self._check_time()
        received = self._connection.recv_into(buffer)
        if not received:
            raise ConnectionError("the other end has closed the connection")
        return received

    def send_file(self, file: Any, size_bytes: int) -> None:
        """From where it is, `size_bytes`, without a copy through this process. It may be cut off: an answer
        that is there before all is sent is a refusal."""
        offset = 0
        while offset < size_bytes and not self._is_answered():
            self._check_time()
            sent = self._connection.sendfile(file, offset, min(16 * CHUNK_BYTES, size_bytes - offset))
            if not sent:
                raise OSError(f"the file ends at {offset} of {size_bytes} bytes")
            offset += sent

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def _is_answered(self) -> bool:
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        return bool(poller.poll(0))

    def _check_time(self) -> None:
        if time.monotonic() > self._until_s:
            raise TimeoutError("too few bytes come through")
