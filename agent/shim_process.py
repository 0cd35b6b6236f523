"""What a shim process has for all the tasks that it serves, one after the other: its signals, what it waits
on, the door at which it is found. Standard library only.
"""

import json
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from . import kernel
from .shim_door import Connection, Door

_CAUGHT = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Spare(Protocol):
    """What is needed here of spare_rank.SpareRank, whose docstrings say what each does."""

    pid: int

    def give(self, launch: dict[str, Any], local_rank: int, log_fd: int) -> bool: ...
    def close(self) -> None: ...


class ShimProcess:
    """One per process. `on_signals` is the task's: it gets the numbers of those that came."""

    def __init__(self, memory: kernel.InitialMemory, keep: set[int]) -> None:
        """`memory`: what `ps` shows; `keep`: descriptors that ranks inherit."""
        self.pid = os.getpid()
        self.memory = memory
        self.keep = keep
        self.spare: Spare | None = None
        """A child that the next task's first rank may be; never beside a task's ranks."""
        self.selector = selectors.DefaultSelector()
        self.door = Door(self.selector)
        self.on_signals: Callable[[bytes], None] = _ignore
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)
        self.selector.register(self._wakeup, selectors.EVENT_READ, self._on_wakeup)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        for number in _CAUGHT:
            signal.signal(number, _heard)
        kernel.set_child_subreaper(True)

    def react(self, patience_s: float | None) -> None:
        """To all that is there, or comes in that time; None: however long it takes."""
        for key, _ in self.selector.select(patience_s):
            key.data()

    def react_to_words(self) -> bool:
        """Only to what connections have said by now. False: there is nothing."""
        ready = [key for key, _ in self.selector.select(0) if key.fileobj is not self._wakeup]
        for key in ready:
            key.data()
        return bool(ready)

    def fork(self) -> int:
        """0: in the child, which gets a SIGKILL when this process dies."""
        pid = os.fork()
        if pid == 0:
            self.close()
            kernel.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() != self.pid:
                os._exit(1)  # this process died between the two calls
            reset_signals()
        return pid

    def wait_for_task(
        self, control: Connection, patience_s: float | None
    ) -> tuple[str, dict[str, Any]] | None:
        """Between two tasks: the next one's folder and launch. Empty: the agent needs this process no longer,
        or is dead, or somebody ends it. None: nothing of that has come in `patience_s`. What still comes for
        the last task is answered, without effect."""
        kernel.set_name("pace-shim-free")
        found: list[tuple[str, dict[str, Any]]] = []

        def on_line(connection: Connection, line: bytes) -> None:
            message = json.loads(line)
            if message["op"] == "take" and "launch" in message:
                found.append((message["folder"], message["launch"]))
            elif message["op"] == "take":  # the ranks of the last task, which have ended
                self.door.send(connection, {"ok": False})
            elif message["op"] != "trim":
                self.door.send(connection, {"ok": True})

        def on_signals(numbers: bytes) -> None:
            if signal.SIGTERM in numbers:
                found.append(("", {}))
            if signal.SIGCHLD in numbers:
                self._reap_spare()

        self.door.on_line, self.on_signals = on_line, on_signals
        self.door.read_lines(control)
        until = None if patience_s is None else time.monotonic() + patience_s
        while not found and control in self.door.connections:
            left_s = None if until is None else until - time.monotonic()
            if left_s is not None and left_s <= 0:
                return None
            self.react(left_s)
        self.on_signals = _ignore
        return found[0] if found else ("", {})

    def drop_spare(self) -> None:
        """It ends, and is reaped as all that is below."""
        spare, self.spare = self.spare, None
        if spare is not None:
            spare.close()

    def _reap_spare(self) -> None:
        """Somebody has killed it: the next task's rank is forked when it is wanted."""
        if self.spare is not None and os.waitpid(self.spare.pid, os.WNOHANG)[0]:
            self.drop_spare()

    def close(self) -> None:
        """All that is open here. In a forked process, what is left to the garbage collector would later close
        descriptors of the same number that are somebody else's by then."""
        self._wakeup.close()
        self._wakeup_writer.close()
        self.drop_spare()
        self.door.close()
        self.selector.close()

    def _on_wakeup(self) -> None:
        self.on_signals(self._wakeup.recv(4096))


def read_launch(folder: str) -> dict[str, Any]:
    """What the agent has written for the task there."""
    with open(folder + "/launch.json", "rb") as file:  # noqa: PTH123
        launch: dict[str, Any] = json.loads(file.read())
    return launch


def reset_signals() -> None:
    """As a fresh Python process has them."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _heard(number: int, frame: object) -> None:
    """Not SIG_IGN: a program would inherit that."""


def _ignore(numbers: bytes) -> None:
    pass
