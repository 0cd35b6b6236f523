"""A task as the agent makes it, with a shim's socket that answers as contributing/contracts.md says
and remembers all.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paceline.proto.notice import Notice


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = 60.0) -> None:
    """Poll until it holds; AssertionError after the deadline."""
    until_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until_s, f"not within {deadline_s} s: {what}"
        time.sleep(0.005)


class FakeTask:
    """A task's folder and the job's. `accept` turns what was told into the next attempt's task."""

    def __init__(
        self, root: Path, *, job: int = 7, attempt: int = 1, task: int = 0, **policy: object
    ) -> None:
        self.job, self.attempt = job, attempt
        self.root = root
        self.policy = policy
        self.job_folder = root / f"job-{job}"
        self.folder = root / "tasks" / f"{job}.{attempt}.{task}"
        self.memory_folder = root / f"memory-{attempt}" / str(job)
        self.folder.mkdir(parents=True)
        self.job_folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "notice").write_bytes(Notice().encode())
        self.accepted: list[dict[str, Any]] = []
        self.write()

    def write(self) -> None:
        """As protobuf's JSON mapping has it: 64-bit integers are strings."""
        document = {
            "task": {"job": str(self.job), "attempt": self.attempt},
            "checkpoints": self.accepted,
            **self.policy,
        }
        (self.folder / "task.json").write_text(json.dumps(document))

    def variables(self) -> dict[str, str]:
        return {
            "PACELINE_JOB": str(self.job),
            "PACELINE_ATTEMPT": str(self.attempt),
            "PACELINE_TASK": "0",
            "PACELINE_JOB_NAME": "test",
            "PACELINE_TASK_FOLDER": str(self.folder),
            "PACELINE_JOB_FOLDER": str(self.job_folder),
            "PACELINE_MEMORY_FOLDER": str(self.memory_folder),
        }

    def give_notice(self) -> None:
        with (self.folder / "notice").open("r+b") as file:
            file.write(b"\1")

    def ack(self, seq: int) -> None:
        (self.folder / "acked").write_text(f"{seq:020d}")

    def next_attempt(self, told: list[dict[str, Any]], *, same_node: bool = False) -> "FakeTask":
        """The task of the attempt after this one, when the scheduler has accepted all these, oldest first. On
        another node there is nothing in memory.
        """
        new = [
            {
                "step": str(one["step"]),
                "attempt": self.attempt,
                "path": one["path"],
                "manifest_hash": one["manifest_hash"],
            }
            for one in reversed(told)
        ]
        task = FakeTask(self.root, job=self.job, attempt=self.attempt + 1, **self.policy)
        task.accepted = new + self.accepted
        if same_node:
            task.memory_folder = self.memory_folder
        task.write()
        return task


class FakeShim:
    """Serves one task folder from a thread. `mode`: answer, refuse, silent, or dying: it takes note of what
    comes next and is gone. `auto_ack` writes `acked` at once.
    """

    def __init__(self, task: FakeTask, *, mode: str = "answer", auto_ack: bool = False) -> None:
        self.task = task
        self.mode = mode
        self.auto_ack = auto_ack
        self.messages: list[dict[str, Any]] = []
        self.seq = 0
        self._connections: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(task.folder, os.O_PATH | os.O_DIRECTORY)
        self._server.bind(f"/proc/self/fd/{folder}/shim.sock")
        os.close(folder)
        self._server.listen(128)
        self._servers: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def of(self, op: str) -> list[dict[str, Any]]:
        return [message for message in list(self.messages) if message["op"] == op]

    def close(self) -> None:
        """The listener first: then no connection is accepted after the others were closed."""
        _hang_up(self._server)
        self._acceptor.join(5)
        assert not self._acceptor.is_alive()
        for connection in self._connections:
            _hang_up(connection)
        for thread in self._servers:
            thread.join(5)
        (self.task.folder / "shim.sock").unlink(missing_ok=True)

    def __enter__(self) -> "FakeShim":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._servers.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                self._on_message(connection, json.loads(line))

    def _on_message(self, connection: socket.socket, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if message["op"] == "metrics" or self.mode == "silent":
            return
        if self.mode == "dying":
            _hang_up(self._server)
            _hang_up(connection)
            return
        answer: dict[str, Any] = {"ok": False, "error": "superseded"}
        if self.mode == "answer":
            self.seq += 1
            message["seq"] = self.seq
            answer = {"ok": True, "seq": self.seq}
            if self.auto_ack:
                self.task.ack(self.seq)
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
