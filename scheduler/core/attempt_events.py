"""A job's way: submitted, placed, told to stop or to grow, ended."""

from msgspec import Struct

from ...spec.ids import Attempt, JobId, Micros, NodeId, TaskKey
from ...spec.lifecycle import JobState
from .job import NEVER, Checkpoint, Ending, Loan, Move, Parent, Shape, Stop


class JobSubmitted(Struct, frozen=True):
    at_us: Micros
    job: JobId
    name: str
    user: str
    priority: int
    shape: Shape
    parent: Parent | None = None
    checkpoint: Checkpoint | None = None
    """Of the parent, which the first attempt goes on from."""


class Place(Struct, frozen=True):
    """Where one task of a gang goes."""

    node: NodeId
    gpu_indices: tuple[int, ...] = ()


class AttemptStarted(Struct, frozen=True):
    """Placed and sent; the job is STARTING."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    places: tuple[Place, ...]
    rendezvous_port: int = 0
    size: str = ""
    """Of an elastic gang: how large it is of what it may be, and why."""
    lifted: int = 0
    """Classes of service that its patience lifted it by."""
    loan: Loan | None = None


class GrowthPlanned(Struct, frozen=True):
    """There is room for more instances, and nobody waits for it: the gang grows at its next checkpoint."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    instances: int
    to: int
    gain: str = ""
    """What it expects of that."""


class GrowthDropped(Struct, frozen=True):
    """The checkpoint came, and the room was no longer there."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    why: str


class StopRequested(Struct, frozen=True):
    at_us: Micros
    job: JobId
    stop: Stop


class AttemptEnded(Struct, frozen=True):
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
    service: int = 0
    """The class of service that it waits in."""
    lost: str = ""
    """What it had done that no checkpoint holds, where it was told to save or its work is done again."""


class FirstFailureFound(Struct, frozen=True):
    """A rank that told late of its end had failed before the one that the attempt's end was put down to. Only
    the report changes: what was decided stays."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    ending: Ending
    """The same end, told anew."""


class LingererGone(Struct, frozen=True):
    """A task of an earlier attempt of an exclusive job has ended, or its lease has run out on both sides."""

    at_us: Micros
    task: TaskKey
    node: NodeId
    why: str


class JobEnded(Struct, frozen=True):
    """A job that waited is over."""

    at_us: Micros
    job: JobId
    state: JobState
    ending: Ending


class PlacesClaimed(Struct, frozen=True):
    """Nodes are kept for a waiting job: those that were told to leave them make room for all of it. `moves`:
    who of these goes on elsewhere, and where."""

    at_us: Micros
    job: JobId
    nodes: tuple[NodeId, ...]
    victims: tuple[JobId, ...] = ()
    moves: tuple[Move, ...] = ()


class ClaimDropped(Struct, frozen=True):
    """All have left, or cannot, and it does not fit there after all: it stands in line again."""

    at_us: Micros
    job: JobId
    why: str


class LaneParked(Struct, frozen=True):
    """No node could ever run the job that is first in line, nor its equals: they step aside."""

    at_us: Micros
    job: JobId
