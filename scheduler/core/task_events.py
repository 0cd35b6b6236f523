"""What nodes tell of their tasks: started, reporting, ended; and of the script in them."""

from collections.abc import Mapping

from ...spec.failures import FailureClass
from ...spec.ids import Micros, TaskKey
from ...spec.record import record
from .job import NEVER


@record(frozen=True, slots=True)
class TaskStarted:
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


@record(frozen=True, slots=True)
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


@record(frozen=True, slots=True)
class TaskEnded:
    at_us: Micros
    task: TaskKey
    seq: int
    exit_codes: tuple[int, ...] = ()
    log_bytes: tuple[int, ...] = ()
    why: str = "exited"


@record(frozen=True, slots=True)
class StartRefused:
    at_us: Micros
    task: TaskKey
    seq: int
    code: str
    text: str
    transient: bool


@record(frozen=True, slots=True)
class StopSeen:
    """The script has heard that it should stop."""

    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    left_us: int


@record(frozen=True, slots=True)
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


@record(frozen=True, slots=True)
class RanksWaiting:
    """The task was asked to stop: its ranks have left the gang, and stay up for the next attempt."""

    at_us: Micros
    task: TaskKey
    seq: int
    ranks: int


@record(frozen=True, slots=True)
class TaskServes:
    """What the task runs answers requests there, until the attempt is over."""

    at_us: Micros
    task: TaskKey
    seq: int
    url: str


@record(frozen=True, slots=True)
class MetricsReported:
    at_us: Micros
    task: TaskKey
    seq: int
    rank: int
    step: int
    values: Mapping[str, float]
