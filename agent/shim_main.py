"""A shim's process from its fork to its end: one task after the other, until it is not needed any more.
Standard library only.
"""

import os
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from . import kernel
from .claims import claim
from .containment import signal_all
from .ranks import Kept, Rank, close_all_but
from .shim import ClaimedTask, Shim
from .shim_door import Connection
from .shim_process import ShimProcess, read_launch
from .spare_rank import fork_spare

_QUIET_S: Final = 0.02
"""The next task may follow at once, and is not to wait while a rank is forked ahead of the one after it."""


class Order(NamedTuple):
    """What a zygote was asked for: the shim of the task in `folder`, or, where that is empty, one that waits
    for a task and carries `mark` meanwhile."""

    folder: str
    mark: str
    control_fd: int
    listener_fd: int


def become_shim(
    order: Order, memory: kernel.InitialMemory, keep: set[int], rehearse: Callable[[], None] | None
) -> Rank:
    """In a process just forked from a zygote. Returns only in the ranks, forked from here in turn. With
    `rehearse`, the first rank of the next task is forked while there is none, and begins with that."""
    os.setsid()
    claim_fd = claim(order.folder) if order.folder else -1
    if order.folder and claim_fd < 0:
        os._exit(0)
    close_all_but(keep | {order.control_fd, order.listener_fd, claim_fd})
    try:
        process = ShimProcess(memory, keep)
        control = Connection(socket.socket(fileno=order.control_fd))
        process.door.add(control)
        task = None
        if order.folder:
            task = ClaimedTask(order.folder, read_launch(order.folder), claim_fd)
        else:
            memory.set_mark(order.mark)
        rank = _serve(process, control, task, order.listener_fd, rehearse)
    except BaseException:  # noqa: BLE001 - nothing may return into the zygote's loop
        traceback.print_exc()  # into the zygote's log; the agent sees the end of the connection and cleans up
        os._exit(70)
    if rank is None:
        process.door.leave()
        os._exit(0)
    return rank


def _serve(
    process: ShimProcess,
    control: Connection,
    task: ClaimedTask | None,
    listener_fd: int,
    rehearse: Callable[[], None] | None,
) -> Rank | None:
    """One task after the other. None: it is not needed any more."""
    kept = dict[int, Kept]()
    while True:
        if task is None:
            rank, task = _next_task(process, control, rehearse)
            if task is None:
                return rank
        shim = Shim(task, control, process)
        rank = shim.start(listener_fd, kept)
        if rank is not None:
            return rank
        shim.serve()
        may_serve_another = shim.leave()
        task, listener_fd, kept = None, -1, {}
        if shim.successor is not None:
            folder, launch, listener_fd, control, kept = shim.successor
            task = _claimed(folder, launch)
        if task is None and not may_serve_another:
            signal_all([each.pid for each in kept.values()], signal.SIGKILL)
            return None


def _next_task(
    process: ShimProcess, control: Connection, rehearse: Callable[[], None] | None
) -> tuple[Rank | None, ClaimedTask | None]:
    """(None, the task); (rank, None): this process is that task's first rank, forked ahead of it; (None,
    None): there is none any more."""
    found = process.wait_for_task(control, _QUIET_S if rehearse is not None else None)
    if found is None and rehearse is not None:
        rank = fork_spare(process, rehearse)
        if rank is not None:
            return rank, None
        found = process.wait_for_task(control, None)
    return None, _claimed(*found) if found and found[0] else None


def _claimed(folder: str, launch: dict[str, Any]) -> ClaimedTask | None:
    """None: it is somebody else's, or nobody's any more."""
    claim_fd = claim(folder)
    return ClaimedTask(folder, launch, claim_fd) if claim_fd >= 0 else None
