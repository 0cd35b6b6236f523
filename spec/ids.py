"""Typed ids. A job is a number that the scheduler hands out; everything below it hangs on that number."""

from typing import NewType, Self

from msgspec import Struct

JobId = NewType("JobId", int)
"""Grows by one with each accepted job; never reused."""

NodeId = NewType("NodeId", str)
"""Made once by an agent, kept in its state folder; survives restarts and renames of the node."""

Attempt = NewType("Attempt", int)
"""Number of a start of a job, from 1. Only the highest may change anything (fencing)."""

Micros = NewType("Micros", int)
"""Microseconds since the epoch on the scheduler's clock, which never runs backwards."""


class TaskKey(Struct, frozen=True, order=True):
    """One node's part of one attempt. Written `812.3.0`: job 812, attempt 3, task 0."""

    job: JobId
    attempt: Attempt
    task: int

    def __hash__(self) -> int:
        """Of the numbers alone: a Struct's own differs between processes, and with it the order of a set."""
        return hash((self.job, self.attempt, self.task))

    def __str__(self) -> str:
        return f"{self.job}.{self.attempt}.{self.task}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `JOB.ATTEMPT.TASK`; raises ValueError on anything else."""
        job, attempt, task = (int(part) for part in text.split("."))
        return cls(JobId(job), Attempt(attempt), task)
