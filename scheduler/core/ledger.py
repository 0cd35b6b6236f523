"""Where a job's time went, in whole microseconds, from its events. The parts add up to the wall time exactly.

queued: in line before the first attempt, or after a preemption. starting: placed, before the first RUNNING.
productive: RUNNING. checkpoint: the stalls that saves reported, and what an attempt that was to save and
leave waited for its last one to be on disk. lost: productive time since the last accepted checkpoint was
COPIED, of an attempt whose work is done again (a fault, a preemption, a restore, a growth), unless ranks kept
what they had done. restarting: from the end of an attempt to the next RUNNING. hung: RUNNING of an attempt
that was found to hang, from its last step on.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final

from ...spec.ids import Micros
from ...spec.lifecycle import AttemptOutcome, JobState
from .attempt_events import AttemptEnded, AttemptStarted, JobEnded, JobSubmitted, StopRequested
from .checkpoint_events import CheckpointAccepted
from .events import Event
from .progress_events import GangHung
from .rates import FAULTS
from .task_events import GangReformed, TaskStarted

WORK_AGAIN: Final = FAULTS | {AttemptOutcome.PREEMPTED, AttemptOutcome.RESTORED, AttemptOutcome.RESIZED}
"""Outcomes after which what no checkpoint holds is done again."""


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


def ledger_of(events: Iterable[Event], now_us: Micros) -> Ledger:
    """`events`: all of one job, in order. A job that is not over is counted up to `now_us`."""
    book = Book()
    for event in events:
        book.enter(event)
    if not book.over:
        book.pass_to(now_us)
    return book.close()


class Book:
    """A cursor that moves through the job's time; each stretch goes to the account of the phase it was in."""

    def __init__(self) -> None:
        self.accounts = {part.name: 0 for part in fields(Ledger)}
        self.phase = ""
        self.at_us = self.start_us = 0
        self.at_risk_us = 0
        """Productive time since the last accepted checkpoint of this attempt was copied."""
        self.attempt_us = 0
        """Productive time of this attempt."""
        self.stop_us: int | None = None
        self.saved_after_stop = False
        self.lost_us = 0
        """By the last fault."""
        self.tasks_to_start = 0
        self.over = False
        self.again = False

    def enter(self, event: Event) -> None:
        self.pass_to(event.at_us)
        match event:
            case JobSubmitted():
                self.phase, self.start_us, self.at_us = "queued_us", event.at_us, event.at_us
            case AttemptStarted():
                self.phase = "restarting_us" if self.again else "starting_us"
                self.tasks_to_start = len(event.places)
                self.at_risk_us = self.attempt_us = 0
                self.stop_us, self.saved_after_stop = None, False
            case TaskStarted():
                self.tasks_to_start -= 1
                if not self.tasks_to_start:
                    self.phase = "productive_us"
            case CheckpointAccepted():
                self._checkpoint(event)
            case StopRequested():
                self.stop_us = event.at_us
            case GangReformed():
                self._reformed()
            case GangHung():
                self._hung(event.at_us - event.since_us)
            case AttemptEnded():
                self._attempt_ended(event)
            case JobEnded():
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

    def _checkpoint(self, event: CheckpointAccepted) -> None:
        """A stall cannot have been longer than what has passed since the last one. Steps that were made while
        it was brought to disk are not in it."""
        self._move_to_checkpoint(event.stall_us)
        since_us = event.at_us - event.staged_us if event.staged_us else 0
        self.at_risk_us = min(self.at_risk_us, max(since_us, 0))
        self.saved_after_stop = self.stop_us is not None and event.at_us - since_us >= self.stop_us

    def _move_to_checkpoint(self, stall_us: int) -> None:
        stall_us = min(max(stall_us, 0), self.at_risk_us)
        self.accounts["productive_us"] -= stall_us
        self.accounts["checkpoint_us"] += stall_us
        self.attempt_us -= stall_us
        self.at_risk_us -= stall_us

    def _reformed(self) -> None:
        """What the attempt before seemed to have lost was kept; a later fault may lose it still."""
        self.accounts["lost_us"] -= self.lost_us
        self.accounts["productive_us"] += self.lost_us
        self.at_risk_us += self.lost_us
        self.attempt_us += self.lost_us
        self.lost_us = 0

    def _hung(self, hung_us: int) -> None:
        """It is not lost besides. It cannot have hung for longer than it ran."""
        hung_us = min(max(hung_us, 0), self.attempt_us)
        self.accounts["productive_us"] -= hung_us
        self.accounts["hung_us"] += hung_us
        self.at_risk_us = max(0, self.at_risk_us - hung_us)

    def _attempt_ended(self, event: AttemptEnded) -> None:
        if self.saved_after_stop:
            self._move_to_checkpoint(self.at_risk_us)
        self.lost_us = 0
        if event.ending.outcome in WORK_AGAIN:
            self.accounts["productive_us"] -= self.at_risk_us
            self.accounts["lost_us"] += self.at_risk_us
            self.lost_us = self.at_risk_us
        self.at_risk_us = 0
        self.over = event.then is not JobState.QUEUED
        self.again = True
        preempted = event.ending.outcome is AttemptOutcome.PREEMPTED
        self.phase = "queued_us" if preempted else "restarting_us"
