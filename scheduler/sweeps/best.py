"""Which trials of a sweep are best: one, or of several objectives those that no other dominates."""

import json
from collections.abc import Sequence

from .driving import CONSTRAINTS
from .study import Study, Trial, TrialState


def feasible(trial: Trial) -> bool:
    """All constraints that were told for it hold: none is above 0."""
    return all(value <= 0 for value in json.loads(trial.system_attrs.get(CONSTRAINTS, "[]")))


def best_trials(study: Study, most: int) -> list[Trial]:
    """Complete and feasible ones of its own, the best by the first objective first; of equal ones the
    earliest."""
    signs = [1.0 if goal == "minimize" else -1.0 for goal in study.directions]
    found = [
        (tuple(sign * value for sign, value in zip(signs, trial.values, strict=True)), trial.number)
        for trial in study.own_trials
        if trial.state is TrialState.COMPLETE and feasible(trial)
    ]
    if len(signs) == 1:
        return [study.trials[number] for _, number in sorted(found)[: min(most, 1)]]
    return [study.trials[number] for number in pareto_front(sorted(found))[:most]]


def pareto_front(ascending: Sequence[tuple[tuple[float, ...], int]]) -> list[int]:
    """Of points to be minimized, in ascending order, the numbers of those that no other dominates: a point
    that does comes before it, so each is compared with the front so far."""
    front: list[tuple[tuple[float, ...], int]] = []
    for point, number in ascending:
        if not any(_dominates(other, point) for other, _ in front):
            front.append((point, number))
    return [number for _, number in front]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
