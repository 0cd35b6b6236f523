"""The line on which a rank tells its shim that it would outlive its gang, and is handed the next attempt.

A thread reads it, so that a rank hears of a lost peer also while it waits for that peer in a collective. The
line is one process's: a child forked from it has nothing to say there.
"""

import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..proto.shim_line import dial_until

_DIAL_S = 10.0


@dataclass(frozen=True, slots=True)
class NextAttempt:
    """What the shim hands over: this rank's variables, and the file that its output goes to."""

    variables: dict[str, str]
    log: Path


class StayLine:
    """`on_leave` is called in the line's thread, when the gang is known to be broken."""

    def __init__(self, folder: Path, on_leave: Callable[[], None]) -> None:
        self._on_leave = on_leave
        self._socket = dial_until(folder, time.monotonic() + _DIAL_S)
        self._socket.setblocking(True)
        self._attempts: queue.SimpleQueue[NextAttempt | None] = queue.SimpleQueue()
        self.broken = False
        """The shim has said that a peer is gone."""
        threading.Thread(target=self._read, name="paceline-stay", daemon=True).start()

    def stay(self, rank: int) -> None:
        """From now on this rank can go on when a peer is lost."""
        self.broken = False
        self._send({"op": "stay", "rank": rank})

    def wait_for_attempt(self) -> NextAttempt | None:
        """The gang is left, and nothing of it is used any more: wait for the next one. None: there will be
        none for this process, which the shim ends.
        """
        self._send({"op": "arrived"})
        return self._attempts.get()

    def close(self) -> None:
        """This rank stays no longer: when a peer falls, it is stopped as any other."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the shim has closed it
            return

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # the shim is gone; the thread has seen it, or will
            self._attempts.put(None)

    def _read(self) -> None:
        with self._socket, self._socket.makefile("rb") as lines:
            try:
                for line in lines:
                    self._on_message(json.loads(line))
            except OSError:  # reset: as its end
                pass
        self._attempts.put(None)

    def _on_message(self, message: dict[str, Any]) -> None:
        if "leave" in message:
            self.broken = True
            self._on_leave()
        elif "attempt" in message:
            told = message["attempt"]
            self._attempts.put(NextAttempt(told["environment"], Path(told["log"])))
