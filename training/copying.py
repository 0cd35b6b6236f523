"""Many tensors copied at once, in as many threads as torch has here.

Torch's own threads share out each tensor and then wait for each other; where the cores have other work (a
persister, another rank, a data loader) each of these waits costs, and large states were copied several times
as slowly as by one thread. Ours take the next piece when they have done one.
"""

import ctypes
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch

_PIECE_BYTES = 4 * 1024 * 1024
_LARGE_BYTES_MIN = 64 * 1024
PLAIN = (torch.Tensor, torch.nn.Parameter)
"""The types whose bytes are where they say: of others nothing is known."""

_Piece = tuple[int, int, int]
"""Of memory: to where, from where, how many bytes."""


def copy_all(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Each source into its target, of the same shape. Copies between devices may still be under way."""
    pieces: SimpleQueue[_Piece | None] = SimpleQueue()
    large: list[tuple[torch.Tensor, torch.Tensor]] = []  # read and written by address: their memory must stay

    def drain() -> None:
        while (piece := pieces.get()) is not None:
            ctypes.memmove(*piece)  # the GIL is free meanwhile

    with ThreadPoolExecutor(threads()) as crew:
        helping = [crew.submit(drain) for _ in range(threads() - 1)]
        try:
            for target, source in pairs:
                if _is_bytes(target, source):
                    large.append((target, source))
                    for piece in _pieces(target, source):
                        pieces.put(piece)
                else:  # in this thread, whose device and stream it is for
                    target.copy_(source, non_blocking=True)
        finally:
            for _ in range(threads()):
                pieces.put(None)
        drain()
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


def _pieces(target: torch.Tensor, source: torch.Tensor) -> Iterator[_Piece]:
    to, of, end = target.data_ptr(), source.data_ptr(), source.nbytes
    for start in range(0, end, _PIECE_BYTES):
        yield to + start, of + start, min(_PIECE_BYTES, end - start)
