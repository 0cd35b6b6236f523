"""`${{inputs.x}}`, `${{outputs.y}}` and `${{search_space.z}}` in a text: parsed once, resolved as raw text.

The value goes in as it is, once, unquoted, as Azure does; what comes in is not searched again.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from .problems import escaped, nearest

ROOTS: Final = ("inputs", "outputs", "search_space")
OUTPUT_BYTES_MAX: Final = 1024
"""What the path of an output is taken to need at most."""
_OPEN: Final = "${{"
_NONE: Final[Mapping[str, str]] = {}
_REFERENCE = re.compile(r"\s*([A-Za-z_]\w*)\.([A-Za-z_][\w-]*)\s*\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """`${{root.name}}` as it stood at `start` of the text."""

    root: str
    name: str
    raw: str
    start: int


@dataclass(frozen=True, slots=True)
class BadExpression:
    """What is wrong with an expression; `start` counts characters of the text."""

    raw: str
    start: int
    text: str
    nearest: str = ""


Part = str | Reference | BadExpression


def parse_expressions(text: str) -> tuple[Part, ...]:
    """Split a text into literal pieces, references and what cannot be read as one. Never raises."""
    parts: list[Part] = []
    at = 0
    while (start := text.find(_OPEN, at)) >= 0:
        if start > at:
            parts.append(text[at:start])
        end = text.find("}}", start)
        if end < 0:
            parts.append(BadExpression(text[start : start + 40], start, "'${{' without its '}}'"))
            return tuple(parts)
        at = end + 2
        parts.append(_reference(text[start:at], start))
    if at < len(text):
        parts.append(text[at:])
    return tuple(parts)


def check_expressions(
    text: str, inputs: Collection[str], outputs: Collection[str], params: Collection[str] = ()
) -> Iterator[BadExpression]:
    """What is wrong with the expressions of a text, given the names that the document defines; `params`: of
    its search space."""
    known = {"inputs": inputs, "outputs": outputs, "search_space": params}
    for part in parse_expressions(text):
        if isinstance(part, BadExpression):
            yield part
        elif isinstance(part, Reference) and part.root == "search_space" and not params:
            why = f"{_quoted(part.raw)} has a value only in a trial of a sweep, or where `params` gives one"
            yield BadExpression(part.raw, part.start, why)
        elif isinstance(part, Reference) and part.name not in known[part.root]:
            why = f"{_quoted(part.raw)}: {part.root} has no '{part.name}'"
            yield BadExpression(part.raw, part.start, why, nearest(part.name, known[part.root]))


def resolve(
    text: str, inputs: Mapping[str, str], outputs: Mapping[str, str], params: Mapping[str, str] = _NONE
) -> str:
    """The text with each reference replaced by its value. KeyError for a name that was never checked."""
    if _OPEN not in text:
        return text
    values = {"inputs": inputs, "outputs": outputs, "search_space": params}
    return "".join(_resolved(part, values) for part in parse_expressions(text))


def references(text: str, root: str) -> Iterator[str]:
    """The names that a text refers to as `${{root.NAME}}`."""
    for part in parse_expressions(text):
        if isinstance(part, Reference) and part.root == root:
            yield part.name


def without(text: str, root: str, names: Collection[str]) -> str:
    """The text with its references to these names replaced by nothing."""
    if _OPEN not in text or not names:
        return text
    return "".join(
        part if isinstance(part, str) else "" if _names(part, root, names) else part.raw
        for part in parse_expressions(text)
    )


def resolved_bytes_max(text: str, inputs: Mapping[str, str], params: Mapping[str, str] = _NONE) -> int:
    """How long the text can get when it is resolved; unknown names count nothing."""
    size = len(text.encode())
    if _OPEN not in text:
        return size
    values = {"inputs": inputs, "search_space": params}
    for part in parse_expressions(text):
        if isinstance(part, Reference):
            named = values.get(part.root, _NONE).get(part.name, "")
            size += OUTPUT_BYTES_MAX if part.root == "outputs" else len(named.encode())
    return size


def _names(part: Part, root: str, names: Collection[str]) -> bool:
    return isinstance(part, Reference) and part.root == root and part.name in names


def _resolved(part: Part, values: Mapping[str, Mapping[str, str]]) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, BadExpression):
        raise KeyError(part.raw)
    return values[part.root][part.name]


def _reference(raw: str, start: int) -> Reference | BadExpression:
    match = _REFERENCE.match(raw[3:-2])
    if match is None:
        why = (
            f"{_quoted(raw)} is not an expression; expected '${{{{inputs.NAME}}}}' or '${{{{outputs.NAME}}}}'"
        )
        return BadExpression(raw, start, why)
    root, name = match.groups()
    if root not in ROOTS:
        return BadExpression(raw, start, f"{_quoted(raw)}: there is no '{root}'", nearest(root, ROOTS))
    return Reference(root, name, raw, start)


def _quoted(raw: str) -> str:
    return f"'{escaped(raw[:60])}'"
