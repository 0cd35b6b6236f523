"""DeepSpeed's native operators: built once per node and environment, and never waited for in vain.

torch builds an operator in TORCH_EXTENSIONS_DIR under a lock that is a mere file: where the builder was
killed, every later start waits for ever. So each task has such a folder of its own, filled with what was
built before: only the task's own ranks ever wait in it, and they end together. What is shared lies under a
lock of the kernel's (flock), which ends with its owner however that ends.

    ops/lock                 "PID.START" of who holds it
    ops/built/KEY/NAME/      an operator built to its end; KEY stands for interpreter, versions and CPU
    ops/building/            of the lock's owner; what whoever gets the lock finds there is refuse
    ops/tasks/TASK/          TORCH_EXTENSIONS_DIR of a task; `ranks/PID.START.KEY` in it

Run by each rank before its command, in a process of its own.
"""

import fcntl
import hashlib
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Final

from .owners import is_alive, owner_name
from .say import say

LOCK_S_MAX: Final = 900
"""A build takes a minute. The lock of a dead owner is free; one who is only stopped holds it no longer."""
_LOCK_WAIT_WORTH_SAYING_S: Final = 2
_ON_EVERY_CPU: Final = "deepspeed_shm_comm"
"""What torch.distributed's CPU backend in DeepSpeed loads at each start; it is built ahead."""


def main() -> None:
    """Fill TORCH_EXTENSIONS_DIR. Exits with a message where that cannot be."""
    mine = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    ops = mine.parents[1]
    built = ops / "built" / _key()
    ops.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _held(ops / "lock"):
        _sweep(ops)
        _join(mine, built.name)
        if os.environ.get("DS_ACCELERATOR") == "cpu" and not (built / _ON_EVERY_CPU).exists():
            _build(ops / "building", built)
        for operator in _folders(built):
            if not (mine / operator.name).exists():
                _copy(operator, mine / operator.name)


def _key() -> str:
    """Of what an operator was built by and for: another ninja or compiler builds it again. The compiler's
    arguments are ninja's to compare."""
    try:
        versions = [version("torch"), version("deepspeed")]
    except PackageNotFoundError as error:
        sys.exit(
            f"paceline: {sys.executable} has no {error.name}, which distribution: deepspeed needs;"
            " pip install 'paceline[deepspeed]' there"
        )
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")][:1]
    tools = [shutil.which(tool) or "" for tool in ("ninja", os.environ.get("CXX", "c++"))]
    facts = [sys.executable, sys.version, *versions, *cpu, *tools]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Only one process of the node at a time. The descriptor is inherited by none that the builder starts."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up_at = time.monotonic() + LOCK_S_MAX

    def on_alarm(_number: int, _frame: FrameType | None) -> None:
        owner = path.read_text()
        if time.monotonic() >= give_up_at:
            sys.exit(f"paceline: process {owner} has held {path} for {LOCK_S_MAX} s; is it stopped?")
        say(f"waiting for process {owner}, which prepares DeepSpeed's operators on this node")
        signal.alarm(max(1, round(give_up_at - time.monotonic())))

    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(_LOCK_WAIT_WORTH_SAYING_S)
    fcntl.flock(fd, fcntl.LOCK_EX)
    signal.alarm(0)
    os.truncate(fd, 0)
    os.pwrite(fd, owner_name(os.getpid()).encode(), 0)
    try:
        yield
    finally:
        os.close(fd)


def _sweep(ops: Path) -> None:
    """Drop what the dead have left; what a task built to its end is kept for others."""
    shutil.rmtree(ops / "building", ignore_errors=True)
    for task in _folders(ops / "tasks"):
        ranks = [rank.name.rpartition(".") for rank in task.glob("ranks/*")]
        if any(is_alive(owner) for owner, _, _ in ranks):
            continue
        for operator in _folders(task) if ranks else ():
            built = ops / "built" / ranks[0][2]
            if _is_whole(operator) and not (built / operator.name).exists():
                built.mkdir(parents=True, exist_ok=True)
                operator.rename(built / operator.name)
        shutil.rmtree(task)


def _is_whole(operator: Path) -> bool:
    """Built to its end: torch's lock is there as long as it builds, and after a builder that was killed."""
    return not (operator / "lock").exists() and any(operator.glob("*.so"))


def _join(mine: Path, key: str) -> None:
    """From now on this task is alive as long as the rank that runs us is."""
    (mine / "ranks").mkdir(parents=True, exist_ok=True)
    (mine / "ranks" / f"{owner_name(os.getppid())}.{key}").touch()


def _build(building: Path, built: Path) -> None:
    say(f"building {_ON_EVERY_CPU}, once for this node and environment")
    os.environ["TORCH_EXTENSIONS_DIR"] = str(building)
    importlib.import_module("deepspeed.ops.op_builder.cpu").ShareMemCommBuilder().load(verbose=False)
    made = building / _ON_EVERY_CPU
    made.mkdir(parents=True, exist_ok=True)  # nothing is there when DeepSpeed was installed with it
    built.mkdir(parents=True, exist_ok=True)
    made.rename(built / _ON_EVERY_CPU)


def _copy(operator: Path, to: Path) -> None:
    """Times are kept: by them ninja knows that nothing is left to do."""
    shutil.copytree(operator, to)


def _folders(folder: Path) -> list[Path]:
    """Those in it that may hold an operator or a task."""
    if not folder.is_dir():
        return []
    return [each for each in sorted(folder.iterdir()) if each.is_dir() and each.name != "ranks"]


if __name__ == "__main__":
    main()
