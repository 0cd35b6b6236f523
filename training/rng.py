"""The random number generators of one rank, as tensors: nothing to unpickle when they come back.

python's `random`, numpy's global generator (when the script has imported numpy), torch's CPU generator and
the current CUDA device's. Each rank has its own. A rank that was not there at the save gets generators that
rank 0's state and its own number determine: the same in each restore of that checkpoint, and no other rank's.
"""

import math
import random
import struct
import sys
from array import array
from collections.abc import Mapping
from typing import Any

import torch
import xxhash

_NO_GAUSS = math.nan


def capture() -> dict[str, torch.Tensor]:
    """The generators as they stand. Taking this changes none of them."""
    states = {"torch": torch.get_rng_state(), "python": _capture_python()}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        states["numpy"] = _capture_numpy(numpy)
    cuda: Any = torch.cuda
    if cuda.is_available() and cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def apply(states: Mapping[str, torch.Tensor]) -> None:
    """Set the generators back. One that this process does not have is left out."""
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "python" in states:
        _apply_python(states["python"])
    if "numpy" in states and sys.modules.get("numpy") is not None:
        _apply_numpy(sys.modules["numpy"], states["numpy"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def branch(states: Mapping[str, torch.Tensor], rank: int) -> None:
    """Seed all generators from rank 0's `states`, for a rank that has none of its own."""
    seed = xxhash.xxh3_64_intdigest(states["torch"].numpy().tobytes(), seed=rank)
    torch.manual_seed(seed)  # CUDA's, too
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def _capture_python() -> torch.Tensor:
    version, words, gauss = random.getstate()
    return _tensor([version, _bits(_NO_GAUSS if gauss is None else gauss), *words])


def _apply_python(state: torch.Tensor) -> None:
    version, gauss, *words = state.tolist()
    random.setstate((version, tuple(words), _gauss(gauss)))


def _capture_numpy(numpy: Any) -> torch.Tensor:
    state = numpy.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":  # the script has put another generator there: its own to keep
        return torch.empty(0, dtype=torch.int64)
    words = state["state"]["key"].tolist()
    gauss = [state["has_gauss"], _bits(float(state["gauss"])), state["state"]["pos"]]
    return _tensor([*gauss, *words])


def _apply_numpy(numpy: Any, state: torch.Tensor) -> None:
    if not state.numel():
        return
    has_gauss, gauss, position, *words = state.tolist()
    key = numpy.array(words, dtype=numpy.uint32)
    numpy.random.set_state(("MT19937", key, position, has_gauss, _float(gauss)))


def _tensor(numbers: list[int]) -> torch.Tensor:
    """torch.tensor looks at each of them, which takes five times as long."""
    return torch.frombuffer(array("q", numbers), dtype=torch.int64)


def _gauss(bits: int) -> float | None:
    value = _float(bits)
    return None if math.isnan(value) else value


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _float(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
