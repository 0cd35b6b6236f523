"""The agent's state folder: one agent at a time, who this node is, which cluster it belongs to.

The lock is the kernel's (flock): it goes with the process however that ends, and is not inherited.
"""

import fcntl
import json
import os
import re
import uuid
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ..spec.errors import Conflict, PacelineError

_NODE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class WrongCluster(PacelineError):
    """The scheduler at that address keeps another cluster than the one this node belongs to."""

    code = "wrong-cluster"


class BrokenFolder(PacelineError):
    """The state folder cannot be used: no permission, read-only, damaged."""

    code = "state-folder"


class StateFolder:
    """Held from construction to `close`. Raises Conflict when another agent holds it, else BrokenFolder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BrokenFolder(f"the state folder {path} cannot be used: {error}") from error
        try:
            self._take()
            self.node_id = self._node_id()
        except BaseException:
            os.close(self._lock)
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise Conflict(
                f"another agent (pid {holder}) runs with the state folder {self.path}",
                hint="Give each agent its own folder with --state, or stop that one first.",
                pid=holder,
            ) from error
        # Of a fixed length, so that it is written in place also when the disk is full.
        os.pwrite(self._lock, f"{os.getpid():<20}".encode(), 0)

    def _node_id(self) -> str:
        file = self.path / "node-id"
        try:
            text = file.read_text().strip()
        except FileNotFoundError:
            text = uuid.uuid4().hex
            write_file(file, text + "\n")
        except OSError as error:
            raise BrokenFolder(f"{file} cannot be read: {error}") from error
        if not _NODE_ID.fullmatch(text):
            raise BrokenFolder(
                f"{file} holds {text[:64]!r}, which is not a node id",
                hint="Restore it, or remove it to join as a new node.",
            )
        return text

    def check_cluster(self, cluster_id: str) -> None:
        """Remember the first cluster; raises WrongCluster at any other."""
        file = self.path / "cluster-id"
        try:
            known = file.read_text().strip()
        except FileNotFoundError:
            known = ""
        if not known:
            write_file(file, cluster_id + "\n")
        elif known != cluster_id:
            raise WrongCluster(
                f"this node belongs to cluster {known}, and the scheduler keeps cluster {cluster_id}",
                hint=f"Check --scheduler; to move the node for good, use another --state or remove {file}.",
                known=known,
                met=cluster_id,
            )

    def announce(self, name: str, scheduler: str) -> None:
        """Write agent.json: whoever started this agent waits for it."""
        facts = {
            "name": name,
            "node_id": self.node_id,
            "pid": os.getpid(),
            "start_time": start_time(os.getpid()),
            "scheduler": scheduler,
        }
        write_file(self.path / "agent.json", json.dumps(facts) + "\n")

    def close(self) -> None:
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat: with the pid it names a process for good."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def write_file(path: Path, text: str) -> None:
    """Whole or not at all, also over a crash."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise BrokenFolder(f"{path} cannot be written: {error}") from error
