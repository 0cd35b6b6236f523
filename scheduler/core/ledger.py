"""Where a job's time went, in whole microseconds, from its events. The parts add up to the wall time exactly.

queued: in line before the first attempt, or after a preemption. starting: placed, before the first RUNNING.
productive: RUNNING. checkpoint: the stalls that saves reported. lost: productive time since the last accepted
checkpoint of an attempt that ended by a fault or to grow (its work is done again). restarting: from such an
end to the next RUNNING. hung: RUNNING of an attempt that was found to hang, from its last step on.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final

from ...spec.ids import Micros
from ...spec.lifecycle import AttemptOutcome, JobState
from . import events as e

DONE_AGAIN: Final = frozenset(
    {
        AttemptOutcome.WORKER_FAILED,
        AttemptOutcome.NODE_LOST,
        AttemptOutcome.START_FAILED,
        AttemptOutcome.RESIZED,
    }
)
"""What such an attempt did since its last checkpoint is done again."""


@dataclass(frozen=True, slots=True)
class Ledger:
    wall_us: int = 0
    queued_us: int = 0
    starting_us: int = 0
    productive_us: int = 0
    checkpoint_us: int = 0
    lost_us: int = 0
    restarting_us: int = 0
    hung_us: int = 0

    @property
    def goodput(self) -> float:
        """The productive share of the wall time."""
        return self.productive_us / self.wall_us if self.wall_us else 0.0


def ledger_of(events: Iterable[e.Event], now_us: Micros) -> Ledger:
    """`events`: all of one job, in order. A job that is not over is counted up to `now_us`."""
    book = _Book()
    for event in events:
        book.enter(event)
    if not book.over:
        book.pass_to(now_us)
    return book.close()


class _Book:
    """A cursor that moves through the job's time; each stretch goes to the account of the phase it was in."""

    def __init__(self) -> None:
        self.accounts = {part.name: 0 for part in fields(Ledger)}
        self.phase = ""
        self.at_us = self.start_us = 0
        self.at_risk_us = 0
        """Productive time since the last accepted checkpoint of this attempt."""
        self.attempt_us = 0
        """Productive time of this attempt."""
        self.tasks_to_start = 0
        self.over = False
        self.again = False

    def enter(self, event: e.Event) -> None:
        self.pass_to(event.at_us)
        match event:
            case e.JobSubmitted():
                self.phase, self.start_us, self.at_us = "queued_us", event.at_us, event.at_us
            case e.AttemptStarted():
                self.phase = "restarting_us" if self.again else "starting_us"
                self.tasks_to_start = len(event.places)
                self.at_risk_us = self.attempt_us = 0
            case e.TaskStarted():
                self.tasks_to_start -= 1
                if not self.tasks_to_start:
                    self.phase = "productive_us"
            case e.CheckpointAccepted():
                self._checkpoint(event.stall_us)
            case e.GangHung():
                self._hung(event.at_us - event.since_us)
            case e.AttemptEnded():
                self._attempt_ended(event)
            case e.JobEnded():
                self.over = True

    def pass_to(self, at_us: int) -> None:
        """Time that seems to run backwards does not count."""
        if not self.phase or self.over or at_us <= self.at_us:
            return
        self.accounts[self.phase] += at_us - self.at_us
        if self.phase == "productive_us":
            self.at_risk_us += at_us - self.at_us
            self.attempt_us += at_us - self.at_us
        self.at_us = at_us

    def close(self) -> Ledger:
        return Ledger(**{**self.accounts, "wall_us": self.at_us - self.start_us})

    def _checkpoint(self, stall_us: int) -> None:
        """A stall cannot have been longer than what has passed since the last one."""
        stall_us = min(max(stall_us, 0), self.at_risk_us)
        self.accounts["productive_us"] -= stall_us
        self.accounts["checkpoint_us"] += stall_us
        self.attempt_us -= stall_us
        self.at_risk_us = 0

    def _hung(self, hung_us: int) -> None:
        """It is not lost besides. It cannot have hung for longer than it ran."""
        hung_us = min(max(hung_us, 0), self.attempt_us)
        self.accounts["productive_us"] -= hung_us
        self.accounts["hung_us"] += hung_us
        self.at_risk_us = max(0, self.at_risk_us - hung_us)

    def _attempt_ended(self, event: e.AttemptEnded) -> None:
        if event.ending.outcome in DONE_AGAIN:
            self.accounts["productive_us"] -= self.at_risk_us
            self.accounts["lost_us"] += self.at_risk_us
        self.at_risk_us = 0
        self.over = event.then is not JobState.QUEUED
        self.again = True
        preempted = event.ending.outcome is AttemptOutcome.PREEMPTED
        self.phase = "queued_us" if preempted else "restarting_us"
