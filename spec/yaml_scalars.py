"""The values of YAML's scalars by YAML 1.2's core rules: `yes` is text, `1e-3` a number."""

import re
from collections.abc import Mapping
from typing import Final

from .problems import shown

_NUMBER_CHARS_MAX: Final = 32
_INT = re.compile(r"[-+]?[0-9]+\Z|0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z|[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z"
)
_WORDS: Final[Mapping[str, object]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def plain_scalar(text: str) -> object:
    """The value of an unquoted scalar by YAML 1.2's core rules; ValueError where it has no value."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text):
        if len(text) > _NUMBER_CHARS_MAX:
            raise ValueError("a number of more than 32 digits; quote it if it is text")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.match(text):
        return float(
            text.replace(".inf", "inf")
            .replace(".Inf", "inf")
            .replace(".INF", "inf")
            .lower()
            .replace(".nan", "nan")
        )
    return text


def tagged_scalar(text: str, tag: str) -> object:
    """The value of a scalar whose type is given: `!!str 1`, `!!float 1`."""
    value = text if tag == "str" else plain_scalar(text)
    if tag == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value).__name__ != {"null": "NoneType"}.get(tag, tag):
        raise ValueError(f"{shown(text)} is not of the type that its tag names")
    return value
