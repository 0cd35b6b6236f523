"""The agent's end of a connection to a living shim: it hears the journal grow, and says stop and trim."""

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BUFFER_BYTES_MAX = 1 << 20


class ShimLink:
    """Belongs to the event loop's thread. `on_growth()` whenever the shim says so; `on_free()` when it is
    done with its task and would take another; `on_end()` once, when the connection has ended: the shim is
    gone, or has dropped us. Whoever the link is handed to sets them anew."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.on_growth: Callable[[], None] = _nothing
        self.on_end: Callable[[], None] = _nothing
        self.on_free: Callable[[], None] = self.close
        self._incoming = b""
        self._outgoing = b""
        self._answers: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._on_readable)

    @property
    def alive(self) -> bool:
        return self._sock.fileno() >= 0

    def send(self, message: dict[str, Any]) -> None:
        """Without an answer. Dropped when the connection has ended or is choked."""
        if self.alive and len(self._outgoing) < _BUFFER_BYTES_MAX:
            self._outgoing += json.dumps(message).encode() + b"\n"
            self._push()

    async def ask(self, message: dict[str, Any], answer_s: float, fd: int = -1) -> dict[str, Any]:
        """`fd`: a descriptor to go with it. Raises TimeoutError when there is no answer in time,
        ConnectionError when the connection ends."""
        if fd >= 0:
            self._pass(fd)
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._answers.append(answer)
        self.send(message)
        if not self.alive:
            raise ConnectionError("the shim is gone")
        async with asyncio.timeout(answer_s):
            return await answer

    def _pass(self, fd: int) -> None:
        """Before the line that it belongs to, with a blank that changes nothing of it."""
        if self._outgoing:
            raise ConnectionError("the shim does not read")
        try:
            socket.send_fds(self._sock, [b" "], [fd])
        except OSError as error:
            raise ConnectionError(f"the shim takes no descriptor: {error}") from error

    def close(self) -> None:
        """Let go, without `on_end`."""
        if self.alive:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            for answer in self._answers:
                if not answer.done():
                    answer.set_exception(ConnectionError("the shim is gone"))
                    answer.exception()

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        grown = free = False
        for line in lines:
            message = json.loads(line)
            if "journal" in message:
                grown = True
                free = free or "free" in message
            elif self._answers and not (answer := self._answers.popleft()).done():
                answer.set_result(message)
        if not data:
            self.close()
            self.on_end()
            return
        if grown:
            self.on_growth()
        if free:
            self.on_free()  # of whom `on_growth` has handed it to

    def _push(self) -> None:
        try:
            sent = self._sock.send(self._outgoing)
        except BlockingIOError:
            sent = 0
        except OSError:  # its end is seen by the reader
            self._outgoing = b""
            return
        self._outgoing = self._outgoing[sent:]
        if self._outgoing:
            self._loop.add_writer(self._sock, self._push)
        else:
            self._loop.remove_writer(self._sock)


def _nothing() -> None:
    pass


def dial(folder: Path) -> socket.socket:
    """A connection to the shim of that task folder. Raises OSError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        link.connect(f"/proc/self/fd/{descriptor}/shim.sock")  # the folder's own path may be too long
    except OSError:
        link.close()
        raise
    finally:
        os.close(descriptor)
    return link
