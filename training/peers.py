"""The process group of one attempt, made and left by us, so that this process can join the next one.

Leaving cuts the group's own connections first: a rank that waits in a collective for a peer that is silent,
or for one that has left, then fails at once, and so do its peers, one after the other, however the collective
is built. The Python object goes last, when nothing that could own the group is alive (gang.py, `hold`).

One wait has no end by that: gloo's, for a message that was on its way when the connection broke. It tells
the buffers of what has not begun, not those of what it was writing or reading (`Pair::signalException`), and
whoever waits for such a one does so until the group's timeout, half an hour. It takes a peer that dies while
it waits for us in a collective, and a busy machine. So what the step loop waits for in each step, gradients
and buffers and the ranks' own agreement, it waits for in ways that `cut` ends.

On a GPU nobody waits: a collective is put in line, and so is what uses its result. `cut` ends it with what it
had by then, half reduced, and what stands behind it in the line runs. So the step loop waits once (`settle`),
before it uses what was reduced for good.
"""

import contextlib
import os
import socket
import stat
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch._C._distributed_c10d import ErrorType
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _BufferCommHookLocation

from .errors import GangLost
from .gang import hold

_GPU_BACKENDS = "cpu:gloo,cuda:nccl"
_LOOK = timedelta(seconds=0.1)
CALLBACK_FAILED = "Got the following error when running the callback: "
"""How torch begins the text of an error that comes out of a future."""


class Peers:
    """Made by all ranks together, as the launcher's variables say. torch's only group while it lives."""

    def __init__(self, device_type: str) -> None:
        before = _connections()
        distributed.init_process_group(_GPU_BACKENDS if device_type == "cuda" else "gloo")
        self._group: Any = distributed.group.WORLD
        self._on_gpu = device_type == "cuda"
        self._connections = {fd: inode for fd, inode in _connections().items() if before.get(fd) != inode}
        self._is_cut = False
        self._futures: dict[Future[Any], distributed.Work] = {}
        """Those that are waited for now."""
        self._given_up: list[distributed.Work] = []
        """Those that may never end."""

    def watch(self, model: nn.Module) -> None:
        """Have `cut` end the waits of a DistributedDataParallel that reduces in the usual way."""
        if self._on_gpu or not isinstance(model, DistributedDataParallel):
            return
        own = model._comm_hooks or hasattr(model, "buffer_hook")
        if model.mixed_precision is None and not own:
            state = self, model.process_group
            model.register_comm_hook(state, _mean)
            model._register_buffer_comm_hook(state, _broadcast, _BufferCommHookLocation.PRE_FORWARD)

    def wait(self, work: distributed.Work) -> None:
        """Until that is done. Raises RuntimeError where it fails, and GangLost where the group is cut."""
        while not work.is_completed():
            with contextlib.suppress(RuntimeError):  # it has failed, or it is time to look
                work.wait(_LOOK)
            if self._is_cut and not work.is_completed():
                self._given_up.append(work)
                raise GangLost("the gang is broken")
        work.wait()

    def settle(self, device: torch.device) -> None:
        """Wait until what the current stream of this GPU has in line, collectives too, has run. Raises
        GangLost where an abort may have ended one of them: ours or that of torch's watchdog, both of which
        say so before they abort. On the CPU nothing is in line.
        """
        if not self._on_gpu:
            return
        torch.cuda.current_stream(device).synchronize()  # `cut` ends it from another thread
        if self._is_cut or self._has_failed(device):
            raise GangLost("the gang is broken")

    def _has_failed(self, device: torch.device) -> bool:
        """NCCL's error, as torch's watchdog has found it. Where torch is too old to tell, the watchdog ends
        the process after such an error, as it does with TORCH_NCCL_ASYNC_ERROR_HANDLING=1 at any rate.
        """
        get_error = getattr(self._group._get_backend(device), "get_error", None)
        return get_error is not None and get_error() != ErrorType.SUCCESS

    def future(self, work: distributed.Work) -> Future[Tensor]:
        """Of its first tensor; done when that is, or with an error when the group is cut."""
        told: Future[Any] = Future()
        self._futures[told] = work

        def on_done(done: Future[list[Tensor]]) -> None:
            if self._futures.pop(told, None) is None:  # cut: nobody waits
                return
            try:
                told.set_result(done.value()[0])
            except RuntimeError as error:
                told.set_result(error)

        work.get_future().add_done_callback(on_done)
        if self._is_cut:
            self._give_up(told)
        return told.then(_result)

    def cut(self) -> None:
        """From any thread: whoever is in a collective of the group gets an error. NCCL has a verb for it,
        which was tried with a group of one; gloo's `abort` leaves a waiting collective waiting.
        """
        self._is_cut = True
        if self._on_gpu:
            self._group.abort()
        for fd, inode in self._connections.items():
            with contextlib.suppress(OSError):  # closed already, or no longer connected
                if os.fstat(fd).st_ino == inode:
                    with socket.socket(fileno=os.dup(fd)) as copy:
                        copy.shutdown(socket.SHUT_RDWR)
        for told in list(self._futures):
            self._give_up(told)

    def _give_up(self, told: Future[Any]) -> None:
        if (work := self._futures.pop(told, None)) is not None:
            self._given_up.append(work)
            told.set_result(GangLost("the gang is broken"))

    def leave(self) -> None:
        """torch knows no group after it. This object is to be dropped when another group has done some work:
        by then gloo's threads of this one are idle, and nothing that they hold needs the interpreter.
        """
        self.cut()
        distributed.destroy_process_group()

    def drop(self) -> None:
        """Before this object goes. A group in which somebody waits for ever stays until this process ends:
        its own end would wait for that one.
        """
        if not all(work.is_completed() for work in self._given_up):
            hold(self._group)


def _result(told: Future[Any]) -> Tensor:
    found: Tensor | Exception = told.value()
    if isinstance(found, Exception):
        raise found
    return found


def _mean(state: tuple[Peers, distributed.ProcessGroup], bucket: GradBucket) -> Future[Tensor]:
    """Of gradients, as DistributedDataParallel makes it."""
    peers, group = state
    gradients = bucket.buffer().div_(group.size())
    return peers.future(distributed.all_reduce(gradients, group=group, async_op=True))


def _broadcast(state: tuple[Peers, distributed.ProcessGroup], buffers: dict[str, Tensor]) -> None:
    """Rank 0's, to all, as DistributedDataParallel does it: those of a kind in one message."""
    peers, group = state
    source = distributed.get_global_rank(group, 0)
    for kind in dict.fromkeys(buffer.dtype for buffer in buffers.values()):
        alike = [buffer for buffer in buffers.values() if buffer.dtype == kind]
        message = torch.cat([buffer.reshape(-1) for buffer in alike])
        peers.wait(distributed.broadcast(message, source, group=group, async_op=True))
        if group.rank():
            parts = torch.split(message, [buffer.numel() for buffer in alike])
            for buffer, part in zip(alike, parts, strict=True):
                buffer.copy_(part.view_as(buffer))


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
