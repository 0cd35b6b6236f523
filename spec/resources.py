"""What nodes have and what tasks ask for. Units last in every name; cpus are counted in thousandths."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from msgspec import Struct

from .slices import asks_for_slice

WHOLE_GPU_MILLI: Final = 1000


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount: of a node's capacity, of what is free on it, or of what one task takes."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    """Whole ones."""
    gpu_milli: int = 0
    """Of what a task takes: a share of one GPU, 1 to 999, and then no whole ones. Of what is free: what is
    left of GPUs of which shares are taken, together."""

    @property
    def gpus_milli(self) -> int:
        """Whole GPUs and shares together, in thousandths."""
        return self.gpus * WHOLE_GPU_MILLI + self.gpu_milli

    @property
    def on_gpu(self) -> bool:
        return bool(self.gpus or self.gpu_milli)


class GpuWish(NamedTuple):
    """Which GPUs will do. One that asks for slices is given nothing else, and one that does not, no slice."""

    models: tuple[str, ...] = ()
    """Any of these (case-insensitive substrings of the NVML name); empty: any whole GPU."""
    memory_bytes: int = 0
    """The least that each of them has in all."""

    @property
    def slices(self) -> bool:
        return any(map(asks_for_slice, self.models))


ANY_GPU: Final = GpuWish()

_wish: Final = lru_cache(maxsize=1024)(GpuWish)
"""Made anew it would cost a third of the look at a node."""

Wanted = tuple[tuple[str, tuple[str, ...]], ...]
"""Keys of labels, ascending, each with the values of which any will do."""


class Constraints(Struct, frozen=True):
    """On which nodes a gang may be, and how close together."""

    labels: Wanted = ()
    """Every one of these."""
    prefer: Wanted = ()
    """Nodes with more of these first."""
    tolerate: tuple[tuple[str, str], ...] = ()
    """Taints that it bears, by key and value; an empty value stands for any."""
    within: str = ""
    """All of it on nodes with the same value of this label; empty: anywhere."""
    within_preferred: bool = False
    """That is a wish: else within the next wider level, or anywhere."""


class GangDemand(Struct, frozen=True, cache_hash=True):
    """All that placement needs to know of a job: equal tasks, placed together. An elastic job takes what
    there is room for, from `instance_count_min` on."""

    per_task: Resources
    instance_count: int = 1
    instance_count_min: int = 1
    instance_count_max: int = 1
    processes_per_task: int = 1
    gpu_models: tuple[str, ...] = ()
    """As in GpuWish."""
    environment: str = ""
    """Name that a node must have mapped to an interpreter; empty: the node's own."""
    exclusive: bool = False
    """Never two at once: replaced only after the lease has run out on both sides."""
    rendezvous: bool = False
    """Rank 0's node must keep a TCPStore (distribution: pytorch)."""
    constraints: Constraints | None = None
    """None: any node without taints."""
    pool: str = ""
    """Only its nodes will do; empty: those that are not set apart by a pool."""
    gpu_memory_bytes: int = 0
    """As in GpuWish."""
    image: str = ""
    """A node that maps nothing to `environment` runs it in this, with a container engine; empty: none can."""

    @property
    def gpu(self) -> GpuWish:
        return _wish(self.gpu_models, self.gpu_memory_bytes)

    @property
    def elastic(self) -> bool:
        """Gangs of different sizes will do."""
        return self.instance_count_min < self.instance_count_max

    @property
    def near(self) -> str:
        """The label of which its nodes shall have the same value, at best; empty: none, or one task."""
        return self.constraints.within if self.constraints and self.instance_count_max > 1 else ""

    @property
    def within(self) -> str:
        """The label of which its nodes must have the same value."""
        return "" if self.constraints and self.constraints.within_preferred else self.near
