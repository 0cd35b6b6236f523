"""What is asked of studies, checked at the door: names, sizes, counts, and that JSON is JSON."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from ...proto.generated import studies_pb2
from ...proto.limits import (
    ATTRS_BYTES_MAX,
    ATTRS_MAX,
    DISTRIBUTION_BYTES_MAX,
    OBJECTIVES_MAX,
    OPS_MAX,
    STUDY_NAME_CHARACTERS_MAX,
    TRIAL_VALUES_MAX,
)
from ...spec.errors import InvalidRequest, LimitExceeded
from ...spec.ids import Micros
from ..sweeps import ops
from ..sweeps.study import NewTrial, Param, TrialState
from .checks import check_key

DIRECTIONS: Final = ("minimize", "maximize")


def ops_of(request: studies_pb2.WriteStudyRequest) -> ops.StudyOps:
    """Raises InvalidRequest, LimitExceeded."""
    if not 1 <= len(request.ops) <= OPS_MAX:
        raise InvalidRequest(f"{len(request.ops)} ops in one call; expected 1 to {OPS_MAX}")
    return ops.StudyOps(request.study, tuple(_op_of(op) for op in request.ops))


def check_study(name: str, directions: Sequence[str]) -> None:
    """Of a new one. Raises InvalidRequest."""
    _check_name(name, "a study's name", empty=True)
    if not 1 <= len(directions) <= OBJECTIVES_MAX or not set(directions) <= set(DIRECTIONS):
        raise InvalidRequest(
            f"the directions are {', '.join(directions)[:200] or 'none'}",
            hint=f"expected 1 to {OBJECTIVES_MAX} of {' or '.join(DIRECTIONS)}",
        )


def _op_of(message: studies_pb2.StudyOp) -> ops.Op:
    kind = message.WhichOneof("op")
    if kind is None:
        raise InvalidRequest("an op says nothing that this scheduler knows", hint="is the client newer?")
    return _READERS[kind](getattr(message, kind))


def _study_attr(message: studies_pb2.SetStudyAttr) -> ops.Op:
    return ops.SetStudyAttr(*_attr_of(message.attr), message.system)


def _create_trial(message: studies_pb2.CreateTrial) -> ops.Op:
    check_key(message.key)
    return ops.CreateTrial(_new_trial(message.trial), message.key)


def _param(message: studies_pb2.SetTrialParam) -> ops.Op:
    return ops.SetTrialParam(message.trial, *_param_of(message.param))


def _state(message: studies_pb2.SetTrialState) -> ops.Op:
    check_key(message.claim)
    values = tuple(message.values.values) if message.HasField("values") else None
    return ops.SetTrialState(message.trial, _state_of(message.state), values, message.claim)


def _intermediate(message: studies_pb2.SetIntermediate) -> ops.Op:
    return ops.SetIntermediate(message.trial, message.step, message.value)


def _trial_attr(message: studies_pb2.SetTrialAttr) -> ops.Op:
    return ops.SetTrialAttr(message.trial, *_attr_of(message.attr), message.system)


def _take(_: studies_pb2.TakeTrial) -> ops.Op:
    return ops.TakeTrial()


_READERS: Final[dict[str, Callable[[Any], ops.Op]]] = {
    "study_attr": _study_attr,
    "create_trial": _create_trial,
    "param": _param,
    "state": _state,
    "intermediate": _intermediate,
    "trial_attr": _trial_attr,
    "take_trial": _take,
}


def _new_trial(message: studies_pb2.NewTrial) -> NewTrial:
    if len(message.steps) != len(message.intermediate) or len(message.steps) > TRIAL_VALUES_MAX:
        raise InvalidRequest(
            f"{len(message.intermediate)} intermediate values for {len(message.steps)} steps",
            hint=f"expected as many, and at most {TRIAL_VALUES_MAX}",
        )
    if max(len(message.params), len(message.user_attrs), len(message.system_attrs)) > ATTRS_MAX:
        raise LimitExceeded(f"a trial has at most {ATTRS_MAX} params, and attributes of a kind")
    params = dict(map(_param_of, message.params))
    user_attrs, system_attrs = (
        dict(map(_attr_of, message.user_attrs)),
        dict(map(_attr_of, message.system_attrs)),
    )
    _check_bytes((*user_attrs.items(), *system_attrs.items()), params)
    return NewTrial(
        _state_of(message.state),
        params,
        tuple(message.values),
        dict(zip(message.steps, message.intermediate, strict=True)),
        user_attrs,
        system_attrs,
        Micros(message.started_us) if message.HasField("started_us") else None,
        Micros(message.finished_us) if message.HasField("finished_us") else None,
    )


def _check_bytes(attrs: Iterable[tuple[str, str]], params: dict[str, Param]) -> None:
    size = sum(len(key) + len(text) for key, text in attrs)
    size += sum(len(name) + len(param.distribution) for name, param in params.items())
    if size > ATTRS_BYTES_MAX:
        raise LimitExceeded(
            f"a trial with {size} characters of attributes and distributions",
            hint="keep large things in files, and their names here",
            limit=ATTRS_BYTES_MAX,
        )


def _state_of(state: int) -> TrialState:
    try:
        return TrialState(studies_pb2.TrialState.Name(state))  # type: ignore[arg-type]
    except ValueError:
        raise InvalidRequest(f"{state} is no state of a trial") from None


def _attr_of(message: studies_pb2.Attr) -> tuple[str, str]:
    _check_name(message.key, "an attribute's key")
    _read_json(message.value, f"attribute {message.key!r}", ATTRS_BYTES_MAX)
    return message.key, message.value


def _param_of(message: studies_pb2.Param) -> tuple[str, Param]:
    _check_name(message.name, "a param's name")
    _check_distribution(message.distribution)
    return message.name, Param(message.value, message.distribution)


@lru_cache(maxsize=1024)
def _check_distribution(text: str) -> None:
    read = _read_json(text, "a distribution", DISTRIBUTION_BYTES_MAX)
    if not (
        isinstance(read, dict)
        and isinstance(read.get("name"), str)
        and isinstance(read.get("attributes"), dict)
    ):
        raise InvalidRequest(
            f"{text[:200]!r} is no distribution",
            hint='expected what optuna writes: {"name": ..., "attributes": {...}}',
        )


def _read_json(text: str, what: str, bytes_max: int) -> Any:
    if len(text) > bytes_max:
        raise LimitExceeded(
            f"{what} has {len(text)} characters; at most {bytes_max} are taken",
            hint="keep large things in files, and their names here",
            limit=bytes_max,
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is no JSON: {error}") from None


def _check_name(name: str, what: str, *, empty: bool = False) -> None:
    """Any text of a line: no control characters."""
    if not (name or empty) or len(name) > STUDY_NAME_CHARACTERS_MAX or _has_controls(name):
        raise InvalidRequest(
            f"{name[:80]!r} is not {what}",
            hint=f"expected at most {STUDY_NAME_CHARACTERS_MAX} characters, without control characters",
        )


def _has_controls(text: str) -> bool:
    return not text.isprintable() and any(ord(one) < 32 or 127 <= ord(one) < 160 for one in text)
