"""What arrives from outside, as the core wants it: already checked and without a trace of the wire.

Journal entries reuse the events' words; their `at_us` is set when they are applied.
"""

from collections.abc import Mapping
from dataclasses import field

from ...spec.ids import JobId, Micros, NodeId, TaskKey
from ...spec.record import record
from .admin_stimuli import ApplyPolicy, HoldJob, ReleaseJob, SetPriority
from .failure import NOTHING, Evidence
from .hang import RankLook
from .job import NEVER, Checkpoint, Parent, Shape
from .node import NodeInventory
from .pace import RankPace


@record(frozen=True, slots=True)
class NewJob:
    """`document` is the canonical JSON, stored with the job; the core never looks into it."""

    name: str
    priority: int
    shape: Shape
    document: str
    uses: tuple[tuple[str, str], ...] = ()
    """What it is made of, and how: for the lineage, which is not the core's either."""
    registers: bool = False
    """Some of its outputs are to be registered when it has succeeded."""


@record(frozen=True, slots=True)
class Submit:
    """All or none. The same key again gives the same ids. Answer: Submitted."""

    key: str
    user: str
    jobs: tuple[NewJob, ...]
    parent: Parent | None = None
    checkpoint: Checkpoint | None = None
    """A fork of that job, which goes on from there."""


@record(frozen=True, slots=True)
class Preempt:
    """Save, end, wait again. Answer: the Job. Raises NotFound, Conflict."""

    key: str
    job: JobId
    grace_us: int | None = None
    """None: what its save takes, and a margin."""
    by: str = ""


@record(frozen=True, slots=True)
class AskCheckpoint:
    """Answer: SaveAsked. Raises NotFound, Conflict."""

    key: str
    job: JobId
    by: str = ""


@record(frozen=True, slots=True)
class Restore:
    """Go on from the checkpoint of that step. Answer: the Job. Raises NotFound, Conflict."""

    key: str
    job: JobId
    step: int
    by: str = ""


@record(frozen=True, slots=True)
class CordonNodes:
    """They get no work; with `drains`, what runs there goes on elsewhere. All or none. Answer: the jobs that
    were told to. Raises NotFound, Conflict."""

    key: str
    nodes: tuple[str, ...]
    """Names or ids."""
    by: str
    why: str = ""
    drains: bool = False
    deadline_us: int | None = None
    """The most that a job is given to save. None: what its saves take, and a margin."""


@record(frozen=True, slots=True)
class UncordonNodes:
    """All or none. Answer: no jobs. Raises NotFound, Conflict."""

    key: str
    nodes: tuple[str, ...]
    by: str


@record(frozen=True, slots=True)
class Cancel:
    """Answer: the Job as it now stands. Raises NotFound for one that is over or was never there."""

    job: JobId
    grace_us: int | None = None
    """None: the job's own."""
    by: str = ""


@record(frozen=True, slots=True)
class Hello:
    """An agent dialled in. Answer: Welcome.

    `session` is this scheduler process's own number for the stream, growing.
    """

    node: NodeId
    session: int
    incarnation: str
    inventory: NodeInventory
    tasks: tuple[TaskKey, ...] = ()


@record(frozen=True, slots=True)
class InventoryChanged:
    """Answer: None."""

    node: NodeId
    session: int
    inventory: NodeInventory


@record(frozen=True, slots=True)
class ContactLost:
    """The stream broke. Answer: None."""

    node: NodeId
    session: int
    why: str


@record(frozen=True, slots=True)
class Heartbeat:
    """Answer: bool, False when the session is not (or no longer) the node's: close the stream, send no reply.

    `Loop.heard` does the same without the queue; a heartbeat that is lost with a crash is no loss.
    """

    node: NodeId
    session: int


@record(frozen=True, slots=True)
class Reports:
    """Answer: Acked."""

    node: NodeId
    entries: tuple["Entry", ...]


@record(frozen=True, slots=True)
class TrustCluster:
    """An operator says that the silent nodes are really gone. Answer: None."""

    by: str


@record(frozen=True, slots=True)
class Tick:
    """Time has passed; the loop makes these itself. Answer: None."""


Keyed = Submit | Preempt | Restore | CordonNodes | UncordonNodes | ApplyPolicy
"""Its key is kept, so that the same again changes nothing."""
Stimulus = (
    Keyed
    | HoldJob
    | ReleaseJob
    | SetPriority
    | AskCheckpoint
    | Cancel
    | Hello
    | InventoryChanged
    | ContactLost
    | Heartbeat
    | Reports
    | TrustCluster
    | Tick
)

# --- entries of a task's journal


@record(frozen=True, slots=True)
class Started:
    pids: tuple[int, ...] = ()
    start_mode: str = ""
    prepared: str = ""
    record: str = ""
    unrecorded: str = ""


@record(frozen=True, slots=True)
class Exited:
    local_rank: int
    exit_code: int
    last_line: str = ""
    killed_by_us: bool = False
    cause: str = ""
    evidence: Evidence = NOTHING
    died_us: Micros = NEVER
    """When it failed, on the scheduler's clock, as near as its node could say; 0: not known."""
    xid: int = 0
    """That the driver told of one of its GPUs shortly before; 0: none."""
    xid_gpu: int = -1


@record(frozen=True, slots=True)
class Ended:
    exit_codes: tuple[int, ...] = ()
    log_bytes: tuple[int, ...] = ()
    why: str = "exited"


@record(frozen=True, slots=True)
class Metrics:
    rank: int
    step: int
    values: Mapping[str, float]


@record(frozen=True, slots=True)
class Published:
    step: int
    path: str
    manifest_hash: str
    size_bytes: int = 0
    stall_us: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    removed_steps: tuple[int, ...] = ()
    persist_us: int = 0
    staged_us: Micros = NEVER
    """When the state was copied, on the scheduler's clock, as near as its node could say; 0: not known."""
    why: str = ""
    request: int = 0


@record(frozen=True, slots=True)
class Restored:
    step: int
    path: str = ""
    duration_us: int = 0
    rejected: tuple[str, ...] = ()
    tier: str = ""
    """From where it was read, and why not from a faster place."""


@record(frozen=True, slots=True)
class SaveFailed:
    """A checkpoint that training could not write; training goes on."""

    step: int
    why: str
    request: int = 0


@record(frozen=True, slots=True)
class SawStop:
    """The script has heard that it should stop."""

    step: int
    left_us: int


@record(frozen=True, slots=True)
class Uploaded:
    """A checkpoint is at `url` too; not, when there is a `why`."""

    step: int
    path: str
    url: str
    duration_us: int = 0
    why: str = ""


@record(frozen=True, slots=True)
class Damaged:
    """A copy of a checkpoint is not what was accepted."""

    step: int
    path: str
    copy: str
    why: str


@record(frozen=True, slots=True)
class PeerMemory:
    """A rank's part of each checkpoint is in the memory of `node`, too; not, when there is a `why`."""

    rank: int
    node: str
    step: int
    size_bytes: int
    duration_us: int
    why: str


@record(frozen=True, slots=True)
class Reformed:
    """Ranks that were kept have formed the gang anew and train on after `step`, with `replaced` new ones."""

    replaced: tuple[int, ...]
    world_size: int
    step: int
    duration_us: int


@record(frozen=True, slots=True)
class Serves:
    """What the task runs answers requests there."""

    url: str


@record(frozen=True, slots=True)
class Refused:
    code: str
    text: str
    transient: bool
    hint: str = ""


@record(frozen=True, slots=True)
class Stalled:
    """The task's ranks have made no step for longer than they ever needed."""

    still_us: int
    limit_us: int
    longest_us: int = 0
    step: int = -1
    idle: bool = False
    """Its processes use no CPU either."""


@record(frozen=True, slots=True)
class Inspected:
    """Where the ranks are; `stalled`: that they are still for too long, as their node judges."""

    begun: bool
    stalled: bool
    ranks: tuple[RankLook, ...] = ()


@record(frozen=True, slots=True)
class Paced:
    """How long the ranks' steps took in the last window."""

    ranks: tuple[RankPace, ...]


@record(frozen=True, slots=True)
class Waiting:
    """All ranks of the task that live have left the gang, as they were asked to, for the next attempt."""

    ranks: int


Said = (
    Started
    | Exited
    | Ended
    | Metrics
    | Published
    | Restored
    | SaveFailed
    | Uploaded
    | Damaged
    | SawStop
    | PeerMemory
    | Reformed
    | Waiting
    | Serves
    | Refused
    | Stalled
    | Inspected
    | Paced
)


@record(frozen=True, slots=True)
class Entry:
    """One line of a task's journal; `seq` grows by one from 1."""

    task: TaskKey
    seq: int
    said: Said
