"""Azure's dimensions of real numbers: uniform, log and normal, each also quantised; the union of all kinds.

The log kinds are drawn on a log scale between the exponentials of their bounds, so that plots show the value
itself. The normal kinds are drawn as a quantile. Quantised values are whole multiples of q, without the noise
of floats, and whole numbers where q is one.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import Field, model_validator

from .by_type import ByType
from .dimensions import (
    STEPS_MAX,
    Choice,
    Dimension,
    FloatRange,
    IntRange,
    Points,
    RandInt,
    between,
    countable,
    finite,
    highest,
    multiple,
    nearest_count,
    optuna_distribution,
    ordered,
    stepped,
)
from .fields import Number, refusal
from .scalars import WHOLE_MAX, Scalar, number

EXPONENT_MAX: Final = 700.0
"""Beyond it the exponential leaves the range of floats."""
QUANTILE_MIN: Final = 1e-9
_SIGMAS_MAX: Final = -NormalDist().inv_cdf(QUANTILE_MIN)


class _Real(Dimension):
    """A number that may be quantised. Subclasses say how a raw value and the number before it is quantised
    follow from each other."""

    def _ends(self) -> tuple[float, float]:
        """The lowest and the highest number, before it is quantised."""
        raise NotImplementedError

    def _number(self, raw: float) -> float:
        return raw

    def _raw(self, real: float) -> float:
        return real

    def _quantum(self) -> float | None:
        return None

    def value(self, raw: Scalar) -> Scalar:
        q, real = self._quantum(), self._number(number(raw))
        return multiple(nearest_count(real, q), q) if q else real

    def raw(self, value: Scalar) -> Scalar:
        low, high = self._ends()
        return self._raw(min(max(number(value), low), high))

    def expected(self, value: Scalar) -> str:
        q, (low, high) = self._quantum(), self._ends()
        if not q:
            return between(value, low, high)
        first, last = nearest_count(low, q), nearest_count(high, q)
        expected = between(value, multiple(first, q), multiple(last, q))
        if not expected and not math.isclose(multiple(nearest_count(number(value), q), q), number(value)):
            return f"a multiple of {q:g}"
        return expected

    def points(self) -> Sequence[Scalar] | None:
        q, (low, high) = self._quantum(), self._ends()
        if q:
            return Points(lambda k: self.raw(multiple(k, q)), nearest_count(low, q), nearest_count(high, q))
        return (self._raw(low),) if low == high else None


class _Between(_Real):
    """Between two bounds."""

    min_value: Number
    """The lowest."""
    max_value: Number
    """The highest."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        ordered(self.min_value, self.max_value, "min_value", "max_value")
        finite(self.min_value, self.max_value)
        countable(max(abs(self.min_value), abs(self.max_value)), self._quantum(), "q", STEPS_MAX)
        return self

    def _ends(self) -> tuple[float, float]:
        return self.min_value, self.max_value

    def raw(self, value: Scalar) -> Scalar:
        """Samplers see the multiples themselves, counted from the lowest one."""
        q = self._quantum()
        if not q:
            return super().raw(value)
        low, steps = self._steps(q)
        return min(max(multiple(nearest_count(number(value), q), q), low), stepped(low, steps, q))

    def distribution(self) -> dict[str, Any]:
        (low, high), q = self._ends(), self._quantum()
        if q:
            low, steps = self._steps(q)
            high = highest(low, steps, q)
        return optuna_distribution("Float", low=low, high=high, log=False, step=q)

    def _steps(self, q: float) -> tuple[float, int]:
        """The lowest multiple, and how many there are above it."""
        first, last = (nearest_count(end, q) for end in self._ends())
        return multiple(first, q), last - first


class Uniform(_Between):
    """A number between two bounds."""

    type: Literal["uniform"]
    """`uniform`: a number from min_value to max_value."""


class QUniform(_Between):
    """A multiple of q between two bounds."""

    type: Literal["quniform"]
    """`quniform`: round(uniform(min_value, max_value) / q) * q."""
    q: Annotated[Number, Field(gt=0)]
    """The value is a multiple of it, and a whole number where this is one."""

    def _quantum(self) -> float:
        return self.q


class _LogBetween(_Real):
    """Between the exponentials of two bounds, on a log scale."""

    min_value: Annotated[Number, Field(ge=-EXPONENT_MAX, le=EXPONENT_MAX)]
    """The natural logarithm of the lowest."""
    max_value: Annotated[Number, Field(ge=-EXPONENT_MAX, le=EXPONENT_MAX)]
    """The natural logarithm of the highest."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        ordered(self.min_value, self.max_value, "min_value", "max_value")
        countable(math.exp(self.max_value), self._quantum(), "q", WHOLE_MAX)
        return self

    def _ends(self) -> tuple[float, float]:
        return math.exp(self.min_value), math.exp(self.max_value)

    def distribution(self) -> dict[str, Any]:
        low, high = self._ends()
        return optuna_distribution("Float", low=low, high=high, log=True, step=None)

    def scaled(self, factor: float) -> Self:
        return self._with(min_value=self.min_value * factor, max_value=self.max_value * factor)


class LogUniform(_LogBetween):
    """A number on a log scale."""

    type: Literal["loguniform"]
    """`loguniform`: exp(uniform(min_value, max_value))."""


class QLogUniform(_LogBetween):
    """A multiple of q on a log scale."""

    type: Literal["qloguniform"]
    """`qloguniform`: round(exp(uniform(min_value, max_value)) / q) * q."""
    q: Annotated[Number, Field(gt=0)]
    """The value is a multiple of it, and a whole number where this is one."""

    def _quantum(self) -> float:
        return self.q


class _Bell(_Real):
    """Drawn as a quantile of a normal distribution, but for a billionth at either end."""

    mu: Annotated[Number, Field(ge=-1e300, le=1e300)]
    """The mean."""
    sigma: Annotated[Number, Field(gt=0, le=1e299)]
    """The standard deviation."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        countable(max(map(abs, self._ends())), self._quantum(), "q", WHOLE_MAX)
        return self

    def _ends(self) -> tuple[float, float]:
        return self._number(QUANTILE_MIN), self._number(1 - QUANTILE_MIN)

    def _number(self, raw: float) -> float:
        return NormalDist(self.mu, self.sigma).inv_cdf(raw)

    def _raw(self, real: float) -> float:
        return min(max(NormalDist(self.mu, self.sigma).cdf(real), QUANTILE_MIN), 1 - QUANTILE_MIN)

    def points(self) -> None:
        """Its tails have no end, whatever they are rounded to."""

    def distribution(self) -> dict[str, Any]:
        return optuna_distribution("Float", low=QUANTILE_MIN, high=1 - QUANTILE_MIN, log=False, step=None)


class Normal(_Bell):
    """A number near a mean."""

    type: Literal["normal"]
    """`normal`: normal(mu, sigma), at most six sigma from the mean."""


class QNormal(_Bell):
    """A multiple of q near a mean."""

    type: Literal["qnormal"]
    """`qnormal`: round(normal(mu, sigma) / q) * q."""
    q: Annotated[Number, Field(gt=0)]
    """The value is a multiple of it, and a whole number where this is one."""

    def _quantum(self) -> float:
        return self.q


class _LogBell(_Bell):
    """The exponential of a normal distribution."""

    mu: Annotated[Number, Field(ge=-EXPONENT_MAX, le=EXPONENT_MAX)]
    """The mean of the natural logarithm."""
    sigma: Annotated[Number, Field(gt=0, le=EXPONENT_MAX)]
    """The standard deviation of the natural logarithm."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        reach = abs(self.mu) + _SIGMAS_MAX * self.sigma
        if reach > EXPONENT_MAX:
            why = f"expected mu and six sigma together at most {EXPONENT_MAX:g}, for floats to hold the value"
            raise refusal(f"{why}; found {reach:g}", "sigma")
        countable(self._ends()[1], self._quantum(), "q", WHOLE_MAX)
        return self

    def _number(self, raw: float) -> float:
        return math.exp(super()._number(raw))

    def _raw(self, real: float) -> float:
        return super()._raw(math.log(real))

    def scaled(self, factor: float) -> Self:
        return self._with(mu=self.mu * factor, sigma=self.sigma * factor)


class LogNormal(_LogBell):
    """A positive number whose logarithm is near a mean."""

    type: Literal["lognormal"]
    """`lognormal`: exp(normal(mu, sigma))."""


class QLogNormal(_LogBell):
    """A multiple of q whose logarithm is near a mean."""

    type: Literal["qlognormal"]
    """`qlognormal`: round(exp(normal(mu, sigma)) / q) * q."""
    q: Annotated[Number, Field(gt=0)]
    """The value is a multiple of it, and a whole number where this is one."""

    def _quantum(self) -> float:
        return self.q


AnyDimension = (
    Choice
    | RandInt
    | IntRange
    | FloatRange
    | Uniform
    | QUniform
    | LogUniform
    | QLogUniform
    | Normal
    | QNormal
    | LogNormal
    | QLogNormal
)
DimensionValue = Annotated[AnyDimension, ByType(*get_args(AnyDimension))]
