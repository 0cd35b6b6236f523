"""What a sweep does next: pure, from its limits and how it stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ...spec.ids import JobId
from .study import SweepState

AHEAD: Final = 1
"""Trials that wait in line beyond those that run: where there is room for one more, it starts at once; what
is suggested earlier than needed is suggested knowing less."""
AHEAD_SHARE: Final = 0.25
"""And so much of those that run: thousands of nodes that come free are filled in a few rounds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`trials`: as many as there will be at most. Times in microseconds."""

    trials: int
    concurrent: int
    firm: int
    """So many trials have the sweep's own priority; those beyond take only what is idle."""
    failed: int
    """When so many trials have failed one after the other it is given up."""
    until_us: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a sweep stands. `running`: all trials with a job that is not over; `queued`: those of them that
    wait in line."""

    state: SweepState
    ends_as: SweepState | None
    why: str
    """Why it is as it is."""
    made: int
    waiting: Sequence[int]
    """Numbers of trials that wait for their job."""
    running: Sequence[JobId]
    queued: int
    firm: int
    """Those of `running` that have the sweep's own priority."""
    firm_queued: int
    """And wait in line."""
    complete: int
    failed_in_row: int
    first_failure: str
    """Of those in a row."""
    exhausted: bool
    now_us: int


@dataclass(frozen=True, slots=True)
class Start:
    """The next trial, or worker, is this one. `idle`: it takes only what nobody else wants."""

    number: int
    idle: bool


@dataclass(frozen=True, slots=True)
class End:
    """It changes to that state."""

    to: SweepState
    why: str = ""
    ends_as: SweepState | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """It is stopping: these are told to end."""

    jobs: Sequence[JobId]


def next_move(limits: Limits, now: Standing) -> Start | End | Cancel | None:
    """None: until something changes, or the time is over."""
    early = _early_end(limits, now)
    if early is not None:
        return early
    number = _next(limits, now)
    if number is None:
        return None if now.running else _at_end(now)
    if now.state is not SweepState.RUNNING or not _has_room(limits, now):
        return None
    return Start(number, idle=now.firm >= limits.firm)


def next_crew_move(
    limits: Limits, now: Standing, busy: int, workers_made: int
) -> Start | End | Cancel | None:
    """The same where workers run the trials: `now` counts their jobs, `busy` of them
    run a trial. One more starts where there is a trial for it, too."""
    early = _early_end(limits, now)
    if early is not None:
        return early
    left = len(now.waiting) + max(0, limits.trials - now.made)
    if not left:
        return None if now.running else _at_end(now)
    idle = len(now.running) - busy
    if now.state is not SweepState.RUNNING or idle >= left or not _has_room(limits, now):
        return None
    return Start(workers_made, idle=now.firm >= limits.firm)


def _early_end(limits: Limits, now: Standing) -> End | Cancel | None:
    if now.state is SweepState.STOPPING:
        if now.running:
            return Cancel(now.running)
        return End(now.ends_as or SweepState.CANCELLED, now.why)
    if limits.until_us is not None and now.now_us >= limits.until_us:
        ends_as = SweepState.SUCCEEDED if now.complete else SweepState.FAILED
        return End(SweepState.STOPPING, "limits.timeout is over", ends_as)
    if now.failed_in_row >= limits.failed:
        why = f"{now.failed_in_row} trials in a row failed, the first of them because: {now.first_failure}"
        return End(SweepState.STOPPING, why, SweepState.FAILED)
    return None


def _at_end(now: Standing) -> End:
    """There are no more trials."""
    if now.complete:
        return End(SweepState.SUCCEEDED)
    return End(SweepState.FAILED, f"no trial came to its end: {now.first_failure or 'all were pruned'}")


def _next(limits: Limits, now: Standing) -> int | None:
    """The number of the next trial: the first that waits, else a new one. None: there are no more."""
    if now.waiting:
        return now.waiting[0]
    if now.exhausted or now.made >= limits.trials:
        return None
    return now.made


def _has_room(limits: Limits, now: Standing) -> bool:
    """One that takes only what is idle, and waits, does not keep one of the others from the line."""
    ahead = max(AHEAD, int(AHEAD_SHARE * (len(now.running) - now.queued)))
    firm = now.firm < limits.firm and now.firm_queued < ahead
    return len(now.running) < limits.concurrent and (firm or now.queued < ahead)
