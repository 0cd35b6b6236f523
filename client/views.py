"""What the SDK's verbs return: frozen, typed, free of protobuf, and pure.

The field names are those of proto/v1 and of `-o json`: once released, a name keeps its meaning.
Times are `_us`, microseconds since the epoch on the scheduler's clock; what has not happened is None.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..spec.failures import FailureClass
from ..spec.gpu_health import GpuState
from ..spec.ids import Attempt, JobId, Micros, NodeId, TaskKey
from ..spec.lifecycle import TERMINAL, JobState, NodeContact
from ..spec.resources import Resources


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something waits, was refused or ended. `text` has the numbers in it, `hint` says what to do."""

    code: str
    text: str
    hint: str = ""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Warning:
    """A key of the job document that is honoured only in part."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Task:
    """One node's part of the job's current or last attempt."""

    task: int
    node_id: NodeId
    node: str
    state: str
    start_mode: str
    first_rank: int
    pids: tuple[int, ...]
    exit_codes: tuple[int, ...]
    """By local rank, as waitpid says: negative for a signal."""
    gpu_indices: tuple[int, ...]
    record: str = ""
    """Of what it ran with; empty: that is not recorded."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that the scheduler has accepted; only these are ever restored."""

    step: int
    attempt: Attempt
    path: str
    size_bytes: int
    accepted_us: Micros
    metrics: Mapping[str, float]
    url: str = ""
    """Where it was uploaded; empty: it was not."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Copies ("storage", "upload") that were found so, and what is wrong with each."""
    good: bool = True
    """Some copy is not known to be damaged."""
    stall_s: float = 0.0
    """What the save cost training."""
    persist_s: float = 0.0
    """From the copy until it was on disk."""
    why: str = ""
    """What it was made for; empty: the script's own."""
    job: JobId | None = None
    """Of another job, which this one was forked from."""
    kept: str = ""
    """In `checkpoints` only: why retention keeps it."""
    state: str = ""
    """In `checkpoints` only: "good", "damaged: ...", "removed", "set aside"."""
    tiers: str = ""
    """In `checkpoints` only: where it is."""


@dataclass(frozen=True, slots=True)
class SaveAsked:
    """A request to save: its number, and of which attempt."""

    request: int
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Failure:
    """What an attempt failed of: of its ranks, the first that failed. In listings without `traceback` and
    `last_lines`."""

    kind: FailureClass
    attempt: Attempt
    hint: str
    node_id: NodeId | None
    node: str
    rank: int | None
    """None: no rank's doing."""
    exit_code: int | None
    """Of the rank, as waitpid says; None: it was killed before its own end, or it is no rank's doing."""
    at_us: Micros | None
    """When the rank failed."""
    error_type: str
    """As Python names it, `ValueError`; empty: no exception."""
    message: str
    traceback: str
    last_lines: str
    """Of the rank's output."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. `document` is empty in listings."""

    job: JobId
    name: str
    user: str
    state: JobState
    attempt: Attempt
    priority: int
    submitted_us: Micros
    started_us: Micros | None
    """When its first attempt ran."""
    finished_us: Micros | None
    reason: Reason | None
    """Why it waits, or how it ended."""
    exit_code: int | None
    """The job's own, once it is over."""
    instance_count: int
    processes_per_task: int
    per_task: Resources
    tasks: tuple[Task, ...]
    checkpoints: tuple[Checkpoint, ...]
    outputs: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last reported value of each."""
    step: int | None
    """The last reported one."""
    cancel_requested: bool
    warnings: tuple[Warning, ...]
    document: str
    """Canonical JSON of the job document."""
    pace: tuple[str, ...] = ()
    """Of a running gang: its step in a line, then a line for each rank that is slower than its peers."""
    failure: Failure | None = None
    """Of the last attempt that failed; None: none has, or the job succeeded."""
    parent_job: JobId | None = None
    """It is a fork of that one, from its checkpoint of `parent_step`."""
    parent_step: int | None = None
    instances: int = 0
    """Of the current or last attempt; 0: none yet. `instance_count` is what the job asked for."""
    min_instance_count: int = 0
    max_instance_count: int = 0
    size: str = ""
    """Of a gang that runs smaller than it may be: when it grows, and what that waits for."""
    queue: str = ""
    """Of the cluster's policy; empty: the root of the tree."""
    pool: str = ""
    """Empty: none."""
    gpu_models: tuple[str, ...] = ()
    """Any of these; empty: any whole GPU."""
    gpu_memory_bytes: int = 0
    """The least of each GPU; 0: any will do."""

    @property
    def is_over(self) -> bool:
        """True in a terminal state: nothing about the job changes any more."""
        return self.state in TERMINAL

    @property
    def world_size(self) -> int:
        """Number of ranks of a full gang, in whatever attempt."""
        return max(self.instance_count, self.max_instance_count) * self.processes_per_task


@dataclass(frozen=True, slots=True)
class Why:
    """Why a job waits (ranked, the weightiest first) or how it ended. `never`: no node could ever run it."""

    job: Job
    reasons: tuple[Reason, ...]
    never: bool


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One event of a job's history. `seq` grows; `text` is for a person, `body` is the event as JSON."""

    seq: int
    at_us: Micros
    attempt: Attempt
    kind: str
    text: str
    body: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where a job's wall time went. The parts add up to `wall_us` exactly."""

    wall_us: int
    queued_us: int
    starting_us: int
    productive_us: int
    checkpoint_us: int
    lost_us: int
    restarting_us: int
    hung_us: int

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """`(name, microseconds)` of each part, in the order of a job's life."""
        names = ("queued", "starting", "productive", "checkpoint", "lost", "restarting", "hung")
        return tuple((name, getattr(self, f"{name}_us")) for name in names)

    @property
    def goodput(self) -> float:
        """Productive share of the time since the job first left the queue, from 0 to 1."""
        held_us = self.wall_us - self.queued_us
        return self.productive_us / held_us if held_us > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Timeline:
    """A job's history and where its time went."""

    job: Job
    entries: tuple[TimelineEntry, ...]
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watched job, and the job as of that event."""

    entry: TimelineEntry
    job: Job


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of one rank's output, stdout and stderr as they came; `offset` counts from its start."""

    job: JobId
    attempt: Attempt
    rank: int
    offset: int
    data: bytes
    dropped_bytes: int = 0
    """Bytes that stood before `offset` and are gone (the log's bound)."""


@dataclass(frozen=True, slots=True)
class GpuSlice:
    """A MIG device: what a GPU in MIG mode offers in its place. `index` is the one that tasks have."""

    index: int
    uuid: str
    name: str
    memory_total_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as NVML shows it. A reading that the device does not give is None."""

    index: int
    uuid: str
    name: str
    memory_total_bytes: int
    memory_used_bytes: int | None
    utilization_percent: int | None
    temperature_c: int | None
    power_mw: int | None
    pci_bus_id: str
    mig_enabled: bool | None
    ecc_uncorrected: int | None
    last_xid: int | None
    health: str
    """`ok`, or what is wrong."""
    state: GpuState = GpuState.OK
    needs: str = ""
    """What its driver asks for, as `a reset: ...`."""
    since_us: Micros | None = None
    """When `state` became other than ok, by the node's clock."""
    quarantines: int = 0
    """How often it was other than ok on this node."""
    numa_node: int | None = None
    slices: tuple[GpuSlice, ...] = ()


@dataclass(frozen=True, slots=True)
class Cordon:
    """Somebody took a node out of service."""

    by: str
    why: str
    since_us: Micros
    drains: bool
    """What ran there was told to save and go on elsewhere."""
    tasks_left: int
    """There that have not ended; a drained node has none."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the scheduler knows it."""

    node_id: NodeId
    name: str
    address: str
    contact: NodeContact
    last_heard_us: Micros
    capacity: Resources
    free: Resources
    gpus: tuple[Gpu, ...]
    gpu_status: str
    """`ok`, or why there are none."""
    containment: str
    warm_pool: str
    labels: Mapping[str, str]
    taints: Mapping[str, str]
    """Key -> value, which may be empty: only jobs that tolerate them go there."""
    environments: Mapping[str, str]
    container_engine: str
    """What it runs images with, as `podman 4.3.1`, or `none: ` and why."""
    version: str
    driver_version: str
    tasks: tuple[TaskKey, ...]
    reason: Reason | None
    """Why it takes no work, when it does not."""
    cordon: Cordon | None = None
    """None: it was not taken out of service."""


@dataclass(frozen=True, slots=True)
class Cordoned:
    """Nodes that were taken out of service, or put back, as they now stand."""

    nodes: tuple[Node, ...]
    jobs: tuple[JobId, ...]
    """That were told to save and leave."""

    @property
    def stands(self) -> tuple[tuple[int, ...], tuple[JobId, ...]]:
        """What changes while they drain."""
        left = tuple(-1 if node.cordon is None else node.cordon.tasks_left for node in self.nodes)
        return left, self.held_by

    @property
    def tasks_left(self) -> int:
        """On all that are out of service together."""
        return sum(node.cordon.tasks_left for node in self.nodes if node.cordon is not None)

    @property
    def held_by(self) -> tuple[JobId, ...]:
        """Jobs of which something is left there."""
        busy = [node for node in self.nodes if node.cordon is not None and node.cordon.tasks_left]
        return tuple(sorted({task.job for node in busy for task in node.tasks}))


@dataclass(frozen=True, slots=True)
class Cluster:
    """All nodes. `suspected`: most vanished at once, so none is being replaced until contact returns."""

    nodes: tuple[Node, ...]
    suspected: bool


@dataclass(frozen=True, slots=True)
class Trust:
    """What an operator's word changed: nothing, unless the cluster `was_suspected`."""

    was_suspected: bool
    silent: int
    """Nodes that are silent and not yet given up."""


def to_json(value: Any) -> Any:
    """A result as what json.dumps takes: dataclasses as objects with their own field names, ids as text."""
    if isinstance(value, TaskKey):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [to_json(v) for v in value]
    return value
