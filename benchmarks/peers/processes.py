"""Processes of a benchmark: started in a session of their own, waited for by condition, ended by pid.

Nothing here kills by name; what `Crew` started, `Crew` ends, also when the benchmark fails.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil


class Crew:
    """The background processes of one peer; leaving the `with` ends them, the last started first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            end(process)

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start `command`; its output goes to NAME.out in the folder unless `output` is given."""
        with (self.folder / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output or log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._processes.append(process)
        return process


def end(process: subprocess.Popen[bytes], grace_s: float = 5.0) -> None:
    """Ask the process and all its descendants to stop, then make them."""
    family = descendants(process.pid)
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for member in family:
            signal_quietly(member, signal_number)
        if process.poll() is None and signal_number == signal.SIGTERM:
            process.send_signal(signal_number)
        _, family = psutil.wait_procs(family, timeout=grace_s)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait(grace_s)


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def signal_quietly(process: psutil.Process, signal_number: int) -> None:
    """Signal a process that may be gone already; psutil checks that the pid was not reused."""
    try:
        process.send_signal(signal_number)
    except psutil.NoSuchProcess:
        return


def free_port(count: int = 1) -> int:
    """The first of `count` neighbouring ports that nobody holds now."""
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise OSError(f"found no {count} neighbouring free ports in 100 tries")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


def run(
    command: Sequence[str], *, timeout_s: float = 120.0, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command to its end and return its output; raises with both streams when it fails."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
