"""A single-purpose process that has imported what jobs import, and forks shims from itself.

It touches no GPU, starts no thread and opens no connection: what is forked from it is as clean as a fresh
interpreter. End of file on its channel ends it; the shims live on. Standard library only.
"""

import ctypes
import fcntl
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from . import kernel, worker
from .huge_pages import HugePages
from .rehearsal import rehearse
from .shim_main import Order, become_shim

REQUEST_BYTES_MAX = 64 * 1024
_REHEARSALS = 12
_NOT_INITIALIZED = 3
"""CUDA_ERROR_NOT_INITIALIZED: what all of the driver says before its cuInit."""
ARGUMENTS_ROOM = "." * 1024
"""Passed as the last argument, so that a rank can show its own command line in `ps`."""
COMMAND = (
    "import sys; sys.path.pop(0); modules, path = set(sys.modules), list(sys.path);"
    " from paceline.agent.zygote import main; main(modules, path)"
)
"""What the pool starts an interpreter with, then: channel's descriptor, modules to import, the folder for its
rehearsal ("": none), ARGUMENTS_ROOM."""


def main(modules_at_start: set[str], path_at_start: list[str]) -> None:
    """Serve until the channel ends. Returns only in a rank, when its script has come to its end."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    preload = _names(sys.argv[2])
    memory = kernel.InitialMemory()
    memory.set_arguments(["paceline: zygote,", *(preload or ["lean"])])
    kernel.set_name("pace-zygote")
    _end_with_channel(channel, on=True)
    ready = _preload(preload)
    if sys.argv[3]:
        _rehearse(sys.argv[3], memory)
    _end_with_channel(channel, on=False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # shims that end are nobody's business here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = worker.Settings(path_at_start)
    keep = {fd for fd in _open_descriptors() if fd > 2} - {channel.fileno()}
    ready["shadowable"] = _shadowable(modules_at_start)
    gc.collect()
    gc.freeze()  # the collector writes to every object that it knows: shared pages would be copied
    channel.send(json.dumps(ready).encode())
    order = _serve(channel, HugePages() if preload else None)
    rehearse = functools.partial(worker.rehearse, settings, memory) if preload else None
    rank = become_shim(order, memory, keep, rehearse)
    del channel, memory, ready, rehearse
    worker.become_rank(rank, settings)


def _end_with_channel(channel: socket.socket, *, on: bool) -> None:
    """Until the imports are done nothing is read: let SIGIO end this process when the agent's end closes.
    Nothing else can come, since the agent asks for nothing before it has heard `ready`."""
    flags = fcntl.fcntl(channel, fcntl.F_GETFL)
    fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(channel, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)
    if on and _has_hung_up(channel):  # before: no signal comes of that
        os._exit(0)


def _has_hung_up(channel: socket.socket) -> bool:
    poll = select.poll()
    poll.register(channel, select.POLLHUP)
    return bool(poll.poll(0))


def _names(text: str) -> list[str]:
    """ "@module" stands for what that module lists in MODULES."""
    found: list[str] = []
    for name in filter(None, text.split(",")):
        found += importlib.import_module(name[1:]).MODULES if name.startswith("@") else [name]
    return found


def _preload(names: list[str]) -> dict[str, Any]:
    begun = time.monotonic()
    loaded, missing = [], {}
    for name in names:
        try:
            importlib.import_module(name)
            loaded.append(name)
        except Exception as error:  # noqa: BLE001 - whatever a broken package raises; the pool hears of it
            traceback.print_exc()
            missing[name] = f"{type(error).__name__}: {error}"[:500]
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    seconds = time.monotonic() - begun
    return {"ready": loaded, "missing": missing, "import_s": seconds, "threads": threads, "cuda": _has_cuda()}


def _rehearse(folder: str, memory: kernel.InitialMemory) -> None:
    try:
        rehearse(folder, memory, "/bin/true", _REHEARSALS)
    except OSError:  # nowhere to write, or no such program: the shims are slower, that is all
        traceback.print_exc()
    kernel.set_name("pace-zygote")


def _has_cuda() -> bool:
    """True when an import has started the CUDA driver: a process forked from here could not use it. One that
    is only loaded does no harm: torch's builds for CUDA load it.
    """
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        loaded = [line.split(maxsplit=5)[5].strip() for line in file if "/libcuda.so" in line]
    count = ctypes.c_int()
    return bool(loaded) and ctypes.CDLL(loaded[0]).cuDeviceGetCount(ctypes.byref(count)) != _NOT_INITIALIZED


def _open_descriptors() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            os.fstat(int(name))
        except OSError:  # the listing's own
            continue
        found.add(int(name))
    return found


def _shadowable(modules_at_start: set[str]) -> list[str]:
    """Top-level modules that a script's folder could replace in a fresh interpreter, but no longer here."""
    loaded = {name.partition(".")[0] for name in set(sys.modules) - modules_at_start}
    return sorted(loaded - modules_at_start - set(sys.builtin_module_names))


def _serve(channel: socket.socket, pages: HugePages | None) -> Order:
    """Fork for each request. Returns in the forked child."""
    while True:
        while pages is not None and pages.left and not select.select([channel], [], [], 0)[0]:
            pages.collapse_some()
        data, fds, _, _ = socket.recv_fds(channel, REQUEST_BYTES_MAX, 2)
        if not data:
            _leave()
        for fd in fds:
            os.set_inheritable(fd, False)  # recv_fds passes no flags on
        try:
            pid = os.fork()
        except OSError as error:
            answer: dict[str, Any] = {"error": f"fork: {error.strerror}"}
        else:
            if pid == 0:
                channel.close()
                asked = json.loads(data)
                return Order(asked["folder"], asked["mark"], fds[0], fds[1] if len(fds) > 1 else -1)
            answer = {"pid": pid}
        for fd in fds:
            os.close(fd)
        try:
            channel.send(json.dumps(answer).encode())
        except OSError:  # the agent is gone
            _leave()


def _leave() -> NoReturn:
    os._exit(0)
