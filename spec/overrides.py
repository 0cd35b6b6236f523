"""`KEY=VALUE` from a command line, laid over a document: the key must exist, the value is a YAML scalar.

Names under inputs, outputs and the search space must be those of the document, since a mistyped one would
have no effect; keys elsewhere must be those of a job's or a sweep's document.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from .document import Document
from .keys import valid_keys
from .model import JobSpec
from .problems import InvalidDocument, Path, Problem, dotted, escaped, nearest
from .yaml_scalars import plain_scalar

T = TypeVar("T")
OVERRIDES_MAX: Final = 1000
_FREE: Final = ("tags", "properties", "environment_variables")
_NAMED: Final = {
    "inputs": "the job has no such input",
    "outputs": "the job has no such output",
    "params": "the job has no such value",
    "search_space": "the search space has no such name",
}


def apply_overrides(data: Any, overrides: Sequence[str]) -> Any:
    """A copy of a document's data with each `KEY=VALUE` set. Raises InvalidDocument."""
    return override(Document(data, "job"), overrides).data


def override(document: Document, overrides: Sequence[str]) -> Document:
    """The document with each `KEY=VALUE` set; later problems there name the override as their place."""
    if len(overrides) > OVERRIDES_MAX:
        raise InvalidDocument(
            [Problem("--set", 0, 0, "", f"given {len(overrides)} times; at most {OVERRIDES_MAX}")]
        )
    if not isinstance(document.data, dict):
        raise InvalidDocument([document.problem((), "expected a mapping of keys; nothing can be set in it")])
    problems: list[Problem] = []
    document = replace(document, data=deepcopy(document.data))
    for text in overrides:
        source = f"--set {escaped(text[:80])}"
        try:
            path, value, scalar = _read(document.data, text, source)
        except InvalidDocument as error:
            problems += error.problems
            continue
        _put(document.data, path, value)
        document = _replaced(document, path, source, "" if isinstance(value, str) else scalar)
    if problems:
        raise InvalidDocument(problems)
    return document


def _replaced(document: Document, path: Path, source: str, raw: str) -> Document:
    """The document without the places and written forms of what stood at `path` before."""

    def kept(places: Mapping[Path, T]) -> dict[Path, T]:
        return {at: place for at, place in places.items() if at[: len(path)] != path}

    return replace(
        document,
        keys=kept(document.keys),
        values=kept(document.values),
        raw=kept(document.raw) | ({path: raw} if raw else {}),
        sources=kept(document.sources) | {path: source},
        grafts=kept(document.grafts),
    )


def _read(data: Any, text: str, source: str) -> tuple[Path, Any, str]:
    key, equals, scalar = text.partition("=")
    if not equals or not key:
        raise InvalidDocument([Problem(source, 0, 0, "", "expected KEY=VALUE, such as inputs.lr=0.1")])
    path = _path(key)
    _check_path(data, path, source)
    return _landing(data, path), _value(scalar, source, path), scalar


def _landing(data: Any, path: Path) -> Path:
    """`inputs.data=PATH` means the path where the document describes that input by a mapping."""
    if len(path) == 2 and path[0] == "inputs" and isinstance(data["inputs"][path[1]], dict):
        return (*path, "value" if "value" in data["inputs"][path[1]] else "path")
    return path


def _path(key: str) -> Path:
    """Keys between dots; what follows a mapping of free names is one key, dots and all."""
    head, dot, rest = key.partition(".")
    if head == "trial" and dot:
        return (head, *_path(rest))
    return (head, rest) if dot and head in _FREE else tuple(key.split("."))


def _value(scalar: str, source: str, path: Path) -> Any:
    """An unquoted YAML scalar; quotes make text of anything, and nothing is an escape in them."""
    quoted = len(scalar) >= 2 and scalar[0] == scalar[-1] and scalar[0] in "'\""
    if quoted:
        return scalar[1:-1]
    try:
        return plain_scalar(scalar)
    except ValueError as error:
        raise InvalidDocument([Problem(source, 0, 0, dotted(path), str(error))]) from None


def _check_path(data: Any, path: Path, source: str) -> None:
    at = data
    for depth, part in enumerate(path):
        valid, why = valid_keys(path[:depth], root_of(data)), "unknown key"
        if depth == 1 and path[0] in _NAMED:
            valid, why = list(at) if isinstance(at, dict) else [], _NAMED[str(path[0])]
        if valid is None:
            return
        if part not in valid:
            guess = nearest(part, valid)
            raise InvalidDocument([Problem(source, 0, 0, dotted(path[: depth + 1]), why, nearest=guess)])
        at = at.get(part) if isinstance(at, dict) else None


def _put(data: Any, path: Path, value: Any) -> None:
    at = data
    for depth, part in enumerate(path[:-1], 1):
        if not isinstance(at.get(part), dict):
            at[part] = _long_form(path[:depth], at.get(part))
        at = at[part]
    at[path[-1]] = value


def _long_form(path: Path, value: Any) -> dict[str, Any]:
    """The mapping that a short form stands for, so that a key can be set in it."""
    match path[1:] if path[0] == "trial" else path:
        case ("resources", "gpus") if isinstance(value, int | float):
            return {"count": value}
        case ("environment",) if isinstance(value, str) and value:
            return {"name": value}
        case ("sampling_algorithm",) if isinstance(value, str):
            return {"type": value}
    return {}


def root_of(data: Any) -> type[BaseModel]:
    """The model of a document, by its `type`."""
    if is_sweep(data):
        from .sweep import SweepSpec

        return SweepSpec
    if isinstance(data, dict) and data.get("type") == "deployment":
        from .deployment import DeploymentSpec

        return DeploymentSpec
    return JobSpec


def is_sweep(data: Any) -> bool:
    kind = data.get("type") if isinstance(data, dict) else None
    return isinstance(kind, str) and kind.lower() == "sweep"
