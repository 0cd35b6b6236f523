"""What an admin says of a job's place in line."""

from ...spec.ids import JobId, Micros
from ...spec.record import record


@record(frozen=True, slots=True)
class JobHeld:
    """It does not start until it is released; what runs of it goes on."""

    at_us: Micros
    job: JobId
    by: str
    why: str = ""


@record(frozen=True, slots=True)
class JobReleased:
    at_us: Micros
    job: JobId
    by: str


@record(frozen=True, slots=True)
class PriorityChanged:
    at_us: Micros
    job: JobId
    by: str
    priority: int
