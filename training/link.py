"""The line to the shim: JSON lines over the unix socket in the task's folder.

Training never waits for it and never dies of it, except where an answer is asked for, and then for a bounded
time. What cannot be sent now waits in a bounded buffer whose oldest lines go first. A forked child makes
a connection of its own, so that two processes never mix bytes on one.
"""

import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

BUFFER_BYTES_MAX = 256 * 1024
RECONNECT_S = 1.0
ANSWER_BYTES_MAX = 64 * 1024
_NAME = "shim.sock"


class ShimLink:
    """One rank's connection. `post` is fire and forget; `ask` waits for the one answer, None if there is
    none.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._socket: socket.socket | None = None
        self._pid = os.getpid()
        self._retry_at_s = 0.0
        self._lines: deque[memoryview] = deque()
        self._lines_bytes = 0
        self._started = False
        """The first of `_lines` is on the wire in part: it must be finished or the connection dropped."""
        self._received = b""
        self._answers_due = 0
        self.dropped_lines = 0

    def post(self, message: Mapping[str, object]) -> None:
        """Send without waiting. When the shim is away or slow, the oldest unsent lines are dropped and
        counted.
        """
        self._push(message)
        if self._connect():
            self._drain()

    def ask(self, message: Mapping[str, object], timeout_s: float = 10.0) -> dict[str, object] | None:
        """Send and wait for the answer. None when the shim is away or silent for `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        if not self._connect_until(deadline_s):
            return None
        self._push(message)
        self._answers_due += 1
        try:
            self._drain_until(deadline_s)
            answer: dict[str, object] | None = None
            while self._answers_due:
                answer = self._next_answer(deadline_s)
                self._answers_due -= 1
        except (OSError, ValueError):
            self._drop_connection()
            self._forget_lines()  # the question is among them, and nobody awaits its answer any more
            return None
        return answer

    def flush(self, timeout_s: float) -> None:
        """Give what is still unsent this long; used when the process ends."""
        if not self._lines or not self._connect():
            return
        with suppress(OSError):
            self._drain_until(time.monotonic() + timeout_s)

    def close(self) -> None:
        self._drop_connection()

    def _push(self, message: Mapping[str, object]) -> None:
        line = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        self._lines.append(line)
        self._lines_bytes += len(line)
        oldest = 1 if self._started else 0
        while self._lines_bytes > BUFFER_BYTES_MAX and len(self._lines) > oldest + 1:
            self._lines_bytes -= len(self._lines[oldest])
            del self._lines[oldest]
            self.dropped_lines += 1

    def _connect(self) -> bool:
        if (
            self._pid != os.getpid()
        ):  # forked: the parent's connection is not ours to write to, nor are its lines
            self._pid = os.getpid()
            self._drop_connection()
            self._forget_lines()
        if self._socket is not None:
            return True
        if time.monotonic() < self._retry_at_s:
            return False
        try:
            self._socket = _dial(self._folder)
            self._socket.send(json.dumps({"op": "hello", "rank": self._rank}).encode() + b"\n")
        except BlockingIOError:  # the shim's listen queue is full: it lives
            self._drop_connection()
            return False
        except OSError:
            self._drop_connection()
            self._retry_at_s = time.monotonic() + RECONNECT_S
            return False
        self._answers_due = 1
        return True

    def _connect_until(self, deadline_s: float) -> bool:
        self._retry_at_s = 0.0
        while not self._connect():
            if self._retry_at_s or time.monotonic() > deadline_s:
                return False
            time.sleep(0.01)
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
            self._drop_connection()

    def _drain_until(self, deadline_s: float) -> None:
        while self._lines:
            self._drain()
            if self._socket is None:
                raise ConnectionError("the shim closed the connection")
            if self._lines:
                self._wait(deadline_s, write=True)

    def _next_answer(self, deadline_s: float) -> dict[str, object]:
        assert self._socket is not None
        while b"\n" not in self._received:
            try:
                data = self._socket.recv(ANSWER_BYTES_MAX)
            except BlockingIOError:
                self._wait(deadline_s, write=False)
                continue
            if not data:
                raise ConnectionError("the shim closed the connection")
            self._received += data
            if len(self._received) > ANSWER_BYTES_MAX:
                raise ValueError("the shim's answer is longer than any answer may be")
        line, self._received = self._received.split(b"\n", 1)
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("the shim's answer is not an object")
        return answer

    def _wait(self, deadline_s: float, *, write: bool) -> None:
        poller = select.poll()
        assert self._socket is not None
        poller.register(self._socket, select.POLLOUT if write else select.POLLIN)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not poller.poll(left_s * 1000):
            raise TimeoutError("the shim does not answer")

    def _forget_lines(self) -> None:
        self.dropped_lines += len(self._lines)
        self._lines.clear()
        self._lines_bytes = 0

    def _drop_connection(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        if self._started:  # the rest of a line makes no sense on the next connection
            self._lines_bytes -= len(self._lines.popleft())
        self._started = False
        self._received = b""
        self._answers_due = 0


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
