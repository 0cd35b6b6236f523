"""What an admin says of a job's place in line."""

from dataclasses import dataclass

from ...spec.ids import JobId, Micros


@dataclass(frozen=True, slots=True)
class JobHeld:
    """It does not start until it is released; what runs of it goes on."""

    at_us: Micros
    job: JobId
    by: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class JobReleased:
    at_us: Micros
    job: JobId
    by: str


@dataclass(frozen=True, slots=True)
class PriorityChanged:
    at_us: Micros
    job: JobId
    by: str
    priority: int
