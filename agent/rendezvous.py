"""The gang's meeting place: listening sockets held by the agent, and the process that serves a store on one.

A port that the inventory names is bound and listening, so that no port is guessed and a rank that dials
before the store is up waits in the listen queue. torch is imported by name, in the forked process only.
"""

import contextlib
import importlib
import os
import signal
import socket
import stat
import time

_BACKLOG = 4096
_DRAIN_LOOK_S = 0.02


class RendezvousPorts:
    """Bound, listening sockets on one address; `take` gives one away and a new one takes its place."""

    def __init__(self, address: str, count: int) -> None:
        self._address = address
        self._count = count
        self._sockets: dict[int, socket.socket] = {}
        self.refill()

    def ports(self) -> tuple[int, ...]:
        """Ports that are held, the oldest first."""
        return tuple(self._sockets)

    def take(self, port: int) -> socket.socket | None:
        """The socket of that port, held or bound anew; the caller's now. None when somebody else has it."""
        held = self._sockets.pop(port, None)
        if held is None:
            with contextlib.suppress(OSError):
                held = _listen(self._address, port)
        self.refill()
        return held

    def refill(self) -> None:
        """Hold `count` again. Out of ports or descriptors: as many as there are."""
        with contextlib.suppress(OSError):
            while len(self._sockets) < self._count:
                new = _listen(self._address, 0)
                self._sockets[new.getsockname()[1]] = new

    def close(self) -> None:
        """Let go of all."""
        for held in self._sockets.values():
            held.close()
        self._sockets.clear()


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def serve_store(listener_fd: int, address: str, port: int, drain_fd: int, drain_s: float) -> None:
    """Serve a TCPStore on the listening socket. Returns some time after the other end of `drain_fd` wrote or
    closed: when all clients have gone, at most `drain_s` later."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the shim ends it
    distributed = importlib.import_module("torch.distributed")
    store = distributed.TCPStore(
        host_name=address, port=port, is_master=True, wait_for_workers=False, master_listen_fd=listener_fd
    )
    os.read(drain_fd, 1)
    until = time.monotonic() + drain_s
    while _clients(port) > 0 and time.monotonic() < until:
        time.sleep(_DRAIN_LOOK_S)  # torch's server does not say when a client leaves
    del store


def _clients(port: int) -> int:
    """Connections that the store has accepted, without the one that it makes to itself."""
    accepted = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # closed by now, or not connected
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                copy.getpeername()
                accepted += copy.getsockname()[1] == port
    return accepted - 1
