"""What the verbs on sweeps return; see views.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..spec.ids import JobId, Micros

OVER = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class Objective:
    metric: str
    goal: str
    """`minimize` or `maximize`."""


@dataclass(frozen=True, slots=True)
class Fork:
    """What a trial of population based training goes on from: the checkpoint of `step` of another trial."""

    member: int
    """Whose place it takes: the number of the first trial there."""
    generation: int
    """From 1 on: the first trial of a member goes on from nothing."""
    trial: int
    step: int


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of a sweep. It keeps its number and params over all attempts of its job."""

    number: int
    state: str
    """Optuna's: WAITING, RUNNING, COMPLETE, PRUNED, FAIL."""
    job: JobId | None
    job_state: str
    """Of one that is not over; empty otherwise."""
    params: Mapping[str, Any]
    """As the script got them."""
    values: tuple[float, ...]
    """Of the objectives; of a pruned trial the last that it told."""
    told: Mapping[str, float]
    """The last value of each objective and constraint."""
    started_us: Micros | None
    ended_us: Micros | None
    why: str
    """Why it ended otherwise than complete; of one that an earlier sweep has given, which that was."""
    step: int | None
    """The last at which it told its objective."""
    feasible: bool
    """All constraints hold."""
    fork: Fork | None = None
    """Of a later generation of a population."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep as it stands. `document` and `best` are empty in listings, and counts 0."""

    sweep: int
    name: str
    """Of its study, for `optuna.load_study`."""
    user: str
    state: str
    """RUNNING, PAUSED, STOPPING, SUCCEEDED, FAILED, CANCELLED."""
    why: str
    submitted_us: Micros
    ended_us: Micros | None
    objectives: tuple[Objective, ...]
    trials_max: int
    concurrent_max: int
    waiting: int
    """Enqueued points that are not submitted yet."""
    queued: int
    """Trials whose jobs wait in line."""
    running: int
    complete: int
    pruned: int
    failed: int
    best: tuple[Trial, ...]
    """One, or of several objectives those that no other dominates."""
    first_failure: str
    sampler: str
    early_termination: str
    """Empty: none."""
    document: str
    """Canonical JSON."""
    earlier: int
    """Trials of another sweep that it began with: its first ones, in no count here."""
    warm_start: str
    """How those were chosen; empty: there are none."""

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def done(self) -> int:
        """Trials that are over."""
        return self.complete + self.pruned + self.failed
