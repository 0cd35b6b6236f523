"""The seam between the loop and whatever keeps its state. Its meaning is tests/conformance/store.py.

Rows are flat tuples, their fields the columns' names; bodies are JSON text that the store never looks into.
One Batch is one transaction: after `commit` returns, all of it survives any crash; when it raises, nothing of
it is there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ...spec.ids import JobId, Micros, NodeId


class EventRow(NamedTuple):
    """One line of the append-only history. `seq` grows by one over the whole store, without gaps."""

    seq: int
    at_us: Micros
    kind: str
    body: str
    job: JobId | None = None
    node: NodeId | None = None


class JobRow(NamedTuple):
    """A job as it stands: columns to list by, what never changes, and what does."""

    job: JobId
    name: str
    user: str
    state: str
    priority: int
    submitted_us: Micros
    finished_us: Micros | None
    demand: str
    """GangDemand as JSON; equal demands have equal text, so that decoding can be cached."""
    record: str
    """The changing part of the core's Job, as JSON."""
    document: str | None = None
    """Canonical JSON of the job document. Only on the first write; None leaves it as it is."""


class NodeRow(NamedTuple):
    """A node as it was last known."""

    node: NodeId
    record: str


class AccountRow(NamedTuple):
    """What a queue has used, as it was last written."""

    queue: str
    record: str


class KeyRow(NamedTuple):
    """An idempotency key and the jobs that it made."""

    key: str
    at_us: Micros
    jobs: tuple[JobId, ...]


class MetricRow(NamedTuple):
    """One reported value. Bounded per job by the loop, not by the store."""

    job: JobId
    attempt: int
    rank: int
    step: int
    name: str
    value: float
    at_us: Micros


class StudyRow(NamedTuple):
    """A study without its trials."""

    study: int
    name: str
    version: int
    record: str


class TrialRow(NamedTuple):
    """A trial without its intermediate values."""

    study: int
    number: int
    job: JobId | None
    state: str
    version: int
    record: str


class TrialValueRow(NamedTuple):
    """An intermediate value: one for each step of a trial."""

    study: int
    number: int
    step: int
    value: float
    version: int


@dataclass(frozen=True, slots=True)
class StudyBatch:
    """What goes is deleted first, with its trials and their values; then the rest, all of it upserts."""

    studies: Sequence[StudyRow] = ()
    trials: Sequence[TrialRow] = ()
    values: Sequence[TrialValueRow] = ()
    deleted: Sequence[int] = ()
    last_study: int | None = None
    """The greatest number that was given to a study; None: as it was."""


class AssetNameRow(NamedTuple):
    """A name of data or a model: its aliases and counters."""

    kind: str
    name: str
    record: str


class AssetRow(NamedTuple):
    """A version."""

    kind: str
    name: str
    version: str
    record: str


class EdgeRow(NamedTuple):
    """A line of the lineage."""

    source: str
    target: str
    relation: str


class EndpointRow(NamedTuple):
    """An endpoint."""

    name: str
    record: str


class OutputsRow(NamedTuple):
    """A job some of whose outputs are to be registered."""

    job: JobId
    record: str


@dataclass(frozen=True, slots=True)
class RegistryBatch:
    """Upserts, and what goes. Versions are never deleted."""

    names: Sequence[AssetNameRow] = ()
    assets: Sequence[AssetRow] = ()
    edges: Sequence[EdgeRow] = ()
    endpoints: Sequence[EndpointRow] = ()
    endpoints_deleted: Sequence[str] = ()
    outputs: Sequence[OutputsRow] = ()
    outputs_deleted: Sequence[JobId] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction writes. Jobs, nodes and accounts are upserts; accounts that are closed go, also
    those that are in `accounts`."""

    events: Sequence[EventRow] = ()
    jobs: Sequence[JobRow] = ()
    nodes: Sequence[NodeRow] = ()
    keys: Sequence[KeyRow] = ()
    metrics: Sequence[MetricRow] = ()
    accounts: Sequence[AccountRow] = ()
    accounts_closed: Sequence[str] = ()
    policy: str | None = None
    """The cluster's policy as JSON; None leaves it as it is."""
    studies: StudyBatch | None = None
    registry: RegistryBatch | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What recovery needs: the live part of the state, and where the counters stand."""

    last_seq: int
    last_job: JobId
    last_at_us: Micros
    jobs: Iterable[JobRow]
    """Not in a terminal state, in the order of their numbers; `document` is None (read when needed). To be
    gone through once, before the next commit: may come from the store row by row, and raise StoreFailure."""
    nodes: Sequence[NodeRow] = field(default=())
    accounts: Sequence[AccountRow] = field(default=())
    policy: str = ""
    """Empty: none was ever stored."""
    studies: Sequence[StudyRow] = field(default=())
    """In the order of their numbers."""
    last_study: int = 0
    """The greatest number that was ever given to a study."""
    asset_names: Sequence[AssetNameRow] = field(default=())
    assets: Sequence[AssetRow] = field(default=())
    endpoints: Sequence[EndpointRow] = field(default=())
    outputs: Sequence[OutputsRow] = field(default=())


class Store(Protocol):
    """Calls come from one thread at a time, except the reads (`job`, `jobs`, `events`, `metrics`,
    `documents`, `trials`, `edges`), which may run beside a commit and see only what was committed.

    Every method raises StoreFailure, saying which file or server and what is wrong with it.
    After a commit that raised, `load` comes before the next one: it makes the connection anew where it must.
    """

    @property
    def cluster_id(self) -> str:
        """Made with the store; agents and clients use it to notice that they talk to another cluster."""

    def load(self) -> Loaded: ...

    def commit(self, batch: Batch) -> None: ...

    def key(self, key: str) -> KeyRow | None: ...

    def job(self, job: JobId) -> JobRow | None:
        """With its document."""

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        user: str = "",
        name_contains: str = "",
        before: JobId | None = None,
        limit: int = 100,
    ) -> Sequence[JobRow]:
        """Newest first, with numbers below `before`; without documents."""

    def documents(self, jobs: Sequence[JobId]) -> dict[JobId, str]: ...

    def events(
        self, *, job: JobId | None = None, after_seq: int = 0, limit: int = 10_000
    ) -> Sequence[EventRow]:
        """In the order of their seq."""

    def metrics(self, job: JobId, *, name: str = "", limit: int = 100_000) -> Sequence[MetricRow]: ...

    def trials(self, study: int) -> tuple[Sequence[TrialRow], Sequence[TrialValueRow]]:
        """Of one study, in the order of their numbers, and steps. Both as of one moment only when no commit
        runs beside."""

    def edges(self, *, source: str = "", target: str = "", limit: int = 1000) -> Sequence[EdgeRow]:
        """Of the lineage: all with that source, or all with that target; in the order of their other end."""

    def close(self) -> None: ...
