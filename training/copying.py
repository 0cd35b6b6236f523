"""Many tensors copied at once, in as many threads as torch has here.

Torch's own threads share out each tensor and then wait for each other; where the cores have other work (a
persister, another rank, a data loader) each of these waits costs, and large states were copied several times
as slowly as by one thread. Ours take the next piece when they have done one.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

_PIECE_BYTES = 4 * 1024 * 1024
_LARGE_BYTES_MIN = 64 * 1024
_PLAIN = (torch.Tensor, torch.nn.Parameter)

_Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def copy_all(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Each source into its target, of the same shape. Copies between devices may still be under way."""
    pieces: list[tuple[_Bytes, _Bytes]] = []
    for target, source in pairs:
        if _is_bytes(target, source):
            pieces += _pieces(target, source)
        else:
            target.copy_(source, non_blocking=True)
    if not pieces:
        return
    queue = iter(pieces)
    with ThreadPoolExecutor(threads()) as crew:
        for done in [crew.submit(_drain, queue) for _ in range(threads())]:
            done.result()


def threads() -> int:
    """This rank's share of the node's cores."""
    return torch.get_num_threads()


def _is_bytes(target: torch.Tensor, source: torch.Tensor) -> bool:
    return (
        source.nbytes >= _LARGE_BYTES_MIN
        and source.dtype == target.dtype
        and source.shape == target.shape
        and all(
            type(one) in _PLAIN and one.device.type == "cpu" and one.is_contiguous()
            for one in (target, source)
        )
        and not (source.is_conj() or source.is_neg())
    )


def _pieces(target: torch.Tensor, source: torch.Tensor) -> Iterator[tuple[_Bytes, _Bytes]]:
    to, of = (one.detach().view(-1).view(torch.uint8).numpy() for one in (target, source))
    for start in range(0, len(of), _PIECE_BYTES):
        yield to[start : start + _PIECE_BYTES], of[start : start + _PIECE_BYTES]


def _drain(queue: Iterator[tuple[_Bytes, _Bytes]]) -> None:
    for target, source in queue:
        np.copyto(target, source)
