"""The study as the sampler process holds it: Optuna's, in memory, changed as the scheduler tells.

Only what the sampler itself sets (params, attributes) goes back; whether a trial runs, and how it ended, is
the scheduler's word.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.pruners import NopPruner, _filter_study
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ...spec.sampling import BruteForceSampling, GridSampling
from ...spec.sweep import SweepSpec
from ...spec.sweep_reading import parse_canonical_sweep
from ...studies.attributes import FIXED
from ...studies.pruners import pruner_of
from ...studies.samplers import sampler_of
from .talk import (
    Answer,
    Ask,
    Begin,
    Exhausted,
    Known,
    Noted,
    Question,
    Report,
    Suggested,
    Tell,
    Verdict,
    Wait,
)

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Mirror:
    """`answer` may be called once `begin` has made it. Not for several threads."""

    def __init__(self, spec: SweepSpec, name: str) -> None:
        self._spec = spec
        self._storage = InMemoryStorage()
        directions = [StudyDirection[one.goal.upper()] for one in spec.objectives]
        self._id = self._storage.create_new_study(directions, name)
        self._study = Study(name, self._storage, pruner=pruner_of(spec) or NopPruner())
        # Samplers may call study.stop(), which is for those who optimize in a loop.
        self._study._thread_local.in_optimize_loop = True
        self._policy = spec.early_termination.type if spec.early_termination is not None else ""
        self._dimensions = spec.space.dimensions
        self._distributions = {
            name: json_to_distribution(json.dumps(one.distribution()))
            for name, one in self._dimensions.items()
        }
        grid = isinstance(spec.sampling_algorithm, GridSampling)
        self._grid = spec.space.grid() if grid else None

    @classmethod
    def begin(cls, asked: Begin) -> tuple[Answer, Self]:
        """Raises ValueError for a study that is not one of this document."""
        mirror = cls(parse_canonical_sweep(asked.document), asked.name)
        for key, text in asked.study_attrs.items():
            mirror._storage.set_study_system_attr(mirror._id, key, json.loads(text))
        for known in asked.trials:
            mirror._add(known)
        return Noted(), mirror

    def answer(self, asked: Question) -> Answer:
        self._study._thread_local.cached_all_trials = None  # as ask() and tell() begin
        match asked:
            case Ask(number):
                return self._ask(number)
            case Wait(trial):
                self._add(trial)
                return Noted()
            case Tell(trial):
                self._tell(trial)
                return Noted()
            case Report(number, values):
                return self._report(number, values)
            case Begin():
                raise AssertionError("begun twice")

    def _add(self, known: Known) -> None:
        count = self._storage.get_n_trials(self._id)
        if known.number != count:
            raise ValueError(f"trial {known.number} does not follow {count - 1}")
        self._storage.create_new_trial(self._id, _frozen(known))

    def _ask(self, number: int) -> Answer:
        fresh = number == self._storage.get_n_trials(self._id)
        point = self._next_point() if fresh and self._grid is not None else None
        if fresh and self._grid is not None and point is None:
            return Exhausted()
        trial_id = self._taken(number)
        if point is not None:
            self._storage.set_trial_system_attr(trial_id, FIXED, point)
        self._study.sampler = sampler_of(self._spec, number)
        attrs = self._storage.get_study_system_attrs(self._id)
        trial = Trial(self._study, trial_id)
        values: dict[str, Any] = {}
        for name, dimension in self._dimensions.items():
            if dimension.active(values):
                values[name] = dimension.value(trial._suggest(name, self._distributions[name]))
        made = self._storage.get_trial(trial_id)
        brute = isinstance(self._spec.sampling_algorithm, BruteForceSampling)
        if brute and fresh and made.params in self._given(but=number):
            return Exhausted()
        return Suggested(
            number,
            {
                name: (distribution.to_internal_repr(made.params[name]), distribution_to_json(distribution))
                for name, distribution in made.distributions.items()
            },
            values,
            _texts(made.system_attrs),
            _texts(_changed(attrs, self._storage.get_study_system_attrs(self._id))),
        )

    def _next_point(self) -> dict[str, Any] | None:
        """Of the grid, that no trial has been given."""
        assert self._grid is not None
        given = self._given(but=None)
        return next((point for point in self._grid if point not in given), None)

    def _given(self, but: int | None) -> list[dict[str, Any]]:
        trials = self._storage.get_all_trials(self._id, deepcopy=False)
        return [trial.params for trial in trials if trial.number != but]

    def _taken(self, number: int) -> int:
        """The waiting trial of that number, now running, or a new one."""
        count = self._storage.get_n_trials(self._id)
        if number == count:
            return self._storage.create_new_trial(self._id)
        trial_id = self._trial_id(number)
        if not self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
            raise ValueError(f"trial {number} does not wait")
        return trial_id

    def _tell(self, told: Known) -> None:
        trial_id = self._trial_id(told.number)
        for key, text in told.user_attrs.items():
            self._storage.set_trial_user_attr(trial_id, key, json.loads(text))
        for key, text in told.system_attrs.items():
            self._storage.set_trial_system_attr(trial_id, key, json.loads(text))
        for step, value in told.intermediate.items():
            self._storage.set_trial_intermediate_value(trial_id, step, value)
        state = TrialState[told.state]
        values: Sequence[float] | None = told.values or None
        trial = self._storage.get_trial(trial_id)
        self._study.sampler = sampler_of(self._spec, told.number)
        self._study.sampler.after_trial(_filter_study(self._study, trial), trial, state, values)
        self._storage.set_trial_state_values(trial_id, state, values)

    def _report(self, number: int, values: Mapping[int, float]) -> Verdict:
        """After each step it is asked anew: a policy may look at every n-th alone."""
        trial_id = self._trial_id(number)
        before = self._storage.get_trial_system_attrs(trial_id)
        why = ""
        for step, value in values.items():
            self._storage.set_trial_intermediate_value(trial_id, step, value)
            trial = self._storage.get_trial(trial_id)
            if not why and self._study.pruner.prune(self._study, trial):
                why = f"{self._policy} at step {step}, with {value:g}"
        return Verdict(number, why, _texts(_changed(before, self._storage.get_trial_system_attrs(trial_id))))

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def _frozen(known: Known) -> FrozenTrial:
    distributions = {name: json_to_distribution(text) for name, (_, text) in known.params.items()}
    state = TrialState[known.state]
    system = {key: json.loads(text) for key, text in known.system_attrs.items()}
    if state is TrialState.WAITING:  # from outside: nothing else of it is the sampler's own
        system = {key: value for key, value in system.items() if key == FIXED}
    return create_trial(
        state=state,
        values=known.values or None,
        params={
            name: distributions[name].to_external_repr(value) for name, (value, _) in known.params.items()
        },
        distributions=distributions,
        user_attrs={key: json.loads(text) for key, text in known.user_attrs.items()},
        system_attrs=system,
        intermediate_values=known.intermediate,
    )


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def _texts(attrs: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in attrs.items()}
