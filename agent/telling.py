"""What a task's shim has to tell: durable in the journal before anyone hears of it. Standard library only."""

from typing import Any

from .journal import Journal
from .shim_door import Connection, Door


class Telling:
    """Of one task, whose journal is at `path`."""

    def __init__(self, path: str, door: Door) -> None:
        self.journal = Journal(path)
        self._door = door
        self._replies: list[tuple[Connection, dict[str, Any]]] = []
        self._durable = False

    def append(self, kind: str, fields: dict[str, Any]) -> int:
        """An entry that the next flush makes durable; its seq."""
        self._durable = True
        return self.journal.append(kind, fields)

    def reply(self, connection: Connection, message: dict[str, Any]) -> None:
        """Said when what was appended by now is durable."""
        self._replies.append((connection, message))

    def flush(self, but: Connection | None) -> bool:
        """Make durable what this round brought, then tell whoever waits: one fsync however many there are.
        `but`: who is told when all is closed. False: the disk does not take it now; nobody is told, and a
        later round tries again."""
        try:
            self.journal.flush(self._durable)
        except OSError:
            return False
        self._durable = False
        replies, self._replies = self._replies, []
        for connection, reply in replies:
            self._door.send(connection, reply)
        for connection in list(self._door.connections):
            if (
                connection.watching
                and connection.told_bytes != self.journal.size_bytes
                and not connection.outgoing
                and connection is not but
            ):
                connection.told_bytes = self.journal.size_bytes
                self._door.send(connection, {"journal": self.journal.size_bytes})
        return True
