"""The line to the shim: JSON lines over the unix socket in the task's folder.

`post` never waits and never fails: what cannot be sent now waits in a bounded buffer whose oldest lines go
first, and nothing is ever answered. `ask` waits for its one answer, for a bounded time, on a connection of
its own. A forked child makes its own connections, so that two processes never mix their bytes.
"""

import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

BUFFER_BYTES_MAX = 256 * 1024
RECONNECT_S = 1.0
ANSWER_BYTES_MAX = 64 * 1024
_NAME = "shim.sock"
_DIAL_AGAIN_S = 0.01


class ShimLink:
    """One rank's line."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pid = os.getpid()
        self._socket: socket.socket | None = None
        self._retry_at_s = 0.0
        self._lines: deque[memoryview] = deque()
        self._lines_bytes = 0
        self._started = False
        """Part of the first of `_lines` is on the wire: the rest must follow, or the connection go."""
        self.dropped_lines = 0

    def post(self, message: Mapping[str, object]) -> None:
        """Send without waiting. While the shim is away or slow, the newest lines are kept, the others
        counted.
        """
        if self._pid != os.getpid():
            self._start_anew()
        self._push(memoryview(_encode(message)))
        if self._connect():
            self._drain()

    def ask(self, message: Mapping[str, object], timeout_s: float = 10.0) -> dict[str, object] | None:
        """Send and wait for the answer. None when the shim is away or silent for `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        try:
            with dial_until(self._folder, deadline_s) as connection:
                _send_all(connection, memoryview(_encode(message)), deadline_s)
                return _receive_answer(connection, deadline_s)
        except (OSError, ValueError):
            return None

    def close(self, timeout_s: float) -> None:
        """Give what is still unsent this long, then let go."""
        if self._pid != os.getpid():
            return
        deadline_s = time.monotonic() + timeout_s
        while self._lines and self._connect():
            self._drain()
            if (
                not self._lines
                or self._socket is None
                or not _ready(self._socket, select.POLLOUT, deadline_s)
            ):
                break
        self._hang_up()

    def _push(self, line: memoryview) -> None:
        self._lines.append(line)
        self._lines_bytes += len(line)
        oldest = 1 if self._started else 0
        while self._lines_bytes > BUFFER_BYTES_MAX and len(self._lines) > oldest + 1:
            self._lines_bytes -= len(self._lines[oldest])
            del self._lines[oldest]
            self.dropped_lines += 1

    def _connect(self) -> bool:
        if self._socket is not None:
            return True
        if time.monotonic() < self._retry_at_s:
            return False
        try:
            self._socket = _dial(self._folder)
        except OSError:
            self._retry_at_s = time.monotonic() + RECONNECT_S
            return False
        return True

    def _drain(self) -> None:
        """Send what the socket takes at once."""
        assert self._socket is not None
        try:
            while self._lines:
                line = self._lines[0]
                sent = self._socket.send(line)
                self._lines_bytes -= sent
                self._started = sent < len(line)
                if self._started:
                    self._lines[0] = line[sent:]
                else:
                    self._lines.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        if self._started:  # the rest of a line makes no sense on the next connection
            self._lines_bytes -= len(self._lines.popleft())
            self.dropped_lines += 1
        self._started = False

    def _start_anew(self) -> None:
        """In a forked child: the connection and the lines are the parent's."""
        self._pid = os.getpid()
        self._started = False
        self._hang_up()
        self._lines.clear()
        self._lines_bytes = 0


def _encode(message: Mapping[str, object]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _dial(folder: Path) -> socket.socket:
    """Connect without waiting. Through the folder's descriptor: paths of unix sockets end at 107 bytes."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    descriptor = -1
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        link.connect(f"/proc/self/fd/{descriptor}/{_NAME}")
    except OSError:
        link.close()
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return link


def dial_until(folder: Path, deadline_s: float) -> socket.socket:
    """A connection to the shim, non-blocking. Raises OSError."""
    while True:
        try:
            return _dial(folder)
        except BlockingIOError:  # the listen queue is full: the shim lives, and offers nothing to wait on
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_DIAL_AGAIN_S)


def _send_all(connection: socket.socket, data: memoryview, deadline_s: float) -> None:
    while data:
        if not _ready(connection, select.POLLOUT, deadline_s):
            raise TimeoutError("the shim takes nothing")
        data = data[connection.send(data) :]


def _receive_answer(connection: socket.socket, deadline_s: float) -> dict[str, object]:
    received = b""
    while not received.endswith(b"\n"):
        if not _ready(connection, select.POLLIN, deadline_s):
            raise TimeoutError("the shim does not answer")
        data = connection.recv(ANSWER_BYTES_MAX)
        received += data
        if not data or len(received) > ANSWER_BYTES_MAX:
            raise ConnectionError("the shim closed the connection, or says more than an answer")
    answer = json.loads(received)
    if not isinstance(answer, dict):
        raise ValueError("the shim's answer is not an object")
    return answer


def _ready(connection: socket.socket, events: int, deadline_s: float) -> bool:
    poller = select.poll()
    poller.register(connection, events)
    left_s = deadline_s - time.monotonic()
    return left_s > 0 and bool(poller.poll(left_s * 1000))
