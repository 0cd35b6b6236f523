"""What happened: facts with their time. `evolve` alone turns them into state.

Durable events make the history, from which the state can be replayed. Volatile ones change only
what may be forgotten (when a node was last heard) or is kept in rows of its own (metrics, journal positions).
"""

from ...spec.ids import JobId, NodeId, TaskKey
from .attempt_events import (
    AttemptEnded,
    AttemptStarted,
    ClaimDropped,
    FirstFailureFound,
    GrowthDropped,
    GrowthPlanned,
    JobEnded,
    JobSubmitted,
    LaneParked,
    LingererGone,
    PlacesClaimed,
    StopRequested,
)
from .checkpoint_events import (
    CheckpointAccepted,
    CheckpointDamaged,
    CheckpointFailed,
    CheckpointRequested,
    CheckpointRestored,
    CheckpointUploaded,
    PeerMemoryTold,
    RestoreRequested,
)
from .hold_events import JobHeld, JobReleased, PriorityChanged
from .node_events import (
    ClusterSuspected,
    ClusterTrusted,
    NodeChanged,
    NodeConnected,
    NodeCordoned,
    NodeDrained,
    NodeForgotten,
    NodeHeard,
    NodeJoined,
    NodeLost,
    NodeRested,
    NodeUncordoned,
    NodeUnknown,
    SchedulerStarted,
    TimersPassed,
)
from .policy_events import AccountsClosed, PolicyChanged
from .progress_events import (
    GangHung,
    PacesReported,
    RanksInspected,
    StragglerFound,
    SuspicionCleared,
    TaskStalled,
)
from .task_events import (
    GangReformed,
    MetricsReported,
    RankExited,
    RanksWaiting,
    StartRefused,
    StopSeen,
    TaskEnded,
    TaskServes,
    TaskStarted,
)

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
    | RanksWaiting
    | TaskServes
    | StartRefused
    | TaskStalled
    | RanksInspected
    | SuspicionCleared
    | GangHung
    | StragglerFound
    | GrowthPlanned
    | GrowthDropped
    | PlacesClaimed
    | ClaimDropped
    | StopRequested
    | StopSeen
    | CheckpointRequested
    | RestoreRequested
    | JobHeld
    | JobReleased
    | PriorityChanged
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
    | NodeCordoned
    | NodeUncordoned
    | NodeForgotten
)
ClusterEvent = SchedulerStarted | ClusterSuspected | ClusterTrusted | PolicyChanged | AccountsClosed
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
