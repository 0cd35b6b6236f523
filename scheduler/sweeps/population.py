"""Population based training: which trial falls behind, and what takes its place. Pure.

A member is a line of trials, called by the number of the first; each later one goes on from another
member's checkpoint. At each multiple of the interval, of the members that have come so far, the last part is
behind and the first part ahead. A member is looked at where it came last, or, where it runs in front, at the
last multiple that enough others have come to; and again whenever one comes up, or saves. What is drawn
follows from the sweep's seed and the number of the trial that ends.

Jaderberg et al., Population Based Training of Neural Networks, 2017 (arXiv:1711.09846): asynchronous, as
there, but members are compared at the same step.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from ...spec.ids import JobId
from ...spec.sampling import PbtSampling, whole_part
from ...spec.sweep import SweepSpec
from ..core.copies import is_good
from ..core.job import Checkpoint, Job, Parent
from .driving import PARAMS, PRUNED
from .explore import explored
from .study import Fork, Study, Successor, Trial, TrialState


@dataclass(frozen=True, slots=True)
class Exploit:
    """Trial `number` is to end, and `successor` to take its place. The checkpoint is still the donor's."""

    number: int
    why: str
    successor: Successor


@dataclass(frozen=True, slots=True)
class _Place:
    """A member as it was at a step: the trial that it was then, and what it told."""

    rank: float
    """The lower the better."""
    told: float
    trial: Trial


class Population:
    """`note` each trial that has changed."""

    def __init__(self, spec: SweepSpec, how: PbtSampling, trials: Iterable[Trial]) -> None:
        self._how, self._space = how, spec.space
        self._sign = 1.0 if spec.objectives[0].goal == "minimize" else -1.0
        self._lines: dict[int, list[int]] = {}
        sizes = range(1, how.population_size + 1)
        self._enough = next((n for n in sizes if whole_part(n, how.quantile_fraction)), how.population_size)
        """Of so many the last part is one at least."""
        for trial in trials:
            self.note(trial)

    @property
    def complete(self) -> bool:
        """Every member has its first trial."""
        return len(self._lines) >= self._how.population_size

    def note(self, trial: Trial) -> None:
        line = self._lines.setdefault(member_of(trial), [])
        if not line or line[-1] < trial.number:
            line.append(trial.number)

    def exploits(self, study: Study, jobs: Mapping[JobId, Job]) -> list[Exploit]:
        """As many as there may be more trials. `jobs`: at least all that are not over."""
        live = [trial for trial in self._newest(study) if trial.state is TrialState.RUNNING]
        ending = sum(trial.successor is not None for trial in live)
        to_come = max(0, self._how.population_size - len(self._lines))
        room = study.trials_max - len(study.trials) - ending - to_come
        reached = self._reached(study)
        found: list[Exploit] = []
        places: dict[int, list[_Place]] = {}
        for trial in live:
            step = self._due(trial, reached)
            if step is None or len(found) >= room:
                continue
            if step not in places:
                places[step] = self._places(study, step)
            exploit = self._exploit(trial, step, places[step], jobs)
            if exploit is not None:
                found.append(exploit)
        return found

    def _newest(self, study: Study) -> Iterator[Trial]:
        return (study.trials[line[-1]] for line in self._lines.values())

    def _reached(self, study: Study) -> int:
        """The step that enough members have come to."""
        steps = []
        for line in self._lines.values():
            told = (study.trials[number].intermediate for number in reversed(line))
            if study.trials[line[-1]].state is not TrialState.FAIL:
                steps.append(next((next(reversed(one)) for one in told if one), 0))
        steps.sort(reverse=True)
        return steps[self._enough - 1] if len(steps) >= self._enough else 0

    def _due(self, trial: Trial, reached: int) -> int | None:
        """The step at which it is compared now. One that goes on from a checkpoint has the interval that
        begins there to itself."""
        if PRUNED in trial.user_attrs or not trial.reported:
            return None
        every = self._how.perturbation_interval
        step = min(next(reversed(trial.reported)), reached) // every * every
        begun = 0 if trial.fork is None else -(-trial.fork.parent.step // every) * every
        return step if step > begun else None

    def _places(self, study: Study, step: int) -> list[_Place]:
        """Of all members that have come so far, the best first."""
        found = [place for line in self._lines.values() if (place := self._place(study, line, step))]
        return sorted(found, key=lambda place: (place.rank, place.trial.number))

    def _place(self, study: Study, line: Sequence[int], step: int) -> _Place | None:
        """None: it has not come so far, or its trial failed."""
        if study.trials[line[-1]].state is TrialState.FAIL:
            return None
        for number in reversed(line):
            trial = study.trials[number]
            value = _value_at(trial, step, self._how.perturbation_interval)
            if value is not None:
                return _Place(math.inf if math.isnan(value) else self._sign * value, value, trial)
        return None

    def _exploit(
        self, trial: Trial, step: int, places: Sequence[_Place], jobs: Mapping[JobId, Job]
    ) -> Exploit | None:
        part = whole_part(len(places), self._how.quantile_fraction)
        mine = next((place for place in places[len(places) - part :] if place.trial is trial), None)
        if mine is None:
            return None
        ahead = {
            place.trial.number: (place, checkpoint)
            for place in places[:part]
            if place.rank < mine.rank and (checkpoint := self._checkpoint(trial, step, place.trial, jobs))
        }
        if not ahead:
            return None
        random = Random(f"pbt {self._how.seed} {trial.number}")
        donor, (theirs, checkpoint) = random.choice(sorted(ahead.items(), key=lambda one: one[0]))
        values = json.loads(theirs.trial.user_attrs[PARAMS])
        raws = explored(self._space, values, self._how, random)
        assert theirs.trial.job is not None
        generation = 1 if trial.fork is None else trial.fork.generation + 1
        parent = Parent(theirs.trial.job, checkpoint.step)
        fork = Fork(member_of(trial), generation, donor, parent, checkpoint)
        why = (
            f"pbt at step {step}, with {mine.told:g}: its place goes on from the checkpoint of step"
            f" {checkpoint.step} of trial {donor}, which had {theirs.told:g}"
        )
        return Exploit(trial.number, why, Successor(fork, json.dumps(raws)))

    def _checkpoint(
        self, trial: Trial, step: int, donor: Trial, jobs: Mapping[JobId, Job]
    ) -> Checkpoint | None:
        """The newest that is not beyond where `trial` is, and less than an interval before `step`; else the
        first beyond. None: there is none yet, or the donor does not run any more."""
        if (
            donor.job is None
            or donor.job not in jobs
            or donor.state is not TrialState.RUNNING
            or PRUNED in donor.user_attrs
        ):
            return None
        here = next(reversed(trial.reported))
        oldest = step - self._how.perturbation_interval
        good = [one for one in jobs[donor.job].course.checkpoints if is_good(one) and one.step > oldest]
        behind = [one for one in good if one.step <= here]
        if behind:
            return max(behind, key=lambda one: one.step)
        return min(good, key=lambda one: one.step, default=None)


def member_of(trial: Trial) -> int:
    return trial.number if trial.fork is None else trial.fork.member


def _value_at(trial: Trial, step: int, every: int) -> float | None:
    """Of the step, or the last one told in the interval that ends with it; None: it has not come so far."""
    told = trial.intermediate
    if step in told:
        return told[step]
    within = [one for one in told if step - every < one <= step]
    return told[max(within)] if within and max(told) > step else None
