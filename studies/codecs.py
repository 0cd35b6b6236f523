"""Optuna's objects as messages and back. Times are microseconds since 1970 there, naive local times here."""

import copy
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.study._frozen import FrozenStudy
from optuna.study._study_direction import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ..proto.generated import studies_pb2

_STATES: Final = {state: studies_pb2.TrialState.Value(state.name) for state in TrialState}
_STATES_BACK: Final = {value: state for state, value in _STATES.items()}

distribution_of: Final = lru_cache(maxsize=4096)(json_to_distribution)
"""Shared: nobody changes a distribution."""


def state_to(state: TrialState) -> Any:
    return _STATES[state]


def directions_to(directions: Iterable[StudyDirection]) -> list[str]:
    return [direction.name.lower() for direction in directions]


def study_from(view: Any) -> FrozenStudy:
    return FrozenStudy(
        view.name,
        None,
        attrs_from(view.user_attrs),
        attrs_from(view.system_attrs),
        view.study,
        directions=[StudyDirection[direction.upper()] for direction in view.directions],
    )


def attr_to(key: str, value: object) -> studies_pb2.Attr:
    """Raises TypeError on what JSON cannot hold."""
    return studies_pb2.Attr(key=key, value=json.dumps(value))


def attrs_from(attrs: Iterable[studies_pb2.Attr]) -> dict[str, Any]:
    return {attr.key: json.loads(attr.value) for attr in attrs}


def param_to(name: str, internal: float, distribution: BaseDistribution) -> studies_pb2.Param:
    return studies_pb2.Param(name=name, value=internal, distribution=distribution_to_json(distribution))


def trial_to(trial: FrozenTrial) -> studies_pb2.NewTrial:
    """A template: its number and id do not count."""
    return studies_pb2.NewTrial(
        state=state_to(trial.state),
        params=[
            param_to(name, trial.distributions[name].to_internal_repr(value), trial.distributions[name])
            for name, value in trial.params.items()
        ],
        values=trial.values or (),
        steps=trial.intermediate_values.keys(),
        intermediate=trial.intermediate_values.values(),
        user_attrs=[attr_to(key, value) for key, value in trial.user_attrs.items()],
        system_attrs=[attr_to(key, value) for key, value in trial.system_attrs.items()],
        started_us=time_to(trial.datetime_start),
        finished_us=time_to(trial.datetime_complete),
    )


def trial_from(
    view: studies_pb2.TrialView, distributions: Sequence[str], trial_id: int, before: FrozenTrial | None
) -> FrozenTrial:
    """A new object: one that was handed out never changes."""
    newer = dict(zip(view.steps, view.intermediate, strict=True))
    intermediate = {**before.intermediate_values, **newer} if before is not None and newer else newer
    if not view.HasField("record"):
        assert before is not None, "values of a trial that was never told"
        trial = copy.copy(before)
        trial.intermediate_values = intermediate
        return trial
    record = view.record
    params, found = {}, {}
    for param in record.params:
        distribution = distribution_of(distributions[param.distribution])
        params[param.name] = distribution.to_external_repr(param.value)
        found[param.name] = distribution
    return FrozenTrial(
        view.trial,
        _STATES_BACK[record.state],
        None,
        time_from(record.started_us) if record.HasField("started_us") else None,
        time_from(record.finished_us) if record.HasField("finished_us") else None,
        params,
        found,
        attrs_from(record.user_attrs),
        attrs_from(record.system_attrs),
        intermediate if before is None or newer else before.intermediate_values,
        trial_id,
        values=list(record.values) or None,
    )


def time_to(time: datetime | None) -> int | None:
    return None if time is None else round(time.timestamp() * 1e6)


def time_from(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us / 1e6)
