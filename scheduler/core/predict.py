"""What is left of a job's run, as far as can be said without its user's word for it: a median and its spread.

Of a run that tells its progress (steps done, of `total_steps`), by its own pace: steps of one training job
take nearly the same time each (Peng et al., "Optimus", EuroSys'18; Xiao et al., "Gandiva", OSDI'18).

Else by experience: runs of the same user and name, of the user, and of all together (Gibbons, "A historical
application profiler for use by parallel schedulers", JSSPP 1997; Tumanov et al., "JamaisVu",
CMU-PDL-16-104), given that it has lasted so long already: the distribution of those that lasted longer,
whole and not as one number, as in 3Sigma (Park et al., EuroSys'18). Where nobody lasted longer, or nothing
is known, what is left is as long as what has passed, at odds of one to one (the Pareto tail of lifetimes
with exponent 1; Harchol-Balter and Downey, "Exploiting process lifetime distributions", SIGMETRICS 1996).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from math import log2
from statistics import median
from typing import Final

from ...spec.ids import Micros
from ...spec.lifecycle import JobState
from ...spec.progress import TOTAL_STEPS
from .job import Job
from .runs import Runs, attained_us
from .settings import SECOND_US
from .state import ClusterState

LEVELS: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
RUNS_MIN: Final = 4
"""That lasted longer; with fewer, the next wider circle is asked."""
UNKNOWN_US: Final = 3600 * SECOND_US
"""The median of what nothing is known of."""
_ODDS: Final = (0.0, 1 / 9, 1 / 3, 1.0, 3.0, 9.0, 19.0)
"""level / (1 - level); the last is of level 0.95."""
_PACE_SPREAD: Final = (0.85, 0.92, 0.97, 1.0, 1.05, 1.2, 1.5)
"""Of what is left by the pace so far: saves, evaluations, slow nodes, and a stop before the last step."""
_MASK: Final = (1 << 64) - 1


class Basis(StrEnum):
    """What a prediction goes by, the best first."""

    PROGRESS = "progress"
    NAME = "name"
    USER = "user"
    ALL = "all"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Prediction:
    left_us: tuple[int, ...]
    """At LEVELS, not descending."""
    basis: Basis
    runs: int = 0
    """Earlier runs that it goes by."""

    @property
    def p10_us(self) -> int:
        return self.left_us[1]

    @property
    def median_us(self) -> int:
        return self.left_us[3]

    @property
    def p90_us(self) -> int:
        return self.left_us[5]

    def at(self, level: float) -> int:
        """0 <= level <= 1; between LEVELS as on a line."""
        above = min(bisect_right(LEVELS, level), len(LEVELS) - 1)
        low, high = LEVELS[above - 1], LEVELS[above]
        share = (level - low) / (high - low)
        return round(self.left_us[above - 1] + share * (self.left_us[above] - self.left_us[above - 1]))


def predict(state: ClusterState, job: Job, now_us: Micros) -> Prediction:
    """Of a job that waits or runs: what its attempts will still run, as if at the size that was asked for."""
    found = _by_progress(state, job, now_us) or by_runs(state.runs, job, attained_us(job, now_us))
    limit_us = job.shape.policy.timeout_us
    if not limit_us:
        return found
    most_us = max(0, job.course.started_us + limit_us - now_us) if job.course.started_us else limit_us
    return Prediction(tuple(min(each, most_us) for each in found.left_us), found.basis, found.runs)


def by_runs(runs: Runs, job: Job, ran_us: int) -> Prediction:
    """By experience alone: of the narrowest circle with enough runs, and of the wider ones the less, the more
    alike that one's runs are. Recent runs of one user resemble each other more than the next one: without the
    others the spread is told too small."""
    circles = (
        (Basis.NAME, runs.names.get((job.user, job.name), ())),
        (Basis.USER, runs.users.get(job.user, ())),
        (Basis.ALL, runs.all),
    )
    found: list[tuple[Basis, list[int]]] = []
    for basis, durations_us in circles:
        left_us = sorted(each - ran_us for each in durations_us if each > ran_us)
        if len(left_us) >= RUNS_MIN:
            found.append((basis, left_us))
    if not found:
        median_us = max(ran_us, UNKNOWN_US)
        return Prediction(tuple(round(median_us * odds) for odds in _ODDS), Basis.NOTHING)
    basis, narrowest = found[0]
    weights = [_trust(narrowest), *(1.0 for _ in found[1:])]
    return Prediction(_mixed([each for _, each in found], weights), basis, len(narrowest))


def _trust(ascending: Sequence[int]) -> float:
    """16 where all are alike, 4 where a quarter is three times as long as another, 1 where it is 15 times."""
    ratio = (quantile(ascending, 0.75) + 1) / (quantile(ascending, 0.25) + 1)
    return 16 / log2(1 + ratio) ** 2


def _mixed(circles: Sequence[Sequence[int]], weights: Sequence[float]) -> tuple[int, ...]:
    """LEVELS of all circles together, each with its weight whatever its number."""
    if len(circles) == 1:
        return tuple(quantile(circles[0], level) for level in LEVELS)
    weighed = sorted(
        (left_us, weight / len(circle))
        for circle, weight in zip(circles, weights, strict=True)
        for left_us in circle
    )
    before = list(accumulate((weight for _, weight in weighed), initial=0.0))
    total = before[-1]
    ats = (bisect_right(before, level * total) - 1 for level in LEVELS)
    return tuple(weighed[min(max(at, 0), len(weighed) - 1)][0] for at in ats)


def quantile(ascending: Sequence[int], level: float) -> int:
    """Between two values as on a line."""
    at = level * (len(ascending) - 1)
    low = int(at)
    high = min(low + 1, len(ascending) - 1)
    return round(ascending[low] + (at - low) * (ascending[high] - ascending[low]))


def basis_text(prediction: Prediction, job: Job) -> str:
    """`judged by 12 earlier runs of ann's train-gpt`."""
    runs = "1 earlier run" if prediction.runs == 1 else f"{prediction.runs} earlier runs"
    match prediction.basis:
        case Basis.PROGRESS:
            return f"judged by its pace, at step {job.course.attempt_step} of {_planned(job)}"
        case Basis.NAME:
            return f"judged by {runs} of {job.user or 'nobody'}'s {job.name}"
        case Basis.USER:
            return f"judged by {runs} of {job.user or 'nobody'}'s jobs"
        case Basis.ALL:
            return f"judged by {runs} of all users"
        case Basis.NOTHING:
            return "a guess: no earlier run lasted so long"


def level_of(seed: int, draw: int, job: int) -> float:
    """The level that a job's run gets in a draw: the median in the first one, then evenly spread, the same
    whatever else is in the draw (splitmix64; Steele et al., OOPSLA 2014)."""
    if draw == 0:
        return 0.5
    mixed = (seed * 0x9E3779B97F4A7C15 + draw * 0xD1B54A32D192ED03 + job * 0x8CB92BA72F3D8DD7) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & _MASK
    return ((mixed ^ (mixed >> 31)) >> 11) / (1 << 53)


def _by_progress(state: ClusterState, job: Job, now_us: Micros) -> Prediction | None:
    course, planned = job.course, _planned(job)
    if course.state is not JobState.RUNNING or not planned or course.attempt_step < 0:
        return None
    paces = state.paces.get(job.number)
    if paces is not None and paces.ranks:
        step_us = median(pace.step_us for pace in paces.ranks.values())
    else:
        begun = next((each.step for each in course.checkpoints if each.attempt != job.attempt), 0)
        if course.attempt_step <= begun:
            return None
        step_us = (now_us - course.attempt_us) / (course.attempt_step - begun)
    left = max(1, planned - course.attempt_step)
    return Prediction(tuple(round(left * step_us * factor) for factor in _PACE_SPREAD), Basis.PROGRESS)


def _planned(job: Job) -> int:
    """0: it has not said."""
    return max(0, int(job.course.metrics.get(TOTAL_STEPS, 0)))
