"""The cluster's policy as one frozen document: queues and their shares, pools of nodes, the order of waiting.

An admin writes it as YAML in the style of job files, and `pace policy apply` puts it in force while jobs run.
As in parts.py, every field's docstring becomes its description in the JSON Schema.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from .fields import ENTRIES_MAX, Count, Line, Loose, Name, Number, refusal
from .moments import moment_us, parse_moment
from .parts import Model, Words
from .policies import OnOff
from .problems import Path, nearest, shown

QUEUE_DEPTH_MAX: Final = 8
QUEUES_MAX: Final = 2_000
"""In the whole tree."""
GPUS_MAX: Final = 1_000_000
CPUS_MAX: Final = 100_000_000
CLASSES_MAX: Final = 16
WINDOWS_MAX: Final = 100
"""Of one pool; so many reservations, too."""
NODES_MAX: Final = 1_000_000
HOURS_MAX: Final = 8_784
"""A year, as `limits.timeout` has it."""


class Amount(Model):
    """Of a queue, with all that is below it."""

    gpus: Number | None = Field(default=None, ge=0, le=GPUS_MAX)
    """GPUs; shares of one count as such. Absent: not said."""
    cpus: Number | None = Field(default=None, ge=0, le=CPUS_MAX)
    """CPUs. Absent: not said."""


class UserAmount(Model):
    """Of one user, in a queue with all that is below it."""

    gpus: Number | None = Field(default=None, ge=0, le=GPUS_MAX)
    """GPUs at once; absent: no limit."""
    jobs: Count | None = Field(default=None, ge=0, le=GPUS_MAX)
    """Jobs that are placed at once; absent: no limit."""


class QueueSpec(Model):
    """A part of the organisation whose jobs stand in a line of their own."""

    weight: Number = Field(default=1.0, gt=0, le=1_000_000)
    """Its share among the queues and users beside it: with 2 it gets twice what one with 1 gets."""
    guaranteed: Amount = Amount()
    """What it has whenever it asks for it, if need be from those who have more than their own guarantee."""
    max: Amount = Amount()
    """What its jobs never have more than, even when all else is idle."""
    max_per_user: UserAmount = UserAmount()
    """What each user's jobs in it never have more than."""
    users: Words | None = None
    """Who may submit to it and to what is below it; absent: everybody."""
    queues: dict[Name, "QueueSpec"] = Field(default={}, max_length=ENTRIES_MAX)
    """The queues that it is made of."""


def _moment(value: Any) -> str:
    try:
        return parse_moment(value if isinstance(value, str) else "")
    except ValueError:
        text = "expected a time with its zone, such as 2026-12-01T06:00Z or 2026-12-01T07:00+01:00"
        raise refusal(f"{text}; found {shown(value)}") from None


Moment = Annotated[
    str, BeforeValidator(_moment), WithJsonSchema({"type": "string", "examples": ["2026-12-01T06:00Z"]})
]


class WindowSpec(Model):
    """A time at which a pool's nodes belong to those who repair them."""

    from_: Moment = Field(alias="from")
    """When it begins, with its zone, such as 2026-12-01T06:00Z: what runs there then saves and leaves."""
    to: Moment
    """When it ends, likewise."""
    why: Line = ""
    """What for; `pace why` says it."""


class ReservationSpec(Model):
    """Nodes of a pool that are kept for some; jobs ask for them with `compute: POOL/NAME`."""

    from_: Moment = Field(alias="from")
    """When it begins, with its zone, such as 2026-12-01T06:00Z: who runs there and is not of it leaves."""
    to: Moment
    """When it ends, likewise; what runs there goes on."""
    nodes: Count = Field(ge=1, le=NODES_MAX)
    """How many: the first of the pool by name that no other reservation has then."""
    users: Words | None = None
    """Whose jobs may ask for it; absent: those of all users, where `queues` says of which queues."""
    queues: Words | None = None
    """Of which queues (and those below them) jobs may ask for it; absent: of all."""
    why: Line = ""
    """What for; `pace why` says it."""


class PoolDefaults(Model):
    """What holds for a pool's jobs that do not say it themselves."""

    timeout_hours: Number | None = Field(default=None, gt=0, le=HOURS_MAX)
    """`limits.timeout`; absent: `max_timeout_hours`, and no limit where that is absent, too."""


class PoolSpec(Model):
    """Nodes that jobs ask for with `compute: NAME`."""

    nodes: Words = ()
    """Names of nodes, with * and ? for any characters, such as `rack3-*`."""
    labels: dict[Line, Loose] = Field(default={}, max_length=ENTRIES_MAX)
    """And the nodes that have all of these labels."""
    users: Words | None = None
    """Whose jobs may run there; absent: everybody's."""
    queues: Words | None = None
    """Of which queues (and those below them) jobs may run there; absent: all."""
    max_gpus_per_job: Number | None = Field(default=None, gt=0, le=GPUS_MAX)
    """The largest job; absent: no limit."""
    max_timeout_hours: Number | None = Field(default=None, gt=0, le=HOURS_MAX)
    """The longest `limits.timeout` of a job; absent: no limit."""
    defaults: PoolDefaults = PoolDefaults()
    """What holds for its jobs that do not say it themselves."""
    default: bool = Field(default=False, strict=True)
    """Where jobs go that name no pool. Without a default pool they go to all nodes but those of pools that
    are only for some users or queues."""
    maintenance: tuple[WindowSpec, ...] = Field(default=(), max_length=WINDOWS_MAX)
    """When nobody's job runs there."""
    reservations: dict[Name, ReservationSpec] = Field(default={}, max_length=WINDOWS_MAX)
    """Nodes that are kept for some users or queues during a span."""


class UsageSpec(Model):
    """How what was used before counts."""

    half_life_hours: Number = Field(default=168.0, ge=1, le=87_600)
    """After so many hours a GPU-hour counts half."""


def _ascending(limits: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in itertools.pairwise(limits)):
        raise refusal("expected growing numbers")
    return limits


ClassLimits = Annotated[
    tuple[Annotated[Number, Field(gt=0, le=1_000_000_000)], ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    AfterValidator(_ascending),
    Field(max_length=CLASSES_MAX),
    WithJsonSchema({"type": "array", "items": {"type": "number"}, "maxItems": CLASSES_MAX}),
]


class OrderSpec(Model):
    """The order in which waiting jobs start."""

    class_limits_gpu_hours: ClassLimits = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0)
    """A job's class is how many of these it has had, in GPU-hours; the lowest class goes first."""
    min_run_minutes: Number = Field(default=10.0, ge=0, le=100_000)
    """A job is not preempted before it has run so long."""
    patience_hours: Number = Field(default=6.0, ge=0, le=10_000)
    """A job counts as one class lower for each time that it has waited so long; 0: waiting lifts nobody."""
    lifted_percent: Count = Field(default=15, ge=0, le=100)
    """Of the cluster: what those that were lifted so may have before others are, while all whose patience is
    over would leave less than that to others."""
    preemption: OnOff = True
    """Whether running jobs are ever stopped for waiting ones."""
    defragment: OnOff = False
    """Whether running jobs are moved to other nodes where a gang does not fit for fragmentation only."""


class PolicySpec(Model):
    """Who gets what of the cluster, and when."""

    queues: dict[Name, QueueSpec] = Field(default={}, max_length=ENTRIES_MAX)
    """The organisation, as a tree of queues."""
    default_queue: Line = ""
    """The queue of jobs that name none, such as `research/vision`; absent: the root of the tree."""
    max_per_user: UserAmount = UserAmount()
    """What each user's jobs never have more than in the whole cluster."""
    pools: dict[Name, PoolSpec] = Field(default={}, max_length=ENTRIES_MAX)
    """Named groups of nodes."""
    usage: UsageSpec = UsageSpec()
    """How what was used before counts."""
    order: OrderSpec = OrderSpec()
    """The order in which waiting jobs start."""

    def to_json(self) -> str:
        """Canonical JSON: equal policies have equal text, defaults included."""
        plain = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def each_queue(
    queues: dict[str, QueueSpec], at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], QueueSpec]]:
    """Every queue with the names that lead to it, parents first."""
    for name, queue in queues.items():
        yield (*at, name), queue
        yield from each_queue(queue.queues, (*at, name))


def refusals_of(spec: PolicySpec) -> Iterator[tuple[Path, str, str]]:
    """Path, text and nearest valid word of all that cannot be meant so."""
    queues = {"/".join(names): (names, queue) for names, queue in each_queue(spec.queues)}
    if len(queues) > QUEUES_MAX:
        yield ("queues",), f"expected at most {QUEUES_MAX} queues in all; found {len(queues)}", ""
    for names, queue in queues.values():
        if len(names) > QUEUE_DEPTH_MAX:
            yield _path(names), f"nested more than {QUEUE_DEPTH_MAX} deep", ""
        yield from _amount_refusals(_path(names), queue)
    if spec.default_queue and spec.default_queue not in queues:
        yield _unknown_queue(("default_queue",), spec.default_queue, queues)
    defaults = [name for name, pool in spec.pools.items() if pool.default]
    for name, pool in spec.pools.items():
        if not pool.nodes and not pool.labels:
            yield ("pools", name), "expected nodes or labels: which nodes are in it", ""
        if pool.default and name != defaults[0]:
            yield ("pools", name, "default"), f"the pool {defaults[0]} is the default already", ""
        yield from _queue_refusals(("pools", name), pool.queues, queues)
        usual, most = pool.defaults.timeout_hours, pool.max_timeout_hours
        if usual is not None and most is not None and usual > most:
            text = f"expected at most max_timeout_hours ({most:g}); found {usual:g}"
            yield ("pools", name, "defaults", "timeout_hours"), text, ""
        for at, window in enumerate(pool.maintenance):
            yield from _span_refusals(("pools", name, "maintenance", at), window.from_, window.to)
        for title, kept in pool.reservations.items():
            path: Path = ("pools", name, "reservations", title)
            yield from _span_refusals(path, kept.from_, kept.to)
            yield from _queue_refusals(path, kept.queues, queues)
            if kept.users is None and kept.queues is None:
                yield path, "expected users or queues: whom the nodes are kept for", ""


def _queue_refusals(
    at: Path, named: tuple[str, ...] | None, queues: dict[str, Any]
) -> Iterator[tuple[Path, str, str]]:
    for index, name in enumerate(named or ()):
        if name not in queues:
            yield _unknown_queue((*at, "queues", index), name, queues)


def _span_refusals(at: Path, begin: str, end: str) -> Iterator[tuple[Path, str, str]]:
    if moment_us(end) <= moment_us(begin):
        yield (*at, "to"), f"expected a time after {begin}; found {end}", ""


def _path(names: tuple[str, ...]) -> Path:
    return tuple(part for name in names for part in ("queues", name))


def _unknown_queue(at: Path, name: str, queues: dict[str, Any]) -> tuple[Path, str, str]:
    return at, f"expected a queue of this policy; found {shown(name)}", nearest(name, queues)


def _amount_refusals(at: Path, queue: QueueSpec) -> Iterator[tuple[Path, str, str]]:
    """A guarantee has to be below the limit, and those of the queues below one within its own."""
    for what in ("gpus", "cpus"):
        own, most = getattr(queue.guaranteed, what), getattr(queue.max, what)
        below = sum(getattr(inner.guaranteed, what) or 0 for inner in queue.queues.values())
        if own is not None and most is not None and own > most:
            text = f"expected at most max.{what} ({most:g}); found {own:g}"
            yield (*at, "guaranteed", what), text, ""
        if own is not None and below > own:
            text = f"the queues below it are guaranteed {below:g} together, which is more than {own:g}"
            yield (*at, "guaranteed", what), text, ""
        elif most is not None and below > most:
            text = f"the queues below it are guaranteed {below:g} together, which is more than {most:g}"
            yield (*at, "max", what), text, ""
