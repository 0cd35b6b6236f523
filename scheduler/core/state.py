"""All that decisions look at. Only `evolve` changes it; finished jobs are not in it.

`jobs`, `nodes`, the policy, the counters and the suspicion are the state proper. `loads`, `queue`, `held`,
`stranded`, `small`, `placed`, `claims`, `waiting`, `resting`, `closed`, `assigned` to `reserved`, `timers`
are indexes: they follow from the state proper and are built anew by recovery.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ...spec.ids import JobId, Micros, NodeId
from ...spec.lifecycle import NodeContact
from ...spec.resources import GangDemand
from .cluster_policy import NO_POLICY, ClusterPolicy, QueueTree
from .job import NEVER, Job, Shape
from .node import Load, Node, Room, RoomKey
from .pace import GangPaces
from .queue import Queue
from .rates import NO_RATE, FaultRate
from .runs import Runs
from .settings import Order, Settings
from .timers import Timers
from .usage import Usage
from .workload import Workload

if TYPE_CHECKING:
    from .attempt_events import AttemptStarted
    from .candidates import Candidates

NO_JOB: Final = JobId(0)


@dataclass(slots=True)
class Changes:
    """Which nodes have changed in what they can take, in order; a long log begins a new epoch."""

    epoch: int = 0
    nodes: list[NodeId] = field(default_factory=list)

    def add(self, name: NodeId, known: int) -> None:
        self.nodes.append(name)
        if len(self.nodes) > 4 * known + 1024:
            self.nodes = []
            self.epoch += 1


@dataclass(slots=True)
class ClusterState:
    settings: Settings = field(default_factory=Settings)
    last_job: JobId = NO_JOB
    last_seq: int = 0
    last_at_us: Micros = NEVER
    suspected: bool = False
    """Most nodes vanished at once: none is being replaced."""
    overruled: bool = False
    """An operator said that the silent nodes are gone; holds until no node is silent."""
    trusted_us: Micros = NEVER
    """Since when silence counts again: the scheduler's start, or the end of a suspicion."""
    policy: ClusterPolicy = NO_POLICY
    policy_by: str = ""
    policy_us: Micros = NEVER
    """Who put it in force, and when; never: nobody has."""
    tree: QueueTree = field(default_factory=QueueTree)
    """Of the policy's queues: an index."""
    timed: tuple[str, ...] = ()
    """Pools of the policy that have maintenance windows: an index."""
    jobs: dict[JobId, Job] = field(default_factory=dict)
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    shapes: dict[Shape, Shape] = field(default_factory=dict)
    demands: dict[GangDemand, GangDemand] = field(default_factory=dict)
    """Of these: shapes that ask for the same share one, which is found without a look at what is in it."""
    loads: dict[NodeId, Load] = field(default_factory=dict)
    queue: Queue = field(default_factory=Queue)
    held: set[JobId] = field(default_factory=set)
    """QUEUED, but not in line yet: a refusal's backoff, or leftovers of an exclusive attempt."""
    on_hold: set[JobId] = field(default_factory=set)
    """QUEUED, and not in line until an admin releases them."""
    stranded: set[JobId] = field(default_factory=set)
    """Placed and fenced, with a part on a LOST node: also in line, see stranding.py."""
    small: set[JobId] = field(default_factory=set)
    """Running gangs that may have more instances than they have, see elastic.py."""
    placed: set[JobId] = field(default_factory=set)
    claims: set[JobId] = field(default_factory=set)
    """QUEUED, and not in line: nodes are kept for them, see claims.py."""
    claimed: dict[NodeId, JobId] = field(default_factory=dict)
    """For whom a node is kept."""
    assigned: dict[str, tuple[NodeId, ...]] = field(default_factory=dict)
    """Which nodes each reservation has, by how jobs ask for it (`POOL/NAME`), see reservations.py."""
    kept: dict[NodeId, tuple[str, ...]] = field(default_factory=dict)
    """The same by node."""
    spans: dict[str, bool] = field(default_factory=dict)
    """Reservations that are not over: whether they have begun."""
    spans_until_us: int = 0
    """When the next of them begins, is about to, or ends; before, `spans` and `reserved` stay as they are."""
    reserved: dict[NodeId, str] = field(default_factory=dict)
    """Nodes that are kept by a reservation now, and by which."""
    lifted_milli: int = 0
    """Thousandths of GPUs that placed jobs hold which their patience had lifted, see order.py."""
    capacity_milli: int = 0
    """Of the nodes in service."""
    resting: set[NodeId] = field(default_factory=set)
    """Nodes that get no work for a while, because they refused."""
    closed: set[NodeId] = field(default_factory=set)
    """Nodes that get no work for a while, because of a maintenance window, see maintenance.py."""
    windows_until_us: dict[NodeId, int] = field(default_factory=dict)
    """When a window next changes something there; of nodes that no window lies ahead of, nothing."""
    paces: dict[JobId, GangPaces] = field(default_factory=dict)
    """Step times of running gangs: news, as contact is."""
    rate: FaultRate = NO_RATE
    """Of gangs in this cluster: beside the state, see rates.py."""
    workload: Workload = field(default_factory=Workload)
    """What was submitted: beside the state, too, see workload.py."""
    usage: Usage = field(default_factory=Usage)
    """What queues and users have (an index), and have had (kept)."""
    runs: Runs = field(default_factory=Runs)
    """How long jobs ran that are over: beside the state, see runs.py."""
    timers: Timers = field(default_factory=Timers)
    contacts: dict[NodeContact, int] = field(default_factory=lambda: dict.fromkeys(NodeContact, 0))
    changes: Changes = field(default_factory=Changes)
    candidates: dict[GangDemand, "Candidates"] = field(default_factory=dict)
    ever: dict[GangDemand, bool] = field(default_factory=dict)
    rooms: dict[RoomKey, Room] = field(default_factory=dict)
    capacities: dict[GangDemand, dict[NodeId, int]] = field(default_factory=dict)
    """Memos of what the nodes can take: now, at all, by what is free there, and each when it is empty (see
    capacities.py)."""
    started: tuple["AttemptStarted", Job, Job] | None = None
    """The last start that was decided, and the job before and after it: made for its effects, taken by
    evolve."""
    waiting: dict[str, int] = field(default_factory=dict)
    """How many are QUEUED of each leaf of the tree of queues, see queues.py."""
    freed: int = 0
    """Grows when something becomes free or a node can take work: what did not fit is tried again."""

    @property
    def order(self) -> Order:
        """The knobs of the order in which jobs start."""
        return self.policy.order or self.settings.order


Touched = Job | Node | None
"""What a fact has changed, as it now is (a job that is over has left the state)."""
Handlers = Mapping[type[Any], Callable[[ClusterState, Any], Touched]]
"""Kind of event -> what it does to the state."""
