"""The mappings that say where a job may run: labels of nodes, taints that it bears, and how close together.

As in parts.py, every field's docstring becomes its description in the JSON Schema.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from .fields import Lower, refusal
from .labels import KEY_RULE, LABELS_MAX, VALUE_RULE, is_key, is_value
from .parts import Model
from .problems import shown

VALUES_MAX: Final = 64
_SCALAR: Final = {"type": ["string", "number", "boolean"]}


def _key(text: str) -> str:
    if not is_key(text):
        raise refusal(f"expected the key of a label: {KEY_RULE}; found {shown(text)}")
    return text


def _value(value: Any) -> Any:
    """A label's value is text; a number or truth value stands for itself, as it was written."""
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, int | float):
        value = repr(value)
    if isinstance(value, str) and not is_value(value):
        raise refusal(f"expected the value of a label, {VALUE_RULE}; found {shown(value)}")
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


def _some(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise refusal("expected a value or a list of them; found an empty list")
    return tuple(dict.fromkeys(values))


def _toleration(text: str) -> str:
    key, _, value = text.partition("=")
    if not is_key(key) or (value and not is_value(value)) or text.endswith("="):
        raise refusal(f"expected a taint as KEY or KEY=VALUE, such as spot; found {shown(text)}")
    return text


LabelKey = Annotated[str, AfterValidator(_key)]
LabelValues = Annotated[
    tuple[Annotated[str, BeforeValidator(_value)], ...],
    BeforeValidator(_listed),
    Field(max_length=VALUES_MAX),
    AfterValidator(_some),
    WithJsonSchema({"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "maxItems": VALUES_MAX}]}),
]
"""One value, or a list of which any will do."""
Tolerations = Annotated[
    tuple[Annotated[str, AfterValidator(_toleration)], ...],
    BeforeValidator(_listed),
    Field(max_length=LABELS_MAX),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}, "maxItems": LABELS_MAX}),
]


class Placement(Model):
    """On which nodes the job may run, by their labels and taints."""

    labels: dict[LabelKey, LabelValues] = Field(default={}, max_length=LABELS_MAX)
    """Labels that a node must have: each with the value that is given, or with any of a list of values."""
    prefer: dict[LabelKey, LabelValues] = Field(default={}, max_length=LABELS_MAX)
    """Labels by which a node is taken before others, where there is room; in the same form."""
    tolerate: Tolerations = ()
    """Taints of nodes that the job bears: KEY for any value, or KEY=VALUE. It gets no node with another."""


class Topology(Model):
    """How close together the instances of the job shall be."""

    within: LabelKey
    """Label of nodes, such as rack: all instances go to nodes on which it is the same."""
    mode: Annotated[Literal["required", "preferred"], Lower] = "required"
    """required: so or not at all. preferred: else within the next wider level, or in few places anywhere."""
