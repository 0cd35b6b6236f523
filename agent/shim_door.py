"""The shim's door: its socket in the task's folder, who is connected, lines in and lines out.

Whoever dials is a job's own code or an agent: lines are bounded, so are connections, and nobody who does not
read holds up the rest. Standard library only.
"""

import json
import os
import selectors
import socket
from collections.abc import Callable
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


class Door:
    """`on_line(connection, line)` for every line that comes; what is said goes through `send`."""

    def __init__(
        self, selector: selectors.BaseSelector, on_line: Callable[[Connection, bytes], None]
    ) -> None:
        self._selector = selector
        self._on_line = on_line
        self.connections: set[Connection] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def open(self, folder: str) -> None:
        """Make FOLDER/shim.sock. Raises OSError."""
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._listener.bind(f"/proc/self/fd/{folder_fd}/shim.sock")  # the folder's own path may be too long
        os.close(folder_fd)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._on_dial)

    def close(self) -> None:
        """The socket and all connections."""
        for sock in (self._listener, *(each.sock for each in self.connections)):
            sock.close()

    def _on_dial(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # the caller has gone already, or no descriptor is free: it dials again
            return
        if len(self.connections) >= _CONNECTIONS_MAX:
            sock.close()
            return
        self.add(Connection(sock))

    def add(self, connection: Connection) -> None:
        """Listen to it from now on."""
        connection.sock.setblocking(False)
        self.connections.add(connection)
        self._selector.register(connection.sock, selectors.EVENT_READ, lambda: self._on_ready(connection))

    def drop(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
            self._selector.unregister(connection.sock)
            connection.sock.close()

    def _on_ready(self, connection: Connection) -> None:
        if connection.outgoing:
            self._push(connection)
        try:
            data = connection.sock.recv(1 << 16) if connection in self.connections else b""
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
            self._on_line(connection, line)

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
