"""The process group of one attempt, made and left by us, so that this process can join the next one.

Leaving cuts the group's own connections first: a rank that waits in a collective for a peer that is silent,
or for one that has left, then fails at once, and so do its peers, one after the other, however the collective
is built. The Python object goes last, when nothing that could own the group is alive (gang.py, `_hold`).
"""

import contextlib
import os
import socket
import stat
from typing import Any

from torch import distributed

_GPU_BACKENDS = "cpu:gloo,cuda:nccl"


class Peers:
    """Made by all ranks together, as the launcher's variables say. torch's only group while it lives."""

    def __init__(self, device_type: str) -> None:
        before = _connections()
        distributed.init_process_group(_GPU_BACKENDS if device_type == "cuda" else "gloo")
        self._group: Any = distributed.group.WORLD
        self._on_gpu = device_type == "cuda"
        self._connections = {fd: inode for fd, inode in _connections().items() if before.get(fd) != inode}

    def cut(self) -> None:
        """From any thread: whoever is in a collective of the group gets an error. NCCL has a verb for it,
        which was tried with a group of one; gloo's `abort` leaves a waiting collective waiting.
        """
        if self._on_gpu:
            self._group.abort()
        for fd, inode in self._connections.items():
            with contextlib.suppress(OSError):  # closed already, or no longer connected
                if os.fstat(fd).st_ino == inode:
                    with socket.socket(fileno=os.dup(fd)) as copy:
                        copy.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        """torch knows no group after it. This object is to be dropped when another group has done some work:
        by then gloo's threads of this one are idle, and nothing that they hold needs the interpreter.
        """
        self.cut()
        distributed.destroy_process_group()


def _connections() -> dict[int, int]:
    """Descriptor -> inode of every TCP connection of this process. Not of those that listen: gloo, whose
    listener is cut, aborts the process.
    """
    found: dict[int, int] = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # closed by now, or not connected
            status = os.fstat(int(name))
            if not stat.S_ISSOCK(status.st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
                    copy.getpeername()
                    found[int(name)] = status.st_ino
    return found
