"""Whether a gang makes progress: ranks that stand still, where they are, and how long steps take."""

from msgspec import Struct

from ...spec.ids import Attempt, JobId, Micros, NodeId, TaskKey
from .hang import RankLook
from .pace import RankPace


class TaskStalled(Struct, frozen=True):
    """A node has seen no step of its ranks for longer than they ever needed: the gang's nodes are asked."""

    at_us: Micros
    task: TaskKey
    seq: int
    since_us: Micros
    """The last step there, or the start where none has been made (`step` is -1 then)."""
    limit_us: int
    longest_us: int = 0
    step: int = -1
    idle: bool = False


class RanksInspected(Struct, frozen=True):
    """Where the ranks on one node are."""

    at_us: Micros
    task: TaskKey
    seq: int
    begun: bool
    stalled: bool
    ranks: tuple[RankLook, ...] = ()


class SuspicionCleared(Struct, frozen=True):
    """The gang does not hang."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    why: str


class GangHung(Struct, frozen=True):
    """It does, since its last step; the attempt ends by it."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    since_us: Micros
    step: int
    ranks: tuple[int, ...]
    """Those that did not arrive, where they can be told from their peers."""
    text: str


class StragglerFound(Struct, frozen=True):
    """Ranks on that node are slower than their peers, again and again."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    node: NodeId
    ranks: tuple[int, ...]
    text: str


class PacesReported(Struct, frozen=True):
    at_us: Micros
    task: TaskKey
    seq: int
    ranks: tuple[RankPace, ...]
    slow: tuple[tuple[int, int], ...] = ()
    """In how many windows in a row each of these ranks has been slow now."""
