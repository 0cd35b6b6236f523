"""What a sweep knows from the start: finished trials of an earlier study, as far as they fit its space.

A value is compared as the script got it: so bounds, steps, logarithms and the order of choices may differ
between the two. Pure.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...spec.dimensions import Dimension
from ...spec.errors import InvalidRequest, LimitExceeded
from ...spec.problems import escaped
from ...spec.scalars import same
from ...spec.sweep import SweepSpec
from ...studies.attributes import WHY
from .best import feasible, pareto_front
from .driving import CONSTRAINTS, PARAMS, TOLD, Earlier
from .study import NewTrial, Param, Study, Trial, TrialState

VALUES_MAX: Final = 100_000
"""Intermediate values, in one submit."""
_REASONS_MAX: Final = 10


@dataclass(slots=True)
class _Fit:
    """Which values fit, and which do not: of each name how many, and why the first did not."""

    space: Mapping[str, Dimension]
    unfit: dict[str, tuple[int, str]]

    def values(self, trial: Trial) -> dict[str, Any]:
        """Those that fit, by name, in the order of the space."""
        told = _script_values(trial)
        found: dict[str, Any] = {}
        for name, dimension in self.space.items():
            if name not in told:
                continue
            if not dimension.active(found):
                self._note(name, "not there with the other values")
            elif expected := dimension.expected(told[name]):
                self._note(name, f"expected {expected}; found {json.dumps(told[name])}")
            else:
                found[name] = told[name]
        for name in told.keys() - self.space.keys():
            self._note(name, "this search space has no such name")
        return found

    def _note(self, name: str, why: str) -> None:
        count, first = self.unfit.get(name, (0, why))
        self.unfit[name] = count + 1, first

    def reasons(self) -> str:
        parts = [f"{name} of {count} ({why})" for name, (count, why) in self.unfit.items()]
        more = f" and {len(parts) - _REASONS_MAX} other names" if len(parts) > _REASONS_MAX else ""
        return escaped(", ".join(parts[:_REASONS_MAX]) + more)


def earlier_trials(spec: SweepSpec, study: Study) -> Earlier:
    """Of `study`, what spec.warm_start asks for. Raises InvalidRequest where the two have nothing in common,
    LimitExceeded."""
    assert spec.warm_start is not None
    space = spec.space.dimensions
    _check(spec, study, space)
    fit = _Fit(space, {})
    asked = spec.warm_start
    chosen = _best(study, asked.count) if asked.trials == "best" else _finished(study)[-asked.count :]
    fitting = [(trial, values) for trial in chosen if (values := fit.values(trial))]
    new = tuple(_new(spec, space, study, trial, values) for trial, values in fitting)
    count = sum(len(one.intermediate) for one in new)
    if count > VALUES_MAX:
        raise LimitExceeded(
            f"{len(new)} trials of sweep {study.id} have {count} intermediate values",
            hint="take fewer: warm_start.count",
            limit=VALUES_MAX,
        )
    note = f"{len(new)} trials of sweep {study.id} ({study.name}) are known from the start"
    if asked.trials == "best" or len(chosen) < len(_finished(study)):
        note += f", of {len(_finished(study))} that are finished"
    if len(new) < len(chosen):
        note += f"; {len(chosen) - len(new)} have no value that fits"
    if fit.unfit:
        note += f"; values left out: {fit.reasons()}"
    return Earlier(new, note)


def _check(spec: SweepSpec, study: Study, space: Mapping[str, Dimension]) -> None:
    goals = tuple(one.goal for one in spec.objectives)
    metrics = [one.primary_metric for one in spec.objectives]
    before = [one.metric for one in study.plan.objectives] if study.plan is not None else metrics
    if goals != study.directions or metrics != before:
        theirs = ", ".join(f"{goal} {name}" for goal, name in zip(study.directions, before, strict=False))
        raise InvalidRequest(
            f"warm_start: sweep {study.id} does not seek what this one seeks, but {theirs}",
            hint="the objectives of both must be the same",
            sweep=study.id,
        )
    names = set(study.distributions)
    if not names & space.keys():
        found = ", ".join(sorted(names)[:20]) or "none yet"
        raise InvalidRequest(
            f"warm_start: sweep {study.id} shares no dimension with this search space; it has {found}",
            hint="give the dimensions that mean the same the same names",
            sweep=study.id,
        )


def _finished(study: Study) -> list[Trial]:
    """With a result: those that failed tell nothing."""
    return [one for one in study.trials if one.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def _best(study: Study, count: int) -> Sequence[Trial]:
    """In the order of their numbers: of several objectives those that no other dominates."""
    signs = [1.0 if goal == "minimize" else -1.0 for goal in study.directions]
    found = sorted(
        (tuple(sign * value for sign, value in zip(signs, trial.values, strict=True)), trial.number)
        for trial in study.trials
        if trial.state is TrialState.COMPLETE and feasible(trial)
    )
    numbers = pareto_front(found) if len(signs) > 1 else [number for _, number in found]
    return [study.trials[number] for number in sorted(numbers[:count])]


def _script_values(trial: Trial) -> Mapping[str, Any]:
    """What the script got: of a trial from Optuna's own API, what its objective was suggested."""
    if PARAMS in trial.user_attrs:
        found: Mapping[str, Any] = json.loads(trial.user_attrs[PARAMS])
        return found
    return {name: _external(param) for name, param in trial.params.items()}


def _external(param: Param) -> Any:
    read = json.loads(param.distribution)
    if read["name"] == "CategoricalDistribution":
        return read["attributes"]["choices"][int(param.value)]
    return int(param.value) if read["name"] == "IntDistribution" else param.value


def _new(
    spec: SweepSpec, space: Mapping[str, Dimension], study: Study, trial: Trial, values: Mapping[str, Any]
) -> NewTrial:
    params = {name: _param(space[name], value) for name, value in values.items()}
    told = dict(zip((one.primary_metric for one in spec.objectives), trial.values, strict=False))
    attrs = {PARAMS: values, TOLD: told, WHY: f"trial {trial.number} of sweep {study.id}"}
    same_constraints = study.plan is not None and study.plan.constraints == tuple(spec.constraints)
    bounds = trial.system_attrs.get(CONSTRAINTS) if same_constraints else None
    return NewTrial(
        trial.state,
        params,
        trial.values,
        dict(trial.intermediate) if spec.early_termination is not None else {},
        {name: json.dumps(value) for name, value in attrs.items()},
        {CONSTRAINTS: bounds} if bounds else {},
        trial.started_us,
        trial.finished_us,
    )


def _param(dimension: Dimension, value: Any) -> Param:
    """As Optuna keeps it."""
    distribution, raw = dimension.distribution(), dimension.raw(value)
    if distribution["name"] == "CategoricalDistribution":
        choices: Iterator[int] = (
            at for at, one in enumerate(distribution["attributes"]["choices"]) if same(one, raw)
        )
        raw = next(choices)
    assert isinstance(raw, int | float)
    return Param(float(raw), json.dumps(distribution))
