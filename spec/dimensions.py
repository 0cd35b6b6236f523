"""The kinds of a search space's dimensions: what a sampler draws from, and what the script gets for it.

The raw value is what the sampler sees. Here are those for which it is the value itself: Azure's `choice` and
`randint`, and two of our own with plain bounds, `int` and `float`. The others are in real_dimensions.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from math import isclose
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from .fields import ENTRIES_MAX, Count, Identifier, Number, refusal
from .parts import Model
from .problems import shown
from .scalars import SCALAR_SCHEMA, WHOLE_MAX, Scalar, ScalarValue, as_text, is_number, number, same

_Scalars = Annotated[
    tuple[ScalarValue, ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value]),
    Field(max_length=ENTRIES_MAX),
    WithJsonSchema({"anyOf": [SCALAR_SCHEMA, {"type": "array", "items": SCALAR_SCHEMA}]}),
]
STEPS_MAX: Final = 10_000_000
"""To which Optuna tells the steps of floats apart, from 0 on."""
Whole = Annotated[Count, Field(ge=-WHOLE_MAX, le=WHOLE_MAX)]


class Dimension(Model):
    """What all kinds have in common."""

    when: dict[Identifier, _Scalars] = Field(default={}, max_length=64)
    """Only where another dimension has this value, or one of a list of values."""

    def active(self, values: Mapping[str, Scalar]) -> bool:
        """True where the values of the dimensions that it depends on ask for it."""
        return all(
            name in values and any(same(values[name], wanted) for wanted in allowed)
            for name, allowed in self.when.items()
        )

    def distribution(self) -> dict[str, Any]:
        """What its raw values are drawn from, as optuna.distributions.json_to_distribution reads it."""
        raise NotImplementedError

    def value(self, raw: Scalar) -> Scalar:
        """What the script gets for a raw value."""
        return raw

    def raw(self, value: Scalar) -> Scalar:
        """The way back: a raw value for which the script gets `value`, which was checked."""
        return value

    def expected(self, value: Scalar) -> str:
        """What had to stand instead of a value that it cannot have; empty where it can."""
        raise NotImplementedError

    def points(self) -> Sequence[Scalar] | None:
        """All raw values, ascending or as given; None where there is no end of them."""
        return None

    def longest(self) -> Scalar:
        """A value that takes as much room in a command as any."""
        return -2.2250738585072014e-308

    def scaled(self, factor: float) -> Self:
        """The same with its exponents so many times as large; itself where it has none."""
        return self

    def _with(self, **changes: float) -> Self:
        return type(self).model_validate(self.model_dump() | changes)


class Choice(Dimension):
    """One of several values, in no order."""

    type: Literal["choice"]
    """`choice`: one of several values, in no order."""
    values: Annotated[tuple[ScalarValue, ...], Field(max_length=ENTRIES_MAX)]
    """The values: texts, numbers, true, false, null."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        if not self.values:
            raise refusal("expected a list of values; found an empty one", "values")
        for index, value in enumerate(self.values):
            if value in self.values[:index]:
                why = f"expected different values; {shown(value)} is there before (true is 1 to a sampler)"
                raise refusal(
                    why if isinstance(value, bool | int) else why.partition(" (")[0], "values", index
                )
        return self

    def distribution(self) -> dict[str, Any]:
        return optuna_distribution("Categorical", choices=list(self.values))

    def expected(self, value: Scalar) -> str:
        found = any(same(value, one) for one in self.values)
        return "" if found else f"one of {', '.join(shown(one) for one in self.values[:20])}"

    def points(self) -> Sequence[Scalar]:
        return self.values

    def longest(self) -> Scalar:
        longest: Scalar = max(self.values, key=lambda value: len(as_text(value).encode()))
        return longest


class _Whole(Dimension):
    """Whole numbers from a lowest to a highest one."""

    def _range(self) -> range:
        raise NotImplementedError

    def expected(self, value: Scalar) -> str:
        found = self._range()
        if is_number(value) and value == int(value) and int(value) in found:
            return ""
        steps = f" in steps of {found.step}" if found.step > 1 else ""
        return f"a whole number from {found[0]} to {found[-1]}{steps}"

    def value(self, raw: Scalar) -> Scalar:
        return int(number(raw))

    def points(self) -> Sequence[Scalar]:
        return self._range()


class RandInt(_Whole):
    """A whole number from 0 to upper - 1."""

    type: Literal["randint"]
    """`randint`: a whole number from 0 to upper - 1."""
    upper: Annotated[Count, Field(ge=1, le=WHOLE_MAX)]
    """The first that it never is."""

    def distribution(self) -> dict[str, Any]:
        return optuna_distribution("Int", low=0, high=self.upper - 1, log=False, step=1)

    def _range(self) -> range:
        return range(self.upper)


class IntRange(_Whole):
    """A whole number between plain bounds."""

    type: Literal["int"]
    """`int`: a whole number from low to high."""
    low: Whole
    """The lowest."""
    high: Whole
    """The highest."""
    step: Annotated[Count, Field(ge=1, le=WHOLE_MAX)] = 1
    """From one to the next."""
    log: bool = Field(default=False, strict=True)
    """On a log scale: as much between 1 and 10 as between 10 and 100."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        ordered(self.low, self.high, "low", "high")
        if self.high - self.low > WHOLE_MAX:
            most = self.low + WHOLE_MAX
            raise refusal(
                f"expected at most {most}, for floats to tell them apart; found {self.high}", "high"
            )
        _log_bounds(self.low, self.log, step=self.step > 1)
        return self

    def distribution(self) -> dict[str, Any]:
        return optuna_distribution("Int", low=self.low, high=self._range()[-1], log=self.log, step=self.step)

    def _range(self) -> range:
        return range(self.low, self.high + 1, self.step)


class FloatRange(Dimension):
    """A number between plain bounds."""

    type: Literal["float"]
    """`float`: a number from low to high."""
    low: Number
    """The lowest."""
    high: Number
    """The highest."""
    step: Annotated[Number | None, Field(gt=0)] = None
    """From one to the next, beginning with low; absent: any number between."""
    log: bool = Field(default=False, strict=True)
    """On a log scale: as much between 0.001 and 0.01 as between 0.01 and 0.1."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        ordered(self.low, self.high, "low", "high")
        _log_bounds(self.low, self.log, step=self.step is not None)
        finite(self.low, self.high)
        countable(max(abs(self.low), abs(self.high)), self.step, "step", STEPS_MAX)
        return self

    def distribution(self) -> dict[str, Any]:
        high = highest(self.low, self._last, self.step) if self.step else self.high
        return optuna_distribution("Float", low=self.low, high=high, log=self.log, step=self.step)

    def value(self, raw: Scalar) -> Scalar:
        return self._at(nearest_count(number(raw) - self.low, self.step)) if self.step else number(raw)

    def raw(self, value: Scalar) -> Scalar:
        return min(max(number(self.value(value)), self.low), self._high)

    def expected(self, value: Scalar) -> str:
        expected = between(value, self.low, self._high)
        if not expected and self.step and not isclose(number(self.value(value)), number(value)):
            return f"{self.low:g} and a multiple of {self.step:g} more"
        return expected

    def points(self) -> Sequence[Scalar] | None:
        if self.low == self.high:
            return (self.low,)
        return Points(self._at, 0, self._last) if self.step else None

    @property
    def _high(self) -> float:
        return self._at(self._last) if self.step else self.high

    @property
    def _last(self) -> int:
        return int((Decimal(repr(self.high)) - Decimal(repr(self.low))) // Decimal(repr(self.step)))

    def _at(self, index: int) -> float:
        return stepped(self.low, index, self.step or 0.0)


class Points(Sequence[Scalar]):
    """Raw values by their numbers, made when they are asked for."""

    def __init__(self, make: Callable[[int], Scalar], first: int, last: int) -> None:
        self._make = make
        self._numbers = range(first, last + 1)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        found = self._numbers[index]
        return self._make(found) if isinstance(found, int) else [self._make(one) for one in found]


def optuna_distribution(kind: str, **attributes: Any) -> dict[str, Any]:
    return {"name": f"{kind}Distribution", "attributes": attributes}


def stepped(low: float, steps: int, step: float) -> float:
    """So many steps above `low`."""
    return float(Decimal(repr(low)) + steps * Decimal(repr(step)))


def highest(low: float, steps: int, step: float) -> float:
    """The same as a bound from which Optuna counts as many steps; it then takes `stepped` for it."""
    found = stepped(low, steps, step)
    too_low = Decimal(repr(found)) < Decimal(repr(low)) + steps * Decimal(repr(step))
    return math.nextafter(found, math.inf) if too_low else found


def between(value: Scalar, low: float, high: float) -> str:
    """Empty where it is, or so near that only floats tell it from one that is."""
    near = is_number(value) and (low <= value <= high or isclose(value, low) or isclose(value, high))
    return "" if near else f"a number from {low:g} to {high:g}"


def ordered(low: float, high: float, low_key: str, high_key: str) -> None:
    if low > high:
        raise refusal(f"expected at least {low_key} ({low:g}); found {high:g}", high_key)


def _log_bounds(low: float, log: bool, *, step: bool) -> None:
    if log and step:
        raise refusal("expected no step with log: true", "step")
    if log and low <= 0:
        raise refusal(f"expected more than 0 with log: true; found {low:g}", "low")


def finite(low: float, high: float) -> None:
    if not math.isfinite(high - low):
        raise refusal("the bounds are too far from each other for floats")


def countable(reach: float, q: float | None, key: str, most: int) -> None:
    if q and reach / q > most:
        raise refusal(f"expected at least {reach / most:.2g}, for floats to count them; found {q:g}", key)


def nearest_count(real: float, q: float) -> int:
    """How many times q; of two that are equally near the even one, as numpy rounds for Azure."""
    return round(Decimal(repr(real)) / Decimal(repr(q)))


def multiple(count: int, q: float) -> int | float:
    return count * int(q) if q.is_integer() else float(count * Decimal(repr(q)))
