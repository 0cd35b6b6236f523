"""The shim's door: its socket in the task's folder, who is connected, lines in and lines out.

Whoever dials is a job's own code or an agent: lines are bounded, so are connections, and nobody who does not
read holds up the rest. Standard library only.
"""

import contextlib
import json
import os
import selectors
import socket
from collections.abc import Callable, Collection
from typing import Any

from .messages import LINE_BYTES_MAX

_CONNECTIONS_MAX = 1024


class Connection:
    """Someone at the socket: a rank, or the agent."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.watching = False
        self.told_bytes = -1
        self.incoming = b""
        self.outgoing = b""
        self.events = selectors.EVENT_READ
        self._fd = -1

    def receive(self) -> bytes:
        """What has come. A descriptor that came with it is kept until it is asked for, or another comes."""
        data, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 1)
        for fd in fds:
            os.set_inheritable(fd, False)
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = fd
        return data

    def take_fd(self) -> int:
        """The descriptor that came last; -1: none."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        self.sock.close()
        if self._fd >= 0:
            os.close(self.take_fd())


class Door:
    """`on_line(connection, line)` for every line that comes; what is said goes through `send`.

    The socket is the process's; a task's folder has a link to it while the task is served. (Where many files
    were deleted just before, making a new one costs more than all else that is done for a small task.)
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self.on_line: Callable[[Connection, bytes], None] = _refuse
        self.connections: set[Connection] = set()
        self._listener: socket.socket | None = None
        self._name = f"{os.getpid()}.sock"
        self._home = self._shown = ""

    def show(self, folder: str) -> None:
        """Make FOLDER/shim.sock, whose FOLDER is two below the agent's state folder. Raises OSError."""
        if self._listener is None:
            self._home = os.path.dirname(os.path.dirname(folder)) + "/shims"  # noqa: PTH120
            self._listener = self._bind()
            self._selector.register(self._listener, selectors.EVENT_READ, self._on_dial)
        os.link(f"{self._home}/{self._name}", folder + "/shim.sock")
        self._shown = folder

    def hide(self, but: Collection[Connection]) -> None:
        """The task is over: nobody gets in any more, and who is in leaves."""
        if self._shown:
            with contextlib.suppress(FileNotFoundError):  # the folder is gone
                os.unlink(self._shown + "/shim.sock")  # noqa: PTH108
            self._shown = ""
        while self._listener is not None and self._on_dial():
            pass
        for connection in self.connections - set(but):
            self.drop(connection)

    def _bind(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):  # of a dead process that had this number
            os.unlink(f"{self._home}/{self._name}")  # noqa: PTH108
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        home_fd = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{home_fd}/{self._name}")  # the folder's own path may be too long
        finally:
            os.close(home_fd)
        listener.listen(128)
        return listener

    def leave(self) -> None:
        """The process ends: its socket goes."""
        if self._listener is not None:
            with contextlib.suppress(OSError):  # the agent clears what is left there
                os.unlink(f"{self._home}/{self._name}")  # noqa: PTH108

    def close(self) -> None:
        """Our ends of the socket and of all connections."""
        for each in (self._listener, *self.connections):
            if each is not None:
                each.close()

    def _on_dial(self) -> bool:
        """False: nobody waits there any more."""
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:  # nobody; or the caller has gone already, or no descriptor is free: it dials again
            return False
        if not self._shown or len(self.connections) >= _CONNECTIONS_MAX:
            sock.close()
        else:
            self.add(Connection(sock))
        return True

    def add(self, connection: Connection) -> None:
        """Listen to it from now on."""
        connection.sock.setblocking(False)
        self.connections.add(connection)
        self._selector.register(connection.sock, selectors.EVENT_READ, lambda: self._on_ready(connection))

    def drop(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
            self._selector.unregister(connection.sock)
            connection.close()

    def _on_ready(self, connection: Connection) -> None:
        if connection.outgoing:
            self._push(connection)
        try:
            data = connection.receive() if connection in self.connections else b""
        except (BlockingIOError, ConnectionResetError):
            return  # reset: it left without reading our answers; what it had said comes with the next call
        connection.incoming += data
        self.read_lines(connection)
        if not data or len(connection.incoming) > LINE_BYTES_MAX:
            self.drop(connection)

    def read_lines(self, connection: Connection) -> None:
        """Take what has come of it so far."""
        *lines, connection.incoming = connection.incoming.split(b"\n")
        for line in lines:
            self.on_line(connection, line)

    def send(self, connection: Connection, message: dict[str, Any]) -> None:
        """One line, as soon as it takes it; nothing when it is gone."""
        if connection in self.connections:
            connection.outgoing += json.dumps(message, separators=(",", ":")).encode() + b"\n"
            self._push(connection)

    def _push(self, connection: Connection) -> None:
        try:
            sent = connection.sock.send(connection.outgoing)
            connection.outgoing = connection.outgoing[sent:]
        except BlockingIOError:
            pass
        except OSError:  # it no longer listens, but what it has said is still to be read
            connection.outgoing, connection.watching = b"", False
        if len(connection.outgoing) > LINE_BYTES_MAX:  # asks and asks, and never reads
            self.drop(connection)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.outgoing else 0)
        if events != connection.events:
            connection.events = events
            self._selector.modify(connection.sock, events, self._selector.get_key(connection.sock).data)


def _refuse(connection: Connection, line: bytes) -> None:
    """Between two tasks nothing is to be said."""
