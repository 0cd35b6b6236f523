"""A node as the scheduler holds it: what it has, what is known of it, and (derived) what is taken on it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...spec.gpu_health import GpuState
from ...spec.ids import Micros, NodeId, TaskKey
from ...spec.lifecycle import NodeContact
from ...spec.resources import Resources
from .job import NEVER


@dataclass(frozen=True, slots=True)
class NodeGpu:
    """A GPU that may be given to a task: healthy and whole. Whoever reads the wire leaves out the others."""

    index: int
    model: str


@dataclass(frozen=True, slots=True)
class SickGpu:
    """A GPU that is given to no task at present."""

    index: int
    model: str
    state: GpuState
    why: str
    since_us: Micros = NEVER
    """By its node's wall clock."""


@dataclass(frozen=True, slots=True)
class NodeInventory:
    """The facts that placement needs. `details` is the whole inventory as JSON text, for people to see."""

    name: str
    address: str
    capacity: Resources
    gpus: tuple[NodeGpu, ...] = ()
    environments: tuple[str, ...] = ()
    rendezvous_ports: tuple[int, ...] = ()
    details: str = ""
    sick: tuple[SickGpu, ...] = ()
    warming: bool = False
    """Its warm pool still imports what ranks need: a start there waits for it."""


@dataclass(frozen=True, slots=True)
class Cordon:
    """An operator's word that a node gets no work until it is put back."""

    by: str
    why: str = ""
    since_us: Micros = NEVER
    drains: bool = False
    """What ran there was told to save and go on elsewhere."""


@dataclass(frozen=True, slots=True)
class Node:
    """`session` and `last_heard_us` are of this scheduler process and are not kept."""

    node: NodeId
    inventory: NodeInventory
    contact: NodeContact = NodeContact.UNKNOWN
    incarnation: str = ""
    since_us: Micros = NEVER
    """When `contact` became what it is."""
    why: str = ""
    """Why contact was lost."""
    session: int = 0
    last_heard_us: Micros = NEVER

    refusals: int = 0
    """Transient refusals of starts in a row, since one worked."""
    rests_until_us: Micros = NEVER
    """It gets no work before."""
    refusal: str = ""
    """What it said, in its own words; or why it was drained."""
    slow_reports: int = 0
    """How often ranks on it were found slower than their peers, since it was drained last."""
    cordon: Cordon | None = None
    """Stays whatever becomes of the agent; such a node is never forgotten."""

    @property
    def name(self) -> str:
        return self.inventory.name or self.node

    @property
    def in_service(self) -> bool:
        """Neither lost nor cordoned: it takes work, or will when it is heard of again."""
        return self.contact is not NodeContact.LOST and self.cordon is None


@dataclass(slots=True)
class Load:
    """What is taken on a node: derived from the placed jobs, rebuilt on recovery. Only evolve changes it."""

    free_cpu_milli: int
    free_memory_bytes: int
    free_gpus: dict[int, str]
    """Index to model, in the order of the inventory."""
    tasks: dict[TaskKey, tuple[int, ...]] = field(default_factory=dict)
    """Of placed attempts, with the indices of their GPUs."""
    ports: dict[int, TaskKey] = field(default_factory=dict)
    """Rendezvous ports of live attempts, with the task of rank 0."""
    lingering: set[TaskKey] = field(default_factory=set)
    """Of ended attempts of exclusive jobs, not yet known to be gone; they hold no resources."""

    @property
    def free(self) -> Resources:
        return Resources(self.free_cpu_milli, self.free_memory_bytes, len(self.free_gpus))


def gpus_matching(gpus: Iterable[tuple[int, str]], models: tuple[str, ...]) -> list[int]:
    """Indices of the GPUs whose model holds any of `models` (case-insensitive; empty: all)."""
    if not models:
        return [index for index, _ in gpus]
    wanted = [model.casefold() for model in models]
    return [index for index, name in gpus if any(model in name.casefold() for model in wanted)]
