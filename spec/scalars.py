"""Single values of a search space: what they may be, when two are the same, how they stand in a command."""

import math
from typing import Annotated, Any, Final, TypeGuard

from pydantic import PlainValidator, WithJsonSchema

from .fields import TEXT_CHARS_MAX, refusal
from .problems import shown

Scalar = str | int | float | bool | None
"""A value of a dimension. None goes into a command as an empty text."""

WHOLE_MAX: Final = 1 << 53
"""To which floats, and so all samplers, can tell whole numbers apart."""
SCALAR_SCHEMA: Final = {"type": ["string", "number", "boolean", "null"]}


def _scalar(value: Any) -> Scalar:
    match value:
        case None | bool():
            return value
        case str() if len(value) <= TEXT_CHARS_MAX and value.isprintable():
            return value
        case int() if abs(value) <= WHOLE_MAX:
            return value
        case float() if math.isfinite(value):
            return value
        case list() | dict():
            raise refusal(
                f"expected a text, a number, true, false or null; found {shown(value)}:"
                " give its parts dimensions of their own, with `when` where they depend on another"
            )
    raise refusal(f"expected a text of one line, a finite number, true, false or null; found {shown(value)}")


def same(one: Scalar, other: Scalar) -> bool:
    """True for equal values; a truth value is no number."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def as_text(value: Scalar) -> str:
    """As it stands in a command or variable, in the form that inputs have there."""
    return "" if value is None else str(value)


ScalarValue = Annotated[Any, PlainValidator(_scalar), WithJsonSchema(SCALAR_SCHEMA)]


def is_number(value: Scalar) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: Scalar) -> float:
    """A value that is known to be a number."""
    assert isinstance(value, int | float)
    return value
