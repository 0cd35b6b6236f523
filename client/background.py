"""A process in the background: its own session, its output in a log file that is shown when it fails."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from ..spec.errors import PacelineError
from . import process as processes
from .upfile import Started

T = TypeVar("T")

POLL_S: Final = 0.02
LOG_BYTES_MAX: Final = 16 << 20
LOG_LINES_SHOWN: Final = 15
_CLIENT_ONLY: Final = (
    "PACELINE_SCHEDULER",
    "PACELINE_STATE",
    "PACELINE_TOKEN",
    "PACELINE_TOKEN_FILE",
    "PACELINE_CA",
)
"""Not for agents, whose jobs would inherit them."""


class StartFailed(PacelineError):
    """A process that `up` started ended, or did not get ready in time."""

    code = "start-failed"


def spawn(name: str, module: str, args: list[str], folder: Path, state: Path) -> Started:
    log = state / "up" / f"{name}.log"
    log.parent.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_suffix(".log.1"))
    environment = {key: value for key, value in os.environ.items() if key not in _CLIENT_ONLY}
    with log.open("ab") as file:
        # -P: the state folder, where it runs, is no place to import from.
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *args],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    process = processes.identify(child.pid)
    if process is None:
        child.wait()
        raise StartFailed(f"{name} ended at once\n{log_end(log)}", hint=f"its log: {log}")
    _children.append(child)
    return Started(name=name, process=process, log=str(log), state=str(folder))


_children: list[subprocess.Popen[bytes]] = []
"""Kept so that a long-lived caller of `up` does not leave zombies: see `reap`."""


def reap() -> None:
    _children[:] = [child for child in _children if child.poll() is None]


def wait(ready: Callable[[], T | None], started: Started, limit_s: float, verb: str) -> T:
    """What `ready` gives once it gives something. Raises StartFailed with the end of the log."""
    deadline = time.monotonic() + limit_s
    while (value := ready()) is None:
        check_running(started, deadline, verb)
        time.sleep(POLL_S)
    return value


def check_running(started: Started, deadline: float, verb: str) -> None:
    if not started.process.is_alive():
        reap()
        raise StartFailed(
            f"{started.name} ended before it could {verb}; the end of its log:\n{log_end(Path(started.log))}",
            hint=f"the whole log: {started.log}",
        )
    if time.monotonic() > deadline:
        raise StartFailed(
            f"{started.name} runs (pid {started.process.pid}) but does not {verb}; the end of its log:\n"
            f"{log_end(Path(started.log))}",
            hint="`pace down` stops it",
        )


def log_end(log: Path, lines: int = LOG_LINES_SHOWN) -> str:
    """The last lines of a log file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(empty)"
