"""One node of a job's own Ray cluster, for the life of the attempt: what `distribution: {type: ray}` runs in
the command's place, once per instance.

Instance 0 starts the head, waits for the others, and runs the command with RAY_ADDRESS set; the others join
it and stay until it says that the command has ended. They meet in the gang's rendezvous store. Whatever Ray
starts is below this process and ends with the task; no other Ray on the machine is touched.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import psutil
from torch import distributed

from .say import say

START_S_MAX: Final = 120
"""In which every node of the gang must have joined."""
_FOR_EVER: Final = timedelta(days=3650)
_STOP_S: Final = 10.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_LOOK_S: Final = 0.02
_OBJECT_STORE_SHARE: Final = 0.3
"""Of the task's memory, as Ray takes it of the machine's."""
_ANY_FREE_PORT: Final = (
    "--object-manager-port=0",
    "--node-manager-port=0",
    "--min-worker-port=0",
    "--max-worker-port=0",
    "--dashboard-agent-listen-port=0",
    "--dashboard-agent-grpc-port=0",
    "--runtime-env-agent-port=0",
    "--metrics-export-port=0",
)


@dataclass(frozen=True, slots=True)
class Place:
    """This instance's part in the gang, as the scheduler gave it."""

    node_rank: int
    node_count: int
    address: str
    port: int
    cpus: int
    gpus: int
    memory_bytes: int


def read_place(folder: Path) -> Place:
    """From `task.json` (int64 are strings there)."""
    task = json.loads((folder / "task.json").read_bytes())
    resources = task.get("resources") or {}
    return Place(
        node_rank=task["node_rank"],
        node_count=task["node_count"],
        address=task["master_address"],
        port=task["master_port"],
        cpus=max(1, int(resources.get("cpu_milli", 0)) // 1000),
        gpus=len(task["gpu_indices"]),
        memory_bytes=int(resources.get("memory_bytes", 0)),
    )


def main() -> None:
    """Arguments: the command's words. Exits as the command did; the other instances with 0."""
    command = sys.argv[1:]
    place = read_place(Path(os.environ["PACELINE_TASK_FOLDER"]))
    patience = timedelta(seconds=START_S_MAX)
    store_type: Any = getattr(distributed, "TCPStore")  # noqa: B009 - torch's types do not export it
    store = store_type(place.address, place.port, is_master=False, timeout=patience)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ctypes.CDLL(None).prctl(
        _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0
    )  # what Ray puts into the background stays ours
    with own_folder() as folder:
        code = _lead(place, store, folder, command) if place.node_rank == 0 else _follow(place, store, folder)
    _exit_as(code)


def _lead(place: Place, store: Any, folder: Path, command: list[str]) -> int:
    _guard(secrets.token_hex(32))
    store.set("ray/token", os.environ["RAY_AUTH_TOKEN"])
    with Node(place, folder, ["--head", "--port=0", "--include-dashboard=false"]) as address:
        store.set("ray/address", address)
        store.wait([f"ray/up/{node}" for node in range(1, place.node_count)])
        code = run_command(command, {**os.environ, "RAY_ADDRESS": address})
        store.set("ray/over", "")
    return code


def _follow(place: Place, store: Any, folder: Path) -> int:
    signal.signal(signal.SIGTERM, _wait_for_the_head)
    _guard(store.get("ray/token").decode())
    address = store.get("ray/address").decode()
    with Node(place, folder, [f"--address={address}"]):
        store.set(f"ray/up/{place.node_rank}", "")
        store.wait(["ray/over"], _FOR_EVER)
    return 0


def _guard(token: str) -> None:
    """Only who has the attempt's own token speaks to its cluster, whatever tokens lie in the user's home."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)


def _wait_for_the_head(_number: int, _frame: FrameType | None) -> None:
    """The job is to stop: its command may still need this node to save what it has."""


class Node:
    """`ray start --block` and all below it. Entered: its cluster's address. When it ends by itself, so does
    this process, at once: a gang has no use for half of its Ray."""

    def __init__(self, place: Place, folder: Path, role: list[str]) -> None:
        ray = shutil.which("ray")
        if ray is None:
            sys.exit(
                "paceline: PATH has no program 'ray', which distribution: ray needs;"
                " pip install 'paceline[ray]' in the job's environment"
            )
        self._log = folder / "start.log"
        self._address_file = folder / "ray_current_cluster"
        self._ending = False
        command = [ray, "start", "--block", *role, *_ANY_FREE_PORT, f"--temp-dir={folder}"]
        command += [f"--node-ip-address={_own_address(place)}", f"--num-cpus={place.cpus}"]
        command += [f"--num-gpus={place.gpus}"]
        if place.memory_bytes:
            command += [f"--object-store-memory={int(place.memory_bytes * _OBJECT_STORE_SHARE)}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._watch = threading.Thread(target=self._watch_it, daemon=True)

    def __enter__(self) -> str:
        self._watch.start()
        while not (address := self._address()):  # Ray says nowhere else that it is up
            self._watch.join(_LOOK_S)
        return address

    def __exit__(self, *_error: object) -> None:
        """Everything below this process dies: the command is over, and nothing of its Ray is to be kept."""
        self._ending = True
        until = time.monotonic() + _STOP_S
        while (below := psutil.Process().children(recursive=True)) and time.monotonic() < until:
            for process in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(below, timeout=_STOP_S)

    def _address(self) -> str:
        return self._address_file.read_text() if self._address_file.exists() else ""

    def _watch_it(self) -> None:
        code = self._process.wait()
        if not self._ending:
            say(f"this node's Ray ended with {code}:\n{self._log.read_text(errors='replace')[-4000:]}")
            os._exit(1)


def run_command(command: list[str], environment: dict[str, str]) -> int:
    """Run it to its end, passing SIGTERM on; its exit code, negative: the signal."""
    try:
        process = subprocess.Popen(command[1:], executable=command[0], env=environment)
    except OSError as error:
        say(f"{command[1]}: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    signal.signal(signal.SIGTERM, lambda _number, _frame: process.terminate())
    return process.wait()


def _own_address(place: Place) -> str:
    """The one from which the head is reached; nothing is sent."""
    family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((place.address, place.port))
        return str(probe.getsockname()[0])


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """For Ray's files: short, since the paths of its sockets have a bound. Locked as long as we live, so that
    those of the dead can be told, also of other containers that share /tmp; they go."""
    root = Path(f"/tmp/pace-ray-{os.getuid()}")
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        sys.exit(f"paceline: {root} belongs to user {root.stat().st_uid}; Ray's files cannot be kept there")
    with _locked(root):
        for folder in root.iterdir():
            with contextlib.suppress(BlockingIOError), _locked(folder, fcntl.LOCK_NB):
                shutil.rmtree(folder)
        mine = contextlib.ExitStack()
        folder = Path(tempfile.mkdtemp(prefix="", dir=root))
        mine.enter_context(_locked(folder))
    with mine:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)  # what Ray still writes there dies with the task


@contextlib.contextmanager
def _locked(folder: Path, flags: int = 0) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(fd)


def _exit_as(code: int) -> NoReturn:
    """By the same signal, where the command ended by one."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
