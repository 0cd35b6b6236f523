"""What a metric is: a name and a real number, NaN and infinities included. Pure."""

import math
import operator
from collections.abc import Mapping
from typing import SupportsFloat, SupportsIndex

from .errors import InvalidMetric

NAMES_MAX = 100
NAME_LENGTH_MAX = 200
STEP_MAX = 2**63 - 1


def check_step(step: SupportsIndex) -> int:
    """A whole number from 0 on; numpy's and one-element integer tensors will do."""
    try:
        number = operator.index(step)
    except TypeError:
        raise InvalidMetric(
            f"step is {step!r} ({type(step).__name__}), expected a whole number",
            hint="count completed optimizer steps and pass that count",
        ) from None
    if not 0 <= number <= STEP_MAX:
        raise InvalidMetric(f"step is {number}, expected 0 to 2**63 - 1", step=number)
    return number


def check_values(values: Mapping[str, object]) -> dict[str, float]:
    """Every value as a float. Raises InvalidMetric for what is not one real number, naming it."""
    if len(values) > NAMES_MAX:
        raise InvalidMetric(
            f"{len(values)} values in one report, at most {NAMES_MAX} are taken",
            hint="report means or norms of groups, not one value per parameter",
            count=len(values),
        )
    return {_check_name(name): _number(name, value) for name, value in values.items()}


def to_json(values: Mapping[str, float]) -> dict[str, float | str]:
    """For files that any JSON reader can read: it knows no NaN and no infinities, so they are words."""
    return {name: value if math.isfinite(value) else _word(value) for name, value in values.items()}


def _word(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _check_name(name: str) -> str:
    if 0 < len(name) <= NAME_LENGTH_MAX and name.isprintable():
        return name
    raise InvalidMetric(f"metric name {name[:50]!r} is not 1 to {NAME_LENGTH_MAX} printable characters")


def _number(name: str, value: object) -> float:
    if isinstance(value, SupportsFloat):
        try:
            return float(value.item() if hasattr(value, "item") else value)
        except (
            TypeError,
            ValueError,
            RuntimeError,
            OverflowError,
        ):  # a tensor of several elements, a huge int
            pass
    raise InvalidMetric(
        f"{name}={_short(value)} ({type(value).__name__}) is not one real number",
        hint="pass a float, an int, or a tensor or array with one element; texts belong in tags or the log",
        name=name,
    )


def _short(value: object) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}..."


def remember(latest: dict[str, float], values: Mapping[str, float]) -> None:
    """The last value of each name, the oldest names forgotten: scripts may make up new ones for ever."""
    for name, value in values.items():
        latest.pop(name, None)
        latest[name] = value
    for name in list(latest)[:-NAMES_MAX]:
        del latest[name]
