"""A study and its trials, as they stand in memory; studies.py is the one place that changes them.

Each change of a study gives it the next version, and what changed notes it: who knows all up to a version
reads only what came after it. Versions survive a restart.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from ...spec.errors import NotFound
from ...spec.ids import JobId, Micros
from ..core.job import Checkpoint, Parent


class TrialState(StrEnum):
    """Optuna's."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"

    @property
    def finished(self) -> bool:
        return self in _FINISHED


_FINISHED: Final = frozenset({TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL})


class SweepState(StrEnum):
    """Of a study that the scheduler drives."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    """No new trials; those that run come to their end."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


SWEEP_OVER: Final = frozenset({SweepState.SUCCEEDED, SweepState.FAILED, SweepState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Objective:
    """`goal`: `minimize` or `maximize`."""

    metric: str
    goal: str


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What a step must know of a sweep's document."""

    objectives: tuple[Objective, ...]
    constraints: tuple[str, ...] = ()
    by_function: bool = False
    """Its trials are run by worker jobs, one after the other, and told by them."""
    trials: int = 0
    """As many as there will be at most, `Study.more` apart."""
    failed: int = 0
    """When so many have failed one after the other, no further one begins."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that matter."""
        return (*(one.metric for one in self.objectives), *self.constraints)


class Param(NamedTuple):
    """`value` as Optuna keeps it (of a choice: its place in the list); `distribution` is Optuna's JSON."""

    value: float
    distribution: str


@dataclass(frozen=True, slots=True)
class Fork:
    """What a trial of a population goes on from: another trial's checkpoint, and whose place it takes."""

    member: int
    """The number of the first trial in its line."""
    generation: int
    """How many times its line has gone on from another's checkpoint."""
    trial: int
    """Whose checkpoint it is."""
    parent: Parent
    """The job of that, and the step."""
    checkpoint: Checkpoint
    """Under a name of its own."""


@dataclass(frozen=True, slots=True)
class Successor:
    """The trial that takes the place of one that was ended for it. `fixed`: raw values, as JSON."""

    fork: Fork
    fixed: str


@dataclass(frozen=True, slots=True)
class NewTrial:
    """With what a trial begins. `started_us` and `finished_us` None: now, where its state has such a time."""

    state: TrialState = TrialState.RUNNING
    params: Mapping[str, Param] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    intermediate: Mapping[int, float] = field(default_factory=dict)
    user_attrs: Mapping[str, str] = field(default_factory=dict)
    system_attrs: Mapping[str, str] = field(default_factory=dict)
    started_us: Micros | None = None
    finished_us: Micros | None = None
    fork: Fork | None = None


@dataclass(slots=True)
class Trial:
    """Attributes are JSON texts that nobody here looks into."""

    number: int
    state: TrialState
    params: dict[str, Param] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    intermediate: dict[int, float] = field(default_factory=dict)
    user_attrs: dict[str, str] = field(default_factory=dict)
    system_attrs: dict[str, str] = field(default_factory=dict)
    started_us: Micros | None = None
    finished_us: Micros | None = None
    key: str = ""
    """Idempotency of its creation."""
    claim: str = ""
    """Idempotency of its last change of state."""
    job: JobId | None = None
    version: int = 0
    """Of its last change."""
    noted: int = 0
    """Of the last change of anything but its intermediate values."""
    reported: dict[int, int] = field(default_factory=dict)
    """Of a trial that is not finished: with which version each step came, in their order."""
    fork: Fork | None = None
    """Of a later generation of a population."""
    successor: Successor | None = None
    """It is to end early, and this takes its place."""

    @property
    def finished(self) -> bool:
        return self.state.finished

    def reported_since(self, version: int) -> dict[int, float]:
        """The intermediate values that are newer; all of a finished trial."""
        if self.finished:
            return self.intermediate
        newer: dict[int, float] = {}
        for step, at in reversed(self.reported.items()):
            if at <= version:
                break
            newer[step] = self.intermediate[step]
        return newer


@dataclass(slots=True)
class Study:
    """`trials` is empty until it is loaded; `version` is known only then."""

    id: int
    name: str
    directions: tuple[str, ...]
    """`minimize` or `maximize`, one for each objective."""
    user: str
    made_us: Micros
    key: str = ""
    """Idempotency of its creation."""
    document: str = ""
    """Canonical JSON of the sweep; empty: nobody drives it, it is used through Optuna."""
    state: SweepState | None = None
    plan: SweepPlan | None = None
    """Of a sweep."""
    more: int = 0
    """Trials beyond those of the document."""
    extended_us: Micros | None = None
    """When it last was given more: its time, and its failures in a row, count anew from then."""
    workers: list[JobId] = field(default_factory=list)
    """Jobs that run trials of it, or are about to."""
    workers_made: int = 0
    """So far."""
    why: str = ""
    """Why its state is what it is."""
    ends_as: SweepState | None = None
    """Of one that is stopping."""
    ended_us: Micros | None = None
    user_attrs: dict[str, str] = field(default_factory=dict)
    system_attrs: dict[str, str] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)
    """With which each name was sampled first: later ones must be compatible."""
    earlier: int = 0
    """Its first trials come from another study; they do not count as its own."""
    earlier_note: str = ""
    """How those were chosen."""
    noted: int = 0
    """Of the last change of the study itself."""
    version: int = 0
    trials: list[Trial] = field(default_factory=list)
    loaded: bool = False
    keys: dict[str, int] = field(default_factory=dict)
    """Of its trials."""
    waiting: set[int] = field(default_factory=set)
    """Trials that wait."""
    failed_in_row: int = 0
    """Trials since the last one that did not fail, as they ended."""
    first_failed: int | None = None
    """Of those."""
    values_count: int = 0
    """Intermediate values of all its trials."""
    _log_versions: list[int] = field(default_factory=list)
    _log_numbers: list[int] = field(default_factory=list)
    """Which trial changed with which version. Entries that a later one has made void stay for a while."""

    @property
    def live(self) -> bool:
        """The scheduler drives it now."""
        return self.state is not None and self.state not in SWEEP_OVER

    @property
    def own_trials(self) -> list[Trial]:
        return self.trials[self.earlier :] if self.earlier else self.trials

    @property
    def trials_max(self) -> int:
        """As many as a sweep will have at most, with those from another study."""
        assert self.plan is not None
        return self.earlier + self.plan.trials + self.more

    @property
    def size(self) -> int:
        return len(self.trials) + self.values_count

    def trial(self, number: int) -> Trial:
        """Raises NotFound."""
        if not 0 <= number < len(self.trials):
            raise NotFound(
                f"study {self.id} has no trial {number}",
                hint=f"it has {len(self.trials)} trials, numbered from 0",
                study=self.id,
                trial=number,
            )
        return self.trials[number]

    def changed_since(self, version: int) -> Iterator[Trial]:
        """Each trial once, in the order of their versions."""
        for at in range(bisect_right(self._log_versions, version), len(self._log_versions)):
            trial = self.trials[self._log_numbers[at]]
            if trial.version == self._log_versions[at]:
                yield trial

    def note_end(self, trial: Trial) -> None:
        """It has ended."""
        if trial.state is not TrialState.FAIL:
            self.failed_in_row, self.first_failed = 0, None
        elif (trial.finished_us or 0) > (self.extended_us or 0):
            self.failed_in_row += 1
            self.first_failed = trial.number if self.first_failed is None else self.first_failed

    def extend(self, more: int, now_us: Micros) -> None:
        self.more += more
        self.extended_us = now_us
        self.failed_in_row, self.first_failed = 0, None

    def note(self, trial: Trial) -> None:
        """The next version is this trial's."""
        self.version += 1
        trial.version = self.version
        self._log_versions.append(self.version)
        self._log_numbers.append(trial.number)
        if len(self._log_versions) > 2 * len(self.trials) + 1024:
            self.sort_log()

    def sort_log(self) -> None:
        """One entry for each trial."""
        by_version = sorted((trial.version, trial.number) for trial in self.trials)
        self._log_versions = [version for version, _ in by_version]
        self._log_numbers = [number for _, number in by_version]
