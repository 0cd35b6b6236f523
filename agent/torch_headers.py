"""What an interpreter's torch understands, seen from the headers that come with it: nothing is imported."""

from functools import lru_cache
from pathlib import Path
from typing import Final

ALLOCATOR: Final = "c10/cuda/CUDAAllocatorConfig.h"
FLIGHT_RECORDER: Final = "torch/csrc/distributed/c10d/FlightRecorder.hpp"
_PLACE: Final = "lib/python3*/site-packages/torch/include"


@lru_cache(maxsize=256)
def understands(interpreter: str, header: str, word: str) -> bool:
    """False also where the interpreter is not known (empty) or has no torch."""
    if not interpreter:
        return False
    found = Path(interpreter).parent.parent.glob(f"{_PLACE}/{header}")
    return any(word in each.read_text(errors="replace") for each in found)
