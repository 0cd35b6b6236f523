"""What an admin says of a job's place in line."""

from msgspec import Struct

from ...spec.ids import JobId, Micros


class JobHeld(Struct, frozen=True):
    """It does not start until it is released; what runs of it goes on."""

    at_us: Micros
    job: JobId
    by: str
    why: str = ""


class JobReleased(Struct, frozen=True):
    at_us: Micros
    job: JobId
    by: str


class PriorityChanged(Struct, frozen=True):
    at_us: Micros
    job: JobId
    by: str
    priority: int
