"""Interpreters that jobs bring: a path as it is, or a virtual environment that is built here once and kept.

STATE/environments/KEY/     building.py; KEY is the hash of the lines, the Python and the platform
    lock, log, builder      held while somebody builds there; what that said; its process, "PID STARTTIME"
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..content.writing import remove_tree
from ..proto.generated import agent_pb2
from . import kernel
from .launch import Refusal, base_environment
from .tree_cache import Stopped

BUILD_S_MAX: Final = 3600.0
_COUNT_MAX: Final = 50
_POLL_S: Final = 0.1
_TOLD_LINES: Final = 12
_TOLD_CHARS: Final = 2000
_LOG_READ_BYTES: Final = 64 << 10
_DISK_FULL: Final = re.compile(r"No space left on device|Disk quota exceeded|os error 28")
_NO_NETWORK: Final = re.compile(
    r"Temporary failure in name resolution|Name or service not known|NewConnectionError|Connection refused"
    r"|Network is unreachable|No route to host|Connection reset|timed out|dns error|error sending request"
    r"|no such host|server misbehaving|i/o timeout|TLS handshake timeout",
    re.IGNORECASE,
)
NO_NETWORK: Final = "no network"


@dataclass(frozen=True, slots=True)
class Found:
    """An interpreter, and what was done for it; `log`: of a build that was made for this task."""

    interpreter: str
    told: str
    log: bytes = b""


class EnvironmentCache:
    """Blocks on the disk and for builds; may be used from several threads, of one key by one at a time.
    Methods raise OSError where the disk refuses."""

    def __init__(self, root: Path, bytes_max: int, interpreter: str) -> None:
        """`interpreter`: the node's own."""
        self._root = root
        self._bytes_max = bytes_max
        self._interpreter = interpreter
        self._uv = shutil.which("uv") or ""
        self._closed = threading.Event()

    def begin(self) -> None:
        """Once. What is not whole goes, unless somebody still builds it."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in self._root.iterdir():
            if not (folder / "built.json").exists():
                self._remove(folder)

    def key(self, need: agent_pb2.Need) -> str:
        """Of what is built for it. Raises Refusal where that cannot be here."""
        python = self._python(need.python_version)
        said = [sorted(need.requirements), python, _version(python), os.uname().machine]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]

    def find(self, key: str) -> Found | None:
        """What was built before."""
        folder = self._root / key
        python = folder / "venv" / "bin" / "python"
        with contextlib.suppress(FileNotFoundError):
            os.utime(folder / "built.json")
            if python.exists():
                return Found(str(python), "kept")
            (folder / "built.json").unlink()  # its Python has gone from the node
        return None

    def close(self) -> None:
        """Wait for nothing any more; what is being built goes on."""
        self._closed.set()

    def build(
        self, need: agent_pb2.Need, key: str, pinned: Collection[str], unwanted: Callable[[], bool]
    ) -> Found:
        """The environment of that key, which was not there. Once it is `unwanted`, whoever builds it is
        ended. Raises Refusal, Stopped."""
        folder = self._root / key
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _locked(lock):  # what an agent before this one has begun goes on
                self._wait(folder, unwanted)
            if (found := self.find(key)) is not None:
                return found
            self._check(folder, unwanted)
            self._make_room(pinned)
            self._build(need, folder, lock, unwanted)
        finally:
            os.close(lock)
        found = self.find(key)
        if found is None:
            raise Refusal(
                "environment-lost", f"environment: {folder} was removed by somebody", transient=True
            )
        said = json.loads((folder / "built.json").read_bytes())
        return Found(found.interpreter, f"built with {said['by']}", (folder / "log").read_bytes())

    def _build(self, need: agent_pb2.Need, folder: Path, lock: int, unwanted: Callable[[], bool]) -> None:
        remove_tree(folder / "venv")
        asked = {
            "requirements": list(need.requirements),
            "python": self._python(need.python_version),
            "uv": self._uv,
            "ours": str(Path(__file__).parents[1]),
        }
        (folder / "asked.json").write_text(json.dumps(asked))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.building", str(folder), str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                pass_fds=[lock],
                start_new_session=True,
            )
        (folder / "builder").write_text(f"{process.pid} {kernel.start_time(process.pid)}")
        until = time.monotonic() + BUILD_S_MAX
        while process.poll() is None:
            if time.monotonic() > until:
                os.killpg(process.pid, signal.SIGKILL)
            try:
                self._wait(folder, unwanted)
            except Stopped:
                if not self._closed.is_set():  # it was ended
                    process.wait()
                    remove_tree(folder / "venv")
                raise
        if process.returncode != 0:
            remove_tree(folder / "venv")
            raise _broken(folder / "log", process.returncode)

    def _wait(self, folder: Path, unwanted: Callable[[], bool]) -> None:
        """A moment. Raises Stopped."""
        self._check(folder, unwanted)
        self._closed.wait(_POLL_S)

    def _check(self, folder: Path, unwanted: Callable[[], bool]) -> None:
        """Raises Stopped."""
        if self._closed.is_set():
            raise Stopped
        if unwanted():
            _end_builder(folder)
            raise Stopped

    def _make_room(self, pinned: Collection[str]) -> None:
        """The least recently used go, for one more."""
        kept = sorted(self._whole(), key=lambda each: each[0])
        size, count = sum(each[1] for each in kept), len(kept)
        for _, its_bytes, folder in kept:
            if size <= self._bytes_max and count < _COUNT_MAX:
                return
            if folder.name not in pinned:
                self._remove(folder)
                size, count = size - its_bytes, count - 1

    def _whole(self) -> Iterator[tuple[int, int, Path]]:
        for folder in self._root.iterdir():
            with contextlib.suppress(OSError, ValueError):
                mark = folder / "built.json"
                yield mark.stat().st_mtime_ns, json.loads(mark.read_bytes())["bytes"], folder

    def _remove(self, folder: Path) -> None:
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            remove_tree(folder)
            return
        try:
            if _locked(lock):
                (folder / "built.json").unlink(missing_ok=True)
                remove_tree(folder)
        finally:
            os.close(lock)

    def _python(self, version: str) -> str:
        """What the environment is made with; a bare version: uv finds it."""
        if not version or _version(self._interpreter).startswith(f"{version}."):
            return self._interpreter
        if found := shutil.which(f"python{version}"):
            return found
        if self._uv:
            return version
        raise Refusal(
            "no-python",
            f"environment: this node has no Python {version}: no python{version} on PATH, and no uv",
            transient=True,
            hint="Leave python_version out, or install it on the nodes.",
        )


def interpreter_at(path: str) -> str:
    """Of a path that a job names. Raises Refusal."""
    python = Path(path, "bin", "python") if Path(path).is_dir() else Path(path)
    if python.is_file() and os.access(python, os.X_OK):
        return str(python)
    what = f"{path} has no bin/python" if Path(path).is_dir() else f"{path} is not an interpreter here"
    raise Refusal(
        "no-environment",
        f"environment: {what}",
        transient=True,
        hint="It must have the same path on every node; requirements are built on each.",
        environment=path,
    )


_VERSIONS: dict[str, str] = {sys.executable: sys.version}


def _version(python: str) -> str:
    """What it says of itself; of a bare version, that."""
    if python not in _VERSIONS and python.startswith("/"):
        code = "import sys; print(sys.version)"
        try:
            said = subprocess.run(
                [python, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False
            )
        except subprocess.TimeoutExpired:
            raise Refusal("no-python", f"environment: {python} does not answer", transient=True) from None
        _VERSIONS[python] = said.stdout.strip()
    return _VERSIONS.get(python, python)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end_builder(folder: Path) -> None:
    """With all that it has started."""
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        pid, started = map(int, (folder / "builder").read_text().split())
        if kernel.is_alive(pid, started):
            os.killpg(pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    outside: dict[str, Any] = base_environment(os.environ)
    kept = {
        name: value
        for name, value in outside.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}


def _broken(log: Path, code: int) -> Refusal:
    text = log.read_bytes()[-_LOG_READ_BYTES:].decode("utf-8", "replace")
    why = trouble_of(text, code)
    return Refusal(
        "broken-environment",
        f"environment: it could not be built: {why or f'exit code {code}'};"
        f" the log ends with\n{_end_of(text)}",
        transient=bool(why),
        hint=f"All of it is in {log} on this node.",
    )


def trouble_of(text: str, code: int) -> str:
    """Of what failed with that output: why another try may go well; empty: it will not."""
    if code < 0:
        return f"killed by signal {-code}"
    if _DISK_FULL.search(text):
        return "the disk is full"
    return NO_NETWORK if _NO_NETWORK.search(text) else ""


def _end_of(text: str) -> str:
    """As much of a log as a refusal tells."""
    return "\n".join(text.strip().splitlines()[-_TOLD_LINES:])[-_TOLD_CHARS:]
