"""Many tensors copied at once, in as many threads as torch has here.

Torch's own threads share out each tensor and then wait for each other; where the cores have other work (a
persister, another rank, a data loader) each of these waits costs, and large states were copied several times
as slowly as by one thread. Ours take the next piece when they have done one.
"""

import ctypes
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_PIECE_BYTES = 4 * 1024 * 1024
_LARGE_BYTES_MIN = 64 * 1024
PLAIN = (torch.Tensor, torch.nn.Parameter)
"""The types whose bytes are where they say: of others nothing is known."""

_Piece = tuple[int, int, int]
"""Of memory: to where, from where, how many bytes."""


def copy_all(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Each source into its target, of the same shape. Copies between devices may still be under way."""
    taking = threading.Lock()
    large: list[tuple[torch.Tensor, torch.Tensor]] = []  # read and written by address: their memory must stay
    others: list[tuple[torch.Tensor, torch.Tensor]] = []
    pieces = _pieces(pairs, large, others)

    def drain() -> None:
        while True:
            with taking:
                piece = next(pieces, None)
            if piece is None:
                return
            ctypes.memmove(*piece)  # the GIL is free meanwhile

    with ThreadPoolExecutor(threads()) as crew:
        helping = [crew.submit(drain) for _ in range(threads() - 1)]
        drain()
        for target, source in others:  # in this thread, whose device and stream they are for
            target.copy_(source, non_blocking=True)
        for done in helping:
            done.result()


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


def _pieces(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], large: list[Any], others: list[Any]
) -> Iterator[_Piece]:
    """Of the large ones; all pairs are kept in one of the lists."""
    for target, source in pairs:
        if not _is_bytes(target, source):
            others.append((target, source))
            continue
        large.append((target, source))
        to, of, end = target.data_ptr(), source.data_ptr(), source.nbytes
        for start in range(0, end, _PIECE_BYTES):
            yield to + start, of + start, min(_PIECE_BYTES, end - start)
