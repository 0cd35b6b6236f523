"""What the verbs on the cluster's policy return; see views.py."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..spec.ids import Micros


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy that is in force. `document`: canonical JSON, defaults included."""

    document: str
    by: str
    changed_us: Micros | None
    """None: nobody has ever applied one."""


@dataclass(frozen=True, slots=True)
class Quota:
    """An amount, in thousandths of GPUs and cpus; None: not said."""

    gpu_milli: int | None
    cpu_milli: int | None
    jobs: int | None


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of the policy, or a user's leaf below one."""

    path: str
    """Empty: the root of the tree."""
    declared: bool
    """It is in the policy; else it is a user's leaf."""
    weight: float
    share: float
    """Of the cluster, by the weights of all that are there."""
    guaranteed: Quota
    max: Quota
    max_per_user: Quota
    users: tuple[str, ...] | None
    """Who may submit; None: everybody."""
    in_use: Quota
    waiting: int
    """Jobs."""
    used_gpu_hours: float
    """Decayed by the policy's half-life."""
    rank: int | None
    """Of those with waiting jobs, whose turn it is; None: none waits."""
    user_in_use: Quota
    """Of the user that was asked for."""


@dataclass(frozen=True, slots=True)
class Window:
    """When a pool's nodes are under maintenance."""

    from_us: Micros
    to_us: Micros
    why: str


@dataclass(frozen=True, slots=True)
class Reservation:
    """Nodes of a pool that are kept for some, whose jobs ask for them with `compute: POOL/NAME`."""

    name: str
    from_us: Micros
    to_us: Micros
    nodes: int
    """As many as are asked for."""
    node_names: tuple[str, ...]
    """Those that it has."""
    users: tuple[str, ...] | None
    queues: tuple[str, ...] | None
    why: str


@dataclass(frozen=True, slots=True)
class Pool:
    """A named group of nodes."""

    name: str
    node_names: tuple[str, ...]
    """Patterns."""
    labels: Mapping[str, str]
    users: tuple[str, ...] | None
    """Whose jobs may run there; None: everybody's."""
    queues: tuple[str, ...] | None
    """Of which queues; None: of all."""
    max_gpu_milli_per_job: int | None
    timeout_us: int | None
    """`limits.timeout` of jobs that say none; None: none."""
    max_timeout_us: int | None
    default: bool
    """Where jobs go that name no pool."""
    nodes: int
    connected: int
    gpus: int
    gpus_free: int
    """Wholly free, on nodes that take work."""
    cpu_milli: int
    cpu_milli_free: int
    waiting: int
    """Jobs."""
    maintenance: tuple[Window, ...]
    """In the order of the policy, with those that are over."""
    reservations: tuple[Reservation, ...]
    """Likewise."""
