"""A rank's process that is forked before its task is known, while nobody waits for it.

It holds nothing of any task. Its orders come over a socket of its own, with the descriptor of its output; the
end of that socket, or of its shim, ends it. Standard library only.
"""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

from .containment import signal_all
from .ranks import Rank, become_rank, close_all_but
from .shim_process import ShimProcess

ORDERS_BYTES_MAX: Final = 64 * 1024
"""A socket takes so much at once, whoever reads it: the shim never waits for one that was stopped."""


class SpareRank:
    """As its shim sees it."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self._sock = sock

    def give(self, launch: dict[str, Any], local_rank: int, log_fd: int) -> bool:
        """It becomes that rank. False: it takes no orders, and is as good as dead."""
        data = json.dumps([launch, local_rank]).encode() + b"\n"
        sent = 0
        if len(data) <= ORDERS_BYTES_MAX:
            with contextlib.suppress(OSError):  # somebody has killed it
                sent = socket.send_fds(self._sock, [data], [log_fd], socket.MSG_DONTWAIT)
        self.close()
        if sent < len(data):
            signal_all([self.pid], signal.SIGKILL)
        return sent == len(data)

    def close(self) -> None:
        """Without orders, that is its end."""
        self._sock.close()


def fork_spare(process: ShimProcess, rehearse: Callable[[], None]) -> Rank | None:
    """`process.spare` is one from now on; it begins with `rehearse`. Not None: this process was it, and is
    that rank. Raises OSError."""
    ours, theirs = socket.socketpair()
    pid = process.fork()
    if pid == 0:
        ours.close()
        return _await_orders(theirs, process, rehearse)
    theirs.close()
    process.spare = SpareRank(pid, ours)
    return None


def _await_orders(sock: socket.socket, process: ShimProcess, rehearse: Callable[[], None]) -> Rank:
    os.setsid()
    close_all_but(process.keep | {sock.fileno()})
    rehearse()
    data, log_fd = b"", -1
    while not data.endswith(b"\n"):
        more, fds, _, _ = socket.recv_fds(sock, ORDERS_BYTES_MAX, 1)
        if not more:
            os._exit(0)
        data, log_fd = data + more, fds[0] if fds else log_fd
    sock.close()
    launch, local_rank = json.loads(data)
    process.memory.set_mark(launch["mark"])
    return become_rank(launch, local_rank, log_fd, process)
