"""A zygote's rehearsal of what its shims will do, in its own process. Standard library only."""

import os
import shutil
import socket
from typing import Any

from . import kernel
from .claims import claim
from .shim import ClaimedTask, Shim
from .shim_door import Connection
from .shim_process import ShimProcess, reset_signals
from .stillness import Patience


def rehearse(folder: str, memory: kernel.InitialMemory, program: str, rounds: int) -> None:
    """In a zygote: run a task of that program in this process some times, in that folder, which it makes and
    removes. The interpreter adapts its code to what it runs, which writes to it; done here once, no shim has
    to do it again on pages of its own."""
    shutil.rmtree(folder, ignore_errors=True)  # of a zygote that was killed in it
    launch: dict[str, Any] = {
        "mark": "rehearsal",
        "mode": "exec",
        "executable": program,
        "argv": [program],
        "cwd": "/",
    }
    launch |= {
        "environment": dict(os.environ),
        "ranks": [{"rank": 0, "environment": {}}],
        "start_mode": "cold",
    }
    launch |= {"node_count": 1, "grace_s": 1.0, "timeout_s": 0.0, "log_bytes_max": 0, "exclusive": False}
    launch |= {"store": None, "cgroup": None, "prepare": None, "shell": False, "world_size": 1}
    launch |= {"metric_patterns": {}, "client": None, "leaves": []}
    launch |= {"patience": Patience()._asdict(), "pace_window_s": 30.0}
    task = folder + "/tasks/rehearsal"
    for made in (task, folder + "/shims"):
        os.makedirs(made, 0o700)  # noqa: PTH103
    process = ShimProcess(memory, set())
    try:
        for _ in range(rounds):
            _rehearse_once(task, launch, process)
            for name in os.listdir(task):  # noqa: PTH208
                os.unlink(f"{task}/{name}")  # noqa: PTH108
    finally:
        process.close()
        shutil.rmtree(folder)
        kernel.set_child_subreaper(False)
        reset_signals()


def _rehearse_once(folder: str, launch: dict[str, Any], process: ShimProcess) -> None:
    claim_fd = claim(folder)
    ours, theirs = socket.socketpair()
    control = Connection(theirs)
    process.door.add(control)
    shim = Shim(ClaimedTask(folder, launch, claim_fd), control, process)
    shim.start(-1, {})
    shim.serve()
    ours.sendall(b'{"op":"take","folder":"","launch":{}}\n')
    if shim.leave():
        process.wait_for_task(control, None)
    process.door.drop(control)
    ours.close()
