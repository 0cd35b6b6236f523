"""A node as the scheduler holds it: what it has, what is known of it, and (derived) what is taken on it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from msgspec import Struct

from ...spec.gpu_health import GpuState
from ...spec.ids import Micros, NodeId, TaskKey
from ...spec.lifecycle import NodeContact
from ...spec.resources import WHOLE_GPU_MILLI, GpuWish, Resources
from ...spec.slices import is_slice_name
from .job import NEVER


class NodeGpu(Struct, frozen=True, cache_hash=True):
    """A healthy GPU that may be given to a task, or a healthy GPU's slice; a GPU in MIG mode is none itself.
    Whoever reads the wire leaves out the others."""

    index: int
    model: str
    numa: int = -1
    """NUMA node of the host; -1: not known."""
    linked: int = -1
    """The same for GPUs that NVLink joins, directly or by others; -1: it has none."""
    memory_bytes: int = 0
    """In all; 0: not known."""


@dataclass(frozen=True, slots=True)
class SickGpu:
    """A GPU or slice that is given to no task at present."""

    index: int
    model: str
    state: GpuState
    why: str
    since_us: Micros = NEVER
    """By its node's wall clock."""
    memory_bytes: int = 0


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
    leaving: bool = False
    """Its agent ends as soon as its tasks have."""
    labels: tuple[tuple[str, str], ...] = ()
    """Key and value, ascending by key."""
    taints: tuple[tuple[str, str], ...] = ()
    """Likewise; the value may be empty."""
    engine: str = ""
    """What it runs images with; empty: it cannot."""
    no_engine: str = ""
    """Why it cannot, in its own words."""


@dataclass(frozen=True, slots=True)
class Cordon:
    """An operator's word that a node gets no work until it is put back."""

    by: str
    why: str = ""
    since_us: Micros = NEVER
    drains: bool = False
    """What ran there was told to save and go on elsewhere."""


class Node(Struct, frozen=True):
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
    slow_us: tuple[Micros, ...] = ()
    """When ranks on it were found slower than their peers, oldest first: since it was drained last, as far as
    that counts still (`Settings.straggler_memory_us`), and no more than drain it."""
    cordon: Cordon | None = None
    """Stays whatever becomes of the agent; such a node is never forgotten."""

    @property
    def name(self) -> str:
        return self.inventory.name or self.node

    @property
    def in_service(self) -> bool:
        """Neither lost nor cordoned: it takes work, or will when it is heard of again."""
        return self.contact is not NodeContact.LOST and self.cordon is None

    @property
    def at_hand(self) -> bool:
        """In service, heard, and to stay so."""
        return self.contact is NodeContact.CONNECTED and self.cordon is None and not self.inventory.leaving


class GpuKind(NamedTuple):
    """What a task can tell of a GPU: its model, as NVML calls it, and its memory."""

    model: str
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """What is free on a node, with all else of it that decides what fits there and how well. Equal ones are
    one object, while they are remembered."""


class GpuGroup(NamedTuple):
    """What is free of a node's GPUs of one kind: whole ones, and what is left of shared ones, ascending."""

    kind: GpuKind
    free: int
    lefts: tuple[int, ...]


RoomKey = tuple[object, ...]
ROOMS_MAX: Final = 20_000


@dataclass(slots=True)
class Load:
    """What is taken on a node: derived from the placed jobs, rebuilt on recovery. Only evolve changes it."""

    free_cpu_milli: int
    free_memory_bytes: int
    free_gpus: dict[int, str]
    """Index to model, of those that are wholly free."""
    shared_gpus: dict[int, int] = field(default_factory=dict)
    """Index to the milli-GPU left, of those of which shares are taken."""
    tasks: dict[TaskKey, tuple[int, ...]] = field(default_factory=dict)
    """Of placed attempts, with the indices of their GPUs."""
    ports: dict[int, TaskKey] = field(default_factory=dict)
    """Rendezvous ports of live attempts, with the task of rank 0."""
    lingering: set[TaskKey] = field(default_factory=set)
    """Of ended attempts of exclusive jobs, not yet known to be gone; they hold no resources."""
    kinds: tuple[GpuKind, ...] = field(default=(), compare=False, repr=False)
    """Of the node's GPUs, each once."""
    groups: tuple[GpuGroup, ...] | None = field(default=None, compare=False, repr=False)
    """Memo of `gpu_groups`."""
    room: Room | None = field(default=None, compare=False, repr=False)
    """Memo of `room_of`."""

    @property
    def free(self) -> Resources:
        left = sum(self.shared_gpus.values())
        return Resources(self.free_cpu_milli, self.free_memory_bytes, len(self.free_gpus), left)

    def take(self, need: Resources, gpu_indices: tuple[int, ...]) -> None:
        """A GPU that is out of service is nobody's."""
        self.free_cpu_milli -= need.cpu_milli
        self.free_memory_bytes -= need.memory_bytes
        for index in gpu_indices:
            whole = self.free_gpus.pop(index, None) is not None
            if need.gpu_milli and (whole or index in self.shared_gpus):
                self.shared_gpus[index] = self.shared_gpus.get(index, WHOLE_GPU_MILLI) - need.gpu_milli
        self.groups = self.room = None

    def give_back(self, need: Resources, gpu_indices: tuple[int, ...], inventory: NodeInventory) -> None:
        self.free_cpu_milli += need.cpu_milli
        self.free_memory_bytes += need.memory_bytes
        self.groups = self.room = None
        for gpu in inventory.gpus if gpu_indices else ():
            if gpu.index not in gpu_indices:
                continue
            left = self.shared_gpus.pop(gpu.index, 0) + need.gpu_milli
            if need.gpus or left == WHOLE_GPU_MILLI:
                self.free_gpus[gpu.index] = gpu.model
            else:
                self.shared_gpus[gpu.index] = left


def fresh_load(inventory: NodeInventory) -> Load:
    return Load(
        inventory.capacity.cpu_milli,
        inventory.capacity.memory_bytes,
        {gpu.index: gpu.model for gpu in inventory.gpus},
        kinds=_kinds(inventory.gpus),
    )


def gpu_groups(inventory: NodeInventory, load: Load) -> tuple[GpuGroup, ...]:
    """What is free of the node's GPUs, by kind, in the order of the inventory."""
    if load.groups is None:
        load.groups = _groups(inventory, load)
    return load.groups


def room_of(rooms: dict[RoomKey, Room], inventory: NodeInventory, load: Load) -> Room:
    """Of one of the nodes that remember their rooms together."""
    if load.room is None:
        key = (
            gpu_groups(inventory, load),
            len(load.free_gpus) == len(inventory.gpus),
            load.free_cpu_milli,
            load.free_memory_bytes,
            inventory.environments,
            bool(inventory.engine),
            inventory.labels,
            inventory.taints,
        )
        if len(rooms) >= ROOMS_MAX and key not in rooms:
            rooms.clear()
        load.room = rooms.setdefault(key, Room())
    return load.room


@lru_cache(maxsize=4096)
def matches(kind: GpuKind, wish: GpuWish) -> bool:
    """Such a GPU will do."""
    if kind.memory_bytes < wish.memory_bytes or is_slice_name(kind.model) != wish.slices:
        return False
    return is_called(kind.model, wish.models)


def will_do(gpu: NodeGpu | SickGpu, wish: GpuWish) -> bool:
    return matches(GpuKind(gpu.model, gpu.memory_bytes), wish)


def is_called(model: str, models: tuple[str, ...]) -> bool:
    """Its name holds any of these; empty: any will do."""
    return not models or any(one.casefold() in model.casefold() for one in models)


def gpus_matching(gpus: Iterable[NodeGpu | SickGpu], wish: GpuWish) -> list[int]:
    """Indices of those that will do."""
    return [gpu.index for gpu in gpus if will_do(gpu, wish)]


def free_matching(inventory: NodeInventory, load: Load, wish: GpuWish) -> list[int]:
    """Of those that will do, which are wholly free; in no order."""
    if all(matches(group.kind, wish) for group in gpu_groups(inventory, load)):
        return list(load.free_gpus)
    return gpus_matching((gpu for gpu in inventory.gpus if gpu.index in load.free_gpus), wish)


@lru_cache(maxsize=4096)
def _kinds(gpus: tuple[NodeGpu, ...]) -> tuple[GpuKind, ...]:
    """Each once."""
    return tuple(dict.fromkeys(GpuKind(gpu.model, gpu.memory_bytes) for gpu in gpus))


def _groups(inventory: NodeInventory, load: Load) -> tuple[GpuGroup, ...]:
    if len(load.kinds) == 1:
        lefts = tuple(sorted(left for left in load.shared_gpus.values() if left)) if load.shared_gpus else ()
        return (GpuGroup(load.kinds[0], len(load.free_gpus), lefts),)
    return _groups_by_kind(inventory, load)


def _groups_by_kind(inventory: NodeInventory, load: Load) -> tuple[GpuGroup, ...]:
    free: dict[tuple[str, int], int] = {}
    lefts: dict[tuple[str, int], list[int]] = {}
    for gpu in inventory.gpus:
        kind = gpu.model, gpu.memory_bytes
        if kind not in free:
            free[kind], lefts[kind] = 0, []
        if gpu.index in load.free_gpus:
            free[kind] += 1
        elif left := load.shared_gpus.get(gpu.index):
            lefts[kind].append(left)
    return tuple(GpuGroup(GpuKind(*kind), free[kind], tuple(sorted(lefts[kind]))) for kind in free)
