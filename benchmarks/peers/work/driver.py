"""A peer that must live in an interpreter or a namespace of its own is driven by JSON lines over a pipe.

`Driver` is our end. `claim_stdout` and `serve` are the peer's: what it prints goes to standard error, so
that it cannot be taken for an answer. Standard library alone: other interpreters run it.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO


class Driver:
    """Starts the peer's process, asks it to do things, and ends it by closing its input."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.out"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, operation: str, *, timeout_s: float = 120.0, **arguments: object) -> Any:
        """Have one operation done; raises with the end of the peer's log when it fails."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"op": operation, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer(operation, timeout_s)

    def _answer(self, operation: str, timeout_s: float) -> Any:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            end = "ended" if ready else f"gave no answer in {timeout_s} s"
            raise RuntimeError(f"{self.name}: {operation}: {end}\n{self._log.read_text()[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {operation}: {answer['error']}")
        return answer["result"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # its session: what it has forked goes with it
            self._process.wait(5)
        self._process.stdout.close()


def claim_stdout() -> TextIO:
    """To be called first: from here on standard output is for answers, and prints go to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def serve(answers: TextIO, **operations: Callable[..., Any]) -> None:
    """Answer requests from standard input until it closes."""
    for line in sys.stdin:
        request = json.loads(line)
        operation = operations[request.pop("op")]
        try:
            answers.write(json.dumps({"result": operation(**request)}) + "\n")
        except Exception as error:  # noqa: BLE001 - told to the other side, which raises it
            answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
