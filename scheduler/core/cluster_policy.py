"""The cluster's policy as decisions see it: queues, pools, and the order of waiting. An admin sets it.

One frozen object, in the state from the event that brought it until the next. A queue is called by the names
that lead to it, as in `research/vision`; the root of the tree is the empty text and always there.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .settings import Order

ROOT: Final = ""
HOUR_US: Final = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Amount:
    """Of GPUs and cpus; None: not said."""

    gpu_milli: int | None = None
    cpu_milli: int | None = None


NO_AMOUNT: Final = Amount()


@dataclass(frozen=True, slots=True)
class UserAmount:
    """The most of one user; None: no limit."""

    gpu_milli: int | None = None
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    weight: float = 1.0
    guaranteed: Amount = Amount()
    max: Amount = Amount()
    max_per_user: UserAmount = UserAmount()
    users: tuple[str, ...] | None = None
    """Who may submit to it and to what is below it; None: everybody."""


@dataclass(frozen=True, slots=True)
class Window:
    """A time at which a pool's nodes are under maintenance."""

    from_us: int
    to_us: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Reservation:
    """So many nodes of a pool that are kept for some."""

    from_us: int
    to_us: int
    nodes: int
    users: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """Nodes by name (with * and ?), or by labels that they all have."""

    nodes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    users: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    max_gpu_milli_per_job: int | None = None
    default: bool = False
    maintenance: tuple[Window, ...] = ()
    reservations: Mapping[str, Reservation] = field(default_factory=dict)
    timeout_us: int = 0
    """Of jobs that say none; 0: none."""
    max_timeout_us: int = 0


@dataclass(frozen=True, slots=True)
class ClusterPolicy:
    """`document` is the canonical JSON that it was made of; decisions never look into it."""

    queues: Mapping[str, QueuePolicy] = field(default_factory=dict)
    """By path, each after the one above it. The root is in it where something is said of it."""
    default_queue: str = ROOT
    pools: Mapping[str, PoolPolicy] = field(default_factory=dict)
    half_life_us: int = 168 * HOUR_US
    order: Order | None = None
    """None: as the settings have it."""
    document: str = ""


NO_POLICY: Final = ClusterPolicy()


@dataclass(frozen=True, slots=True)
class QueueTree:
    """What follows from a policy's queues."""

    guaranteed: Mapping[str, Amount] = field(default_factory=dict)
    """What is kept for each queue: its own guarantee, and at least those of the queues below it together."""
    parted: frozenset[str] = frozenset()
    """Queues that have others below them."""


def tree_of(policy: ClusterPolicy) -> QueueTree:
    kept: dict[str, Amount] = {}
    below: defaultdict[str, list[Amount]] = defaultdict(list)
    parted: set[str] = set()
    for path in sorted(policy.queues, reverse=True):  # each before the one above it
        own, inner = policy.queues[path].guaranteed, below.pop(path, [])
        kept[path] = Amount(
            max(own.gpu_milli or 0, sum(one.gpu_milli or 0 for one in inner)),
            max(own.cpu_milli or 0, sum(one.cpu_milli or 0 for one in inner)),
        )
        if path != ROOT:
            above = path.rpartition("/")[0]
            below[above].append(kept[path])
            parted.add(above)
    return QueueTree(kept, frozenset(parted))
