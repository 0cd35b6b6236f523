"""MIG slices: how they are numbered, called and asked for, in words that agent, scheduler and client share.

A slice is a MIG device of NVIDIA's: a part of a GPU in MIG mode, with memory and compute units of its own,
which a process sees as its only GPU. Its index stands beside those of whole GPUs and is made of what NVML
says to be valid until the slice is destroyed, the ids of its GPU instance and of its compute instance; where
it comes in NVML's list changes with the others.
"""

import re
from collections.abc import Iterable
from typing import Final

INSTANCES_MAX: Final = 100
"""Ids of GPU instances and of compute instances are below."""
SLICES_FROM: Final = INSTANCES_MAX**2
"""The index of a whole GPU is below."""

_NAMES: Final = re.compile(r"\bmig\b|\d+g\.", re.IGNORECASE)


def slice_index(gpu: int, gpu_instance: int, compute_instance: int) -> int:
    return (gpu + 1) * SLICES_FROM + gpu_instance * INSTANCES_MAX + compute_instance


def gpu_of(index: int) -> int:
    """The GPU that it is a slice of; of a whole GPU, itself."""
    return index // SLICES_FROM - 1 if index >= SLICES_FROM else index


def gpus_of(indices: Iterable[int]) -> set[int]:
    """The GPUs that these are, or are slices of."""
    return {gpu_of(index) for index in indices}


def is_slice(index: int) -> bool:
    return index >= SLICES_FROM


def index_text(index: int) -> str:
    """`3`; of a slice its GPU and the ids of its two instances, as `nvidia-smi` has them: `3/7/0`."""
    if not is_slice(index):
        return str(index)
    gpu_instance, compute_instance = divmod(index % SLICES_FROM, INSTANCES_MAX)
    return f"{gpu_of(index)}/{gpu_instance}/{compute_instance}"


def is_slice_name(name: str) -> bool:
    """NVML calls them `NVIDIA A100-SXM4-40GB MIG 1g.5gb`."""
    return " MIG " in name


def profile_of(name: str) -> str:
    """`1g.5gb` of such a name."""
    return name.rpartition(" MIG ")[2]


def asks_for_slice(model: str) -> bool:
    """A job's word for a model means slices: it names a profile (`1g.5gb`, `1c.3g.20gb`) or `MIG`."""
    return _NAMES.search(model) is not None
