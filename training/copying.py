"""Many tensors copied at once, in as many threads as torch has here.

Torch's own threads share out each tensor and then wait for each other; where the cores have other work (a
persister, another rank, a data loader) each of these waits costs, and large states were copied several times
as slowly as by one thread. Ours take the next piece when they have done one.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Final

import torch

_libc = ctypes.CDLL(None)
_PIECE_BYTES = 4 * 1024 * 1024
_LARGE_BYTES_MIN = 64 * 1024
PLAIN = (torch.Tensor, torch.nn.Parameter)
"""The types whose bytes are where they say: of others nothing is known."""

_Piece = tuple[int, int, int]
"""Of memory: to where, from where, how many bytes."""
_NO_MORE: Final[_Piece] = (0, 0, 0)


class Copier:
    """The threads stay from one call to the next: new ones wait for cores, which torch's own hold for a while
    after their work.
    """

    def __init__(self) -> None:
        self._crew = ThreadPoolExecutor(os.cpu_count())

    def copy(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Each source into its target, of the same shape. Copies between devices may still be under way."""
        pieces: SimpleQueue[_Piece] = SimpleQueue()
        large: list[tuple[torch.Tensor, torch.Tensor]] = []  # go by address: their memory must stay
        targets: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        cores = _other_cores()

        def help_out() -> None:
            with contextlib.suppress(OSError):  # refused in a sandbox: it takes longer, that is all
                os.sched_setaffinity(0, cores)
            while (piece := pieces.get()) != _NO_MORE:
                ctypes.memmove(*piece)  # the GIL is free meanwhile

        helping = [self._crew.submit(help_out) for _ in range(threads() - 1)]
        try:
            for target, source in pairs:
                if _is_bytes(target, source):
                    large.append((target, source))
                    for piece in _pieces(target, source):
                        pieces.put(piece)
                elif type(target) in PLAIN and type(source) in PLAIN:
                    targets.append(target)
                    sources.append(source)
                else:  # it may know how to copy one, and not how to copy many
                    target.copy_(source, non_blocking=True)
            if targets:  # in this thread, whose devices and streams they are for
                torch._foreach_copy_(targets, sources, non_blocking=True)
            with contextlib.suppress(Empty):
                while True:
                    ctypes.memmove(*pieces.get_nowait())
        finally:
            for _ in helping:
                pieces.put(_NO_MORE)
            wait(helping)
        for done in helping:
            done.result()

    def close(self) -> None:
        self._crew.shutdown()


def _other_cores() -> set[int]:
    """All that this thread may run on but the one where it is, if there are any. A thread is often woken on
    the core of the one that wakes it, and both wait for each other until the kernel's next tick.
    """
    cores = os.sched_getaffinity(0)
    return cores - {_libc.sched_getcpu()} or cores


def threads() -> int:
    """This rank's share of the node's cores."""
    return torch.get_num_threads()


def _is_bytes(target: torch.Tensor, source: torch.Tensor) -> bool:
    return (
        source.nbytes >= _LARGE_BYTES_MIN
        and source.dtype == target.dtype
        and source.shape == target.shape
        and all(type(one) in PLAIN and one.is_cpu and one.is_contiguous() for one in (target, source))
        and not (source.is_conj() or source.is_neg())
    )


def _pieces(target: torch.Tensor, source: torch.Tensor) -> Iterator[_Piece]:
    to, of, end = target.data_ptr(), source.data_ptr(), source.nbytes
    for start in range(0, end, _PIECE_BYTES):
        yield to + start, of + start, min(_PIECE_BYTES, end - start)
