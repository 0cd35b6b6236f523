"""What the SDK's verbs on what has been and what would be return; see views.py for what holds for all."""

from dataclasses import dataclass

from ..spec.ids import JobId, Micros, NodeId
from .views import Reason, Warning


@dataclass(frozen=True, slots=True)
class Start:
    """When a job would start, by draws from what is predicted of the run times of the others."""

    at_us: Micros
    """The middle of the draws."""
    early_us: Micros
    """A tenth of the draws is earlier."""
    late_us: Micros | None
    """A tenth is later; None: not within the horizon."""
    draws: int
    started: int
    """Draws in which it started."""


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """Where one task would go."""

    node: str
    gpu_indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlannedStop:
    """A job that would be stopped to make way."""

    job: JobId
    name: str
    user: str
    outcome: str
    why: str


@dataclass(frozen=True, slots=True)
class PlannedQuota:
    """A limit or a guarantee that a job would count towards, alone. Amounts are GPUs, cpus or jobs."""

    queue: str
    """Empty: the root, the whole cluster."""
    user: str
    """Empty: of all users together."""
    what: str
    """"gpus", "cpus" or "jobs"."""
    in_use: float
    """What is kept for claims counted."""
    with_job: float
    guaranteed: float | None
    at_most: float | None


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """What would become of a job that was not submitted."""

    name: str
    start: Start | None
    """None: no start is expected."""
    tasks: tuple[PlannedTask, ...]
    reasons: tuple[Reason, ...]
    never: bool
    stops: tuple[PlannedStop, ...]
    warnings: tuple[Warning, ...]
    quota: tuple[PlannedQuota, ...]
    """From the root to its own line."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Of jobs that were not submitted. `cut`: by which bound the forecast was; empty: by none."""

    jobs: tuple[PlannedJob, ...]
    cut: str


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node, as a placement saw it. `step` and `tie`: less is better."""

    node_id: NodeId
    node: str
    fits: int
    """Tasks of the job for which it had room."""
    step: int
    """Growth of the cluster's fragmentation."""
    tie: int
    chosen: int
    """Tasks that went there."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A placement or a stop of the past, and what comes out when it is taken again."""

    seq: int
    at_us: Micros
    kind: str
    job: JobId
    text: str
    reasons: tuple[Reason, ...]
    """As `why` would have said just before."""
    nodes: tuple[SeenNode, ...]
    nodes_fit: int
    nodes_in_service: int
    again: bool
    """The same came out."""
    instead: str
    """What came out, where it was not the same."""


@dataclass(frozen=True, slots=True)
class ClassWait:
    """Waits of gangs of about one size."""

    name: str
    jobs: int
    wait_mean_s: float
    wait_p95_s: float


@dataclass(frozen=True, slots=True)
class Point:
    """A moment of a simulation, in seconds from its begin."""

    at_s: float
    queued: int
    gpus: float
    """Allocated."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What comes of the jobs that wait and run: means over the draws."""

    jobs: int
    started: int
    """From now on."""
    ended: int
    stops: int
    """Attempts that were stopped to make way."""
    wait_mean_s: float
    """From the submission, of those that start from now on."""
    wait_median_s: float
    wait_p95_s: float
    jct_mean_s: float
    """From the submission to the end."""
    gpu_allocation: float
    """Of the GPUs in service, until the last start."""
    span_s: float
    draws: int
    cut: str
    classes: tuple[ClassWait, ...]
    points: tuple[Point, ...]
    """Of the first draw."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """As it is, and under the change that was asked for."""

    as_is: Outlook
    changed: Outlook | None


@dataclass(frozen=True, slots=True)
class UsageSoFar:
    """How far a sum over all jobs has come."""

    jobs_read: int
    jobs: int


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What jobs of one user, queue or project have used."""

    name: str
    """Empty: they name none."""
    jobs: int
    """That held something in that time."""
    allocated_gpu_hours: float
    """The sum of the three below."""
    productive_gpu_hours: float
    lost_gpu_hours: float
    """Work that was done again after a fault or a preemption."""
    other_gpu_hours: float
    """Starts, stalls of saves, gangs that hung."""
    allocated_cpu_hours: float


@dataclass(frozen=True, slots=True)
class Usage:
    """GPU hours by user, queue or project, most first."""

    by: str
    since_us: Micros | None
    """None: from the first job on."""
    until_us: Micros
    jobs: int
    """That were looked at."""
    rows: tuple[UsageRow, ...]
