"""What happened: facts with their time. `evolve` alone turns them into state.

Durable events make the history, from which the state can be replayed. Volatile ones change only
what may be forgotten (when a node was last heard) or is kept in rows of its own (metrics, journal positions).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...spec.failures import FailureClass
from ...spec.ids import Attempt, JobId, Micros, NodeId, TaskKey
from ...spec.lifecycle import JobState
from .hang import RankLook
from .job import NEVER, Checkpoint, Ending, Parent, Shape, Stop
from .node import NodeInventory
from .pace import RankPace

# --- jobs


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    at_us: Micros
    job: JobId
    name: str
    user: str
    priority: int
    shape: Shape
    parent: Parent | None = None
    checkpoint: Checkpoint | None = None
    """Of the parent, which the first attempt goes on from."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one task of a gang goes."""

    node: NodeId
    gpu_indices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """Placed and sent; the job is STARTING."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    places: tuple[Place, ...]
    rendezvous_port: int = 0
    size: str = ""
    """Of an elastic gang: how large it is of what it may be, and why."""


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """The last one to start makes the job RUNNING."""

    at_us: Micros
    task: TaskKey
    seq: int
    pids: tuple[int, ...] = ()
    start_mode: str = ""


@dataclass(frozen=True, slots=True)
class RankExited:
    at_us: Micros
    task: TaskKey
    seq: int
    rank: int
    exit_code: int
    """As waitpid says: negative for a signal."""
    last_line: str = ""
    killed_by_us: bool = False
    cause: str = ""
    """What its node knows beyond the code: that memory ran out."""
    kind: FailureClass | None = None
    """Of a rank that failed and could be the cause of the attempt's end."""
    died_us: Micros = NEVER
    """When it failed, on the scheduler's clock, as near as its node could say."""
    doubt: int = 0
    """failure.ON_ITS_OWN and its like."""


@dataclass(frozen=True, slots=True)
class TaskEnded:
    at_us: Micros
    task: TaskKey
    seq: int
    exit_codes: tuple[int, ...] = ()
    log_bytes: tuple[int, ...] = ()
    why: str = "exited"


@dataclass(frozen=True, slots=True)
class CheckpointAccepted:
    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    path: str
    manifest_hash: str
    size_bytes: int = 0
    stall_us: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    removed_steps: tuple[int, ...] = ()
    persist_us: int = 0
    staged_us: Micros = NEVER
    """When the state was copied: steps after that are not in it. 0: not known, taken for `at_us`."""
    why: str = ""
    request: int = 0
    """CheckpointRequested.number that it answers."""


@dataclass(frozen=True, slots=True)
class CheckpointRestored:
    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    """-1: none was good, the run starts anew."""
    path: str = ""
    duration_us: int = 0
    rejected: tuple[str, ...] = ()
    tier: str = ""
    """From where it was read, and why not from a faster place."""


@dataclass(frozen=True, slots=True)
class CheckpointFailed:
    """Training could not write it and goes on without; nothing of it is left."""

    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    why: str
    request: int = 0


@dataclass(frozen=True, slots=True)
class StopSeen:
    """The script has heard that it should stop."""

    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    left_us: int


@dataclass(frozen=True, slots=True)
class CheckpointUploaded:
    """`why` not empty: it could not be, and stays where it was."""

    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    path: str
    url: str
    duration_us: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class PeerMemoryTold:
    """Where a rank's part of checkpoints is kept beyond its own node; `why` not empty: why it is not."""

    at_us: Micros
    task: TaskKey
    seq: int
    rank: int
    peer: str
    step: int
    size_bytes: int
    duration_us: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class CheckpointDamaged:
    """One copy of it was found so, long after it was good."""

    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    path: str
    copy: str
    why: str
    newest_good: int = -1
    """Step of the checkpoint that a restore would take now; -1: there is none."""


@dataclass(frozen=True, slots=True)
class GangReformed:
    """Ranks that were kept from the attempt before train on after its step: none is made again."""

    at_us: Micros
    task: TaskKey
    seq: int
    replaced: tuple[int, ...]
    world_size: int
    step: int
    duration_us: int
    """Since they saw that the gang was broken."""


@dataclass(frozen=True, slots=True)
class StartRefused:
    at_us: Micros
    task: TaskKey
    seq: int
    code: str
    text: str
    transient: bool


@dataclass(frozen=True, slots=True)
class TaskStalled:
    """A node has seen no step of its ranks for longer than they ever needed: the gang's nodes are asked."""

    at_us: Micros
    task: TaskKey
    seq: int
    since_us: Micros
    """The last step there."""
    limit_us: int
    longest_us: int = 0
    step: int = -1
    idle: bool = False


@dataclass(frozen=True, slots=True)
class RanksInspected:
    """Where the ranks on one node are."""

    at_us: Micros
    task: TaskKey
    seq: int
    begun: bool
    stalled: bool
    ranks: tuple[RankLook, ...] = ()


@dataclass(frozen=True, slots=True)
class SuspicionCleared:
    """The gang does not hang."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    why: str


@dataclass(frozen=True, slots=True)
class GangHung:
    """It does, since its last step; the attempt ends by it."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    since_us: Micros
    step: int
    ranks: tuple[int, ...]
    """Those that did not arrive, where they can be told from their peers."""
    text: str


@dataclass(frozen=True, slots=True)
class StragglerFound:
    """Ranks on that node are slower than their peers, again and again."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    node: NodeId
    ranks: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class GrowthPlanned:
    """There is room for more instances, and nobody waits for it: the gang grows at its next checkpoint."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    instances: int
    to: int


@dataclass(frozen=True, slots=True)
class GrowthDropped:
    """The checkpoint came, and the room was no longer there."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    why: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    at_us: Micros
    job: JobId
    stop: Stop


@dataclass(frozen=True, slots=True)
class CheckpointRequested:
    """`number` is this event's own seq."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    number: int
    key: str
    by: str = ""


@dataclass(frozen=True, slots=True)
class RestoreRequested:
    """The job goes on from there; what was accepted since does not count any more."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    step: int
    path: str
    by: str = ""


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """The job goes on to `then`: QUEUED for another attempt, or its end."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    then: JobState
    ending: Ending
    counted: bool = False
    """True: a retry of the job's own budget is used up."""
    lingering: tuple[int, ...] = ()
    """Tasks of an exclusive job that must be gone before the next attempt."""
    avoid: NodeId | None = None
    held_until_us: Micros = NEVER
    failed_in_row: int = 0
    lost: str = ""
    """What it had done that no checkpoint holds, where it was told to save or its work is done again."""


@dataclass(frozen=True, slots=True)
class FirstFailureFound:
    """A rank that told late of its end had failed before the one that the attempt's end was put down to. Only
    the report changes: what was decided stays."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    ending: Ending
    """The same end, told anew."""


@dataclass(frozen=True, slots=True)
class LingererGone:
    """A task of an earlier attempt of an exclusive job has ended, or its lease has run out on both sides."""

    at_us: Micros
    task: TaskKey
    node: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job that waited is over."""

    at_us: Micros
    job: JobId
    state: JobState
    ending: Ending


# --- nodes and the cluster


@dataclass(frozen=True, slots=True)
class NodeJoined:
    at_us: Micros
    node: NodeId
    inventory: NodeInventory


@dataclass(frozen=True, slots=True)
class NodeChanged:
    at_us: Micros
    node: NodeId
    inventory: NodeInventory


@dataclass(frozen=True, slots=True)
class NodeConnected:
    at_us: Micros
    node: NodeId
    incarnation: str
    session: int


@dataclass(frozen=True, slots=True)
class NodeUnknown:
    at_us: Micros
    node: NodeId
    last_heard_us: Micros
    why: str


@dataclass(frozen=True, slots=True)
class NodeLost:
    at_us: Micros
    node: NodeId
    last_heard_us: Micros


@dataclass(frozen=True, slots=True)
class NodeRested:
    """It refused a start by its own fault: it gets no work for a while. `refusals` 0: it starts again."""

    at_us: Micros
    node: NodeId
    refusals: int
    until_us: Micros = NEVER
    why: str = ""


@dataclass(frozen=True, slots=True)
class NodeDrained:
    """By policy: it gets no work until then; what runs there goes on."""

    at_us: Micros
    node: NodeId
    until_us: Micros
    why: str


@dataclass(frozen=True, slots=True)
class NodeForgotten:
    at_us: Micros
    node: NodeId


@dataclass(frozen=True, slots=True)
class SchedulerStarted:
    """All contact is UNKNOWN, with a fresh grace."""

    at_us: Micros


@dataclass(frozen=True, slots=True)
class ClusterSuspected:
    """Most nodes vanished at once: it is more likely us. None is replaced."""

    at_us: Micros
    silent: int
    known: int


@dataclass(frozen=True, slots=True)
class ClusterTrusted:
    """Contact has returned, or an operator says so; silent nodes get a fresh grace."""

    at_us: Micros
    by: str


# --- volatile


@dataclass(frozen=True, slots=True)
class NodeHeard:
    at_us: Micros
    node: NodeId


@dataclass(frozen=True, slots=True)
class MetricsReported:
    at_us: Micros
    task: TaskKey
    seq: int
    rank: int
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PacesReported:
    at_us: Micros
    task: TaskKey
    seq: int
    ranks: tuple[RankPace, ...]
    slow: tuple[tuple[int, int], ...] = ()
    """In how many windows in a row each of these ranks has been slow now."""


@dataclass(frozen=True, slots=True)
class LaneParked:
    """No node could ever run the job that is first in line, nor its equals: they step aside."""

    at_us: Micros
    job: JobId


@dataclass(frozen=True, slots=True)
class TimersPassed:
    at_us: Micros


JobEvent = (
    JobSubmitted
    | AttemptStarted
    | TaskStarted
    | RankExited
    | TaskEnded
    | CheckpointAccepted
    | CheckpointRestored
    | CheckpointFailed
    | CheckpointUploaded
    | CheckpointDamaged
    | PeerMemoryTold
    | GangReformed
    | StartRefused
    | TaskStalled
    | RanksInspected
    | SuspicionCleared
    | GangHung
    | StragglerFound
    | GrowthPlanned
    | GrowthDropped
    | StopRequested
    | StopSeen
    | CheckpointRequested
    | RestoreRequested
    | AttemptEnded
    | FirstFailureFound
    | LingererGone
    | JobEnded
)
LateFact = RankExited | TaskEnded | StartRefused | FirstFailureFound
"""How a task left, and what that shows: also told after its attempt, or its job, was over."""
NodeEvent = (
    NodeJoined
    | NodeChanged
    | NodeConnected
    | NodeUnknown
    | NodeLost
    | NodeRested
    | NodeDrained
    | NodeForgotten
)
ClusterEvent = SchedulerStarted | ClusterSuspected | ClusterTrusted
DurableEvent = JobEvent | NodeEvent | ClusterEvent
VolatileEvent = NodeHeard | MetricsReported | PacesReported | LaneParked | TimersPassed
Event = DurableEvent | VolatileEvent


def job_of(event: Event) -> JobId | None:
    """Whose story it belongs to."""
    task: TaskKey | None = getattr(event, "task", None)
    if task is not None:
        return task.job
    return getattr(event, "job", None)


def node_of(event: Event) -> NodeId | None:
    return getattr(event, "node", None)
