"""What arrives from outside, as the core wants it: already checked and without a trace of the wire.

Journal entries reuse the events' words; their `at_us` is set when they are applied.
"""

from collections.abc import Mapping

from msgspec import Struct, field

from ...spec.ids import JobId, Micros, NodeId, TaskKey
from .admin_stimuli import ApplyPolicy, HoldJob, ReleaseJob, SetPriority
from .failure import NOTHING, Evidence
from .hang import RankLook
from .job import NEVER, Checkpoint, Parent, Shape
from .node import NodeInventory
from .pace import RankPace


class NewJob(Struct, frozen=True):
    """`document` is the canonical JSON, stored with the job; the core never looks into it."""

    name: str
    priority: int
    shape: Shape
    document: str
    uses: tuple[tuple[str, str], ...] = ()
    """What it is made of, and how: for the lineage, which is not the core's either."""
    registers: bool = False
    """Some of its outputs are to be registered when it has succeeded."""


class Submit(Struct, frozen=True):
    """All or none. The same key again gives the same ids. Answer: Submitted."""

    key: str
    user: str
    jobs: tuple[NewJob, ...]
    parent: Parent | None = None
    checkpoint: Checkpoint | None = None
    """A fork of that job, which goes on from there."""


class Preempt(Struct, frozen=True):
    """Save, end, wait again. Answer: the Job. Raises NotFound, Conflict."""

    key: str
    job: JobId
    grace_us: int | None = None
    """None: what its save takes, and a margin."""
    by: str = ""


class AskCheckpoint(Struct, frozen=True):
    """Answer: SaveAsked. Raises NotFound, Conflict."""

    key: str
    job: JobId
    by: str = ""


class Restore(Struct, frozen=True):
    """Go on from the checkpoint of that step. Answer: the Job. Raises NotFound, Conflict."""

    key: str
    job: JobId
    step: int
    by: str = ""


class CordonNodes(Struct, frozen=True):
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


class UncordonNodes(Struct, frozen=True):
    """All or none. Answer: no jobs. Raises NotFound, Conflict."""

    key: str
    nodes: tuple[str, ...]
    by: str


class Cancel(Struct, frozen=True):
    """Answer: the Job as it now stands. Raises NotFound for one that is over or was never there."""

    job: JobId
    grace_us: int | None = None
    """None: the job's own."""
    by: str = ""


class Hello(Struct, frozen=True):
    """An agent dialled in. Answer: Welcome.

    `session` is this scheduler process's own number for the stream, growing.
    """

    node: NodeId
    session: int
    incarnation: str
    inventory: NodeInventory
    tasks: tuple[TaskKey, ...] = ()


class InventoryChanged(Struct, frozen=True):
    """Answer: None."""

    node: NodeId
    session: int
    inventory: NodeInventory


class ContactLost(Struct, frozen=True):
    """The stream broke. Answer: None."""

    node: NodeId
    session: int
    why: str


class Heartbeat(Struct, frozen=True):
    """Answer: bool, False when the session is not (or no longer) the node's: close the stream, send no reply.

    `Loop.heard` does the same without the queue; a heartbeat that is lost with a crash is no loss.
    """

    node: NodeId
    session: int


class Reports(Struct, frozen=True):
    """Answer: Acked."""

    node: NodeId
    entries: tuple["Entry", ...]


class TrustCluster(Struct, frozen=True):
    """An operator says that the silent nodes are really gone. Answer: None."""

    by: str


class Tick(Struct, frozen=True):
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


class Started(Struct, frozen=True):
    pids: tuple[int, ...] = ()
    start_mode: str = ""
    prepared: str = ""
    record: str = ""
    unrecorded: str = ""
    network: str = ""


class Exited(Struct, frozen=True):
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


class Ended(Struct, frozen=True):
    exit_codes: tuple[int, ...] = ()
    log_bytes: tuple[int, ...] = ()
    why: str = "exited"


class Metrics(Struct, frozen=True):
    rank: int
    step: int
    values: Mapping[str, float]


class Published(Struct, frozen=True):
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
    waited_us: int = 0
    image: str = ""


class Restored(Struct, frozen=True):
    step: int
    path: str = ""
    duration_us: int = 0
    rejected: tuple[str, ...] = ()
    tier: str = ""
    """From where it was read, and why not from a faster place."""


class SaveFailed(Struct, frozen=True):
    """A checkpoint that training could not write; training goes on."""

    step: int
    why: str
    request: int = 0


class SawStop(Struct, frozen=True):
    """The script has heard that it should stop."""

    step: int
    left_us: int


class Uploaded(Struct, frozen=True):
    """A checkpoint is at `url` too; not, when there is a `why`."""

    step: int
    path: str
    url: str
    duration_us: int = 0
    why: str = ""


class Damaged(Struct, frozen=True):
    """A copy of a checkpoint is not what was accepted."""

    step: int
    path: str
    copy: str
    why: str


class PeerMemory(Struct, frozen=True):
    """A rank's part of each checkpoint is in the memory of `node`, too; not, when there is a `why`."""

    rank: int
    node: str
    step: int
    size_bytes: int
    duration_us: int
    why: str


class Reformed(Struct, frozen=True):
    """Ranks that were kept have formed the gang anew and train on after `step`, with `replaced` new ones."""

    replaced: tuple[int, ...]
    world_size: int
    step: int
    duration_us: int


class Serves(Struct, frozen=True):
    """What the task runs answers requests there."""

    url: str


class Refused(Struct, frozen=True):
    code: str
    text: str
    transient: bool
    hint: str = ""


class Stalled(Struct, frozen=True):
    """The task's ranks have made no step for longer than they ever needed."""

    still_us: int
    limit_us: int
    longest_us: int = 0
    step: int = -1
    idle: bool = False
    """Its processes use no CPU either."""


class Inspected(Struct, frozen=True):
    """Where the ranks are; `stalled`: that they are still for too long, as their node judges."""

    begun: bool
    stalled: bool
    ranks: tuple[RankLook, ...] = ()


class Paced(Struct, frozen=True):
    """How long the ranks' steps took in the last window."""

    ranks: tuple[RankPace, ...]


class Waiting(Struct, frozen=True):
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


class Entry(Struct, frozen=True):
    """One line of a task's journal; `seq` grows by one from 1."""

    task: TaskKey
    seq: int
    said: Said
