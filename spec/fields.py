"""The types of single values in documents: names, texts, sizes, counts, with their bounds.

A validator here raises only PydanticCustomError of type `paceline`; its message says what was expected.
"""

import math
import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from .problems import shown
from .resources import WHOLE_GPU_MILLI

NAME_CHARS_MAX: Final = 255
TEXT_CHARS_MAX: Final = 10_000
COMMAND_CHARS_MAX: Final = 100_000
PATH_CHARS_MAX: Final = 4096
DEPTH_MAX: Final = 16
ENTRIES_MAX: Final = 1000
"""In any one mapping of names to values."""
MEMORY_BYTES_MAX: Final = 1 << 50
GPUS_MAX: Final = 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")
_QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*\Z")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,255}\Z")
_TREE_ID = re.compile(r"[0-9a-f]{64}\Z")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\Z")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")
_UNITS: Final = {
    "": 1, "b": 1,
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip


def refusal(text: str, *at: str | int) -> PydanticCustomError:
    """An error whose message is `text` as it stands; `at` is the path below the value, if any."""
    return PydanticCustomError("paceline", "{text}", {"text": text, "at": at})


def _name(value: str) -> str:
    if not _NAME.match(value):
        raise refusal(
            "expected a name of letters, digits, '.', '_' and '-' that begins with a letter or digit,"
            f" at most {NAME_CHARS_MAX} characters; found {shown(value)}"
        )
    return value


def _queue(value: str) -> str:
    if value and (len(value) > NAME_CHARS_MAX or not _QUEUE.match(value)):
        raise refusal(f"expected the names that lead to a queue, as in research/vision; found {shown(value)}")
    return value


def _identifier(value: str) -> str:
    if not _IDENTIFIER.match(value):
        raise refusal(
            "expected a name of letters, digits, '_' and '-' that begins with a letter or '_',"
            f" at most 128 characters; found {shown(value)}"
        )
    return value


def _variable(value: str) -> str:
    if not _VARIABLE.match(value):
        raise refusal(f"expected the name of an environment variable; found {shown(value)}")
    return value


def _line(value: str) -> str:
    if len(value) > NAME_CHARS_MAX:
        raise refusal(f"expected at most {NAME_CHARS_MAX} characters; found {len(value)}")
    if not value.isprintable():
        raise refusal(
            f"expected one line without control or direction-changing characters; found {shown(value)}"
        )
    return value


def _metric(value: str) -> str:
    if not value:
        raise refusal("expected the name of a metric; found an empty text")
    return _line(value)


def _bounded(value: str, chars_max: int) -> str:
    if len(value) > chars_max:
        raise refusal(f"expected at most {chars_max} characters; found {len(value)}")
    bad = _CONTROL.search(value) or _TURNING.search(value)
    if bad:
        raise refusal(f"character U+{ord(bad[0]):04X} may not stand here")
    return value


def _tree_id(value: str) -> str:
    if not _TREE_ID.match(value):
        raise refusal(f"expected 64 digits from 0-9a-f; found {shown(value)}")
    return value


def _text(value: str) -> str:
    return _bounded(value, TEXT_CHARS_MAX)


def _long_text(value: str) -> str:
    return _bounded(value, COMMAND_CHARS_MAX)


def _command(value: str) -> str:
    if not value.strip():
        raise refusal("expected a command; found nothing to run")
    return _bounded(value, COMMAND_CHARS_MAX)


def _path(value: str) -> str:
    if not value.strip():
        raise refusal("expected a path; found an empty text")
    if not value.isprintable():
        raise refusal(f"expected a path without control characters; found {shown(value)}")
    return _bounded(value, PATH_CHARS_MAX)


def _as_text(value: Any) -> Any:
    """Tags and variables are text; a number or truth value stands for itself, as it was written."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
    return value


def _literal(value: Any) -> str | int | float | bool:
    """An input's literal value: text, number or truth value, bounded."""
    match value:
        case bool():
            return value
        case str():
            return _bounded(value, TEXT_CHARS_MAX)
        case int() | float() if _is_storable(value):
            return value
    raise refusal(
        f"expected a text, a finite number, true, false or a mapping with 'path'; found {shown(value)}"
    )


def _is_storable(value: float) -> bool:
    return abs(value) < 1 << 63 if isinstance(value, int) else math.isfinite(value)


def size_bytes(value: Any) -> int:
    """A size in bytes from `16Gi`, `512MB` or a number. Ki, Mi, Gi, Ti count by 1024; K, M, G, T by 1000."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _size_in_bounds(value, value)
    match = _SIZE.match(value.strip()) if isinstance(value, str) and len(value) <= 40 else None
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise refusal(f"expected a size such as 16Gi, 512Mi or 4000000; found {shown(value)}")
    return _size_in_bounds(float(match[1]) * unit if "." in match[1] else int(match[1]) * unit, value)


def _size_in_bounds(size: float, value: Any) -> int:
    if not 0 <= size <= MEMORY_BYTES_MAX:
        raise refusal(f"expected a size from 0 to 1024Ti; found {shown(value)}")
    return int(size)


def gpu_count(value: Any) -> int | float:
    """Whole GPUs, or (below 1, to three decimals) a share of one."""
    expected = "expected a whole number, or less than 1 for a share of one GPU, such as 0.5"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refusal(f"{expected}; found {shown(value)}")
    if not 0 <= value <= GPUS_MAX:
        raise refusal(f"{expected}, from 0 to {GPUS_MAX}; found {shown(value)}")
    if isinstance(value, int):
        return value
    if value >= 1:
        raise refusal(f"{expected}; found {shown(value)}: ask for {int(value)} or {int(value) + 1}")
    milli = round(value * WHOLE_GPU_MILLI)
    if not 0 < milli < WHOLE_GPU_MILLI or abs(value * WHOLE_GPU_MILLI - milli) > 1e-6:
        raise refusal(f"expected a share from 0.001 to 0.999, to three decimals; found {shown(value)}")
    return milli / WHOLE_GPU_MILLI


def _plain(value: Any, depth: int = 0) -> Any:
    """Data that nothing here looks into still has to be storable and showable."""
    match value:
        case None | bool():
            return value
        case str():
            return _text(value)
        case int() | float() if _is_storable(value):
            return value
        case list() | dict() if depth >= DEPTH_MAX or len(value) > ENTRIES_MAX:
            raise refusal(f"expected at most {ENTRIES_MAX} entries, nested at most {DEPTH_MAX} deep")
        case list():
            return [_plain(item, depth + 1) for item in value]
        case dict():
            return {_line(_key(name)): _plain(item, depth + 1) for name, item in value.items()}
    raise refusal(f"expected texts, finite numbers, lists and mappings; found {shown(value)}")


def _key(name: Any) -> str:
    if not isinstance(name, str):
        raise refusal(f"a key must be text; found {shown(name)}")
    return name


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    """Azure's own reader takes enumerations in any case."""
    return value.lower() if isinstance(value, str) else value


Name = Annotated[
    str, AfterValidator(_name), Field(json_schema_extra={"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$"})
]
QueuePath = Annotated[str, AfterValidator(_queue)]
Identifier = Annotated[str, AfterValidator(_identifier)]
Variable = Annotated[str, AfterValidator(_variable)]
Line = Annotated[str, AfterValidator(_line)]
Metric = Annotated[str, AfterValidator(_metric)]
Text = Annotated[str, AfterValidator(_text)]
Command = Annotated[str, AfterValidator(_command)]
TreeId = Annotated[str, AfterValidator(_tree_id)]
"""What content.manifest makes: the hash of a tree or of a file."""
LocalPath = Annotated[str, AfterValidator(_path)]
_SCALAR: Final = {"type": ["string", "number", "boolean", "null"]}
Loose = Annotated[str, BeforeValidator(_as_text), AfterValidator(_text), WithJsonSchema(_SCALAR)]
"""Text that may be written as a number or truth value."""
VariableText = Annotated[str, BeforeValidator(_as_text), AfterValidator(_long_text), WithJsonSchema(_SCALAR)]
"""The same with room for what people put into environment variables: keys, JSON."""
PlainData = Annotated[Any, PlainValidator(_plain), WithJsonSchema({})]
"""Lists, mappings and scalars of any shape."""
Count = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Value = Annotated[Any, PlainValidator(_literal), WithJsonSchema({"type": ["string", "number", "boolean"]})]
SizeBytes = Annotated[
    int, PlainValidator(size_bytes), WithJsonSchema({"type": ["string", "integer"], "examples": ["16Gi"]})
]
_GPU_COUNT: Final = [
    {"type": "integer", "minimum": 0, "maximum": GPUS_MAX},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
]
GpuCount = Annotated[int | float, PlainValidator(gpu_count), WithJsonSchema({"anyOf": _GPU_COUNT})]
Lower = BeforeValidator(_lower)
Listed = BeforeValidator(_listed)
"""One text, or a list of them."""
