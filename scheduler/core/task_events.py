"""What nodes tell of their tasks: started, reporting, ended; and of the script in them."""

from collections.abc import Mapping

from msgspec import Struct

from ...spec.failures import FailureClass
from ...spec.ids import Micros, TaskKey
from .job import NEVER


class TaskStarted(Struct, frozen=True):
    """The last one to start makes the job RUNNING."""

    at_us: Micros
    task: TaskKey
    seq: int
    pids: tuple[int, ...] = ()
    start_mode: str = ""
    prepared: str = ""
    """What its node made ready before."""
    record: str = ""
    """Hash of what it runs with."""
    unrecorded: str = ""
    """Why there is no record."""
    network: str = ""
    """Over what its ranks reach those on other nodes."""


class RankExited(Struct, frozen=True):
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


class TaskEnded(Struct, frozen=True):
    at_us: Micros
    task: TaskKey
    seq: int
    exit_codes: tuple[int, ...] = ()
    log_bytes: tuple[int, ...] = ()
    why: str = "exited"


class StartRefused(Struct, frozen=True):
    at_us: Micros
    task: TaskKey
    seq: int
    code: str
    text: str
    transient: bool


class StopSeen(Struct, frozen=True):
    """The script has heard that it should stop."""

    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    left_us: int


class GangReformed(Struct, frozen=True):
    """Ranks that were kept from the attempt before train on after its step: none is made again."""

    at_us: Micros
    task: TaskKey
    seq: int
    replaced: tuple[int, ...]
    world_size: int
    step: int
    duration_us: int
    """Since they saw that the gang was broken."""


class RanksWaiting(Struct, frozen=True):
    """The task was asked to stop: its ranks have left the gang, and stay up for the next attempt."""

    at_us: Micros
    task: TaskKey
    seq: int
    ranks: int


class TaskServes(Struct, frozen=True):
    """What the task runs answers requests there, until the attempt is over."""

    at_us: Micros
    task: TaskKey
    seq: int
    url: str


class MetricsReported(Struct, frozen=True):
    at_us: Micros
    task: TaskKey
    seq: int
    rank: int
    step: int
    values: Mapping[str, float]
