"""A shim's process from its fork to its end: one task after the other, until it is not needed any more.
Standard library only.
"""

import os
import signal
import socket
import traceback

from . import kernel
from .claims import claim
from .containment import signal_all
from .ranks import Kept, Rank, close_all_but
from .shim import ClaimedTask, Shim
from .shim_door import Connection
from .shim_process import ShimProcess, read_launch


def become_shim(
    folder: str,
    control_fd: int,
    listener_fd: int,
    memory: kernel.InitialMemory,
    keep: set[int],
    *,
    reusable: bool,
) -> Rank:
    """In a process just forked from a zygote. Returns only in the ranks, forked from here in turn."""
    os.setsid()
    claim_fd = claim(folder)
    if claim_fd < 0:
        os._exit(0)
    close_all_but(keep | {control_fd, listener_fd, claim_fd})
    try:
        process = ShimProcess(memory, keep, reusable=reusable)
        control = Connection(socket.socket(fileno=control_fd))
        process.door.add(control)
        rank, launch, kept = None, read_launch(folder), dict[int, Kept]()
        while claim_fd >= 0:
            shim = Shim(ClaimedTask(folder, launch, claim_fd), control, process)
            rank = shim.start(listener_fd, kept)
            if rank is not None:
                break
            shim.serve()
            listener_fd = claim_fd = -1
            may_serve_another, kept = shim.leave(), {}
            if shim.successor is not None:
                folder, launch, listener_fd, control, kept = shim.successor
                claim_fd = claim(folder)
            elif may_serve_another:
                folder, launch = process.wait_for_task(control)
                claim_fd = claim(folder) if folder else -1
        signal_all([each.pid for each in kept.values()] if rank is None else [], signal.SIGKILL)
    except BaseException:  # noqa: BLE001 - nothing may return into the zygote's loop
        traceback.print_exc()  # into the zygote's log; the agent sees the end of the connection and cleans up
        os._exit(70)
    if rank is None:
        process.door.leave()
        os._exit(0)
    return rank
