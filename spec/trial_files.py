"""A sweep whose `trial` is a job file: that file's work put in its place, its data below the sweep's own.

Each part keeps the place where it stood, so that problems name the job file and its line. Components in
Azure's shape are read, too: what they declare as an input of a plain type is a value of the sweep's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from .compat import DROPPED_KEYS, NOT_COMMAND, Caution
from .document import Document, Graft, parse
from .model import JobSpec
from .problems import InvalidDocument, Path, dotted, shown
from .submission import absolute
from .work import Work

_OF_ITSELF: Final = frozenset(
    ("$schema", "type", "name", "display_name", "description", "params", "version", "is_deterministic")
)
"""Keys that say what the file is, and nothing of a trial."""
_VALUE_TYPES: Final = ("string", "number", "integer", "boolean")


@dataclass(frozen=True, slots=True)
class TrialFile:
    """A job file as it was read."""

    text: str | bytes
    source: str
    """Names it in messages."""
    folder: str
    """Where it lies: its relative paths are below."""


def inlined(sweep: Document, file: TrialFile) -> tuple[Document, tuple[Caution, ...]]:
    """The sweep with the file in the place of its `trial`, and what of the file has no effect in it. Raises
    InvalidDocument."""
    document = parse(file.text, file.source)
    data = document.data
    if not isinstance(data, dict):
        raise InvalidDocument([document.problem((), f"expected a mapping of keys; found {shown(data)}")])
    kind = data.get("type", "command")
    if not isinstance(kind, str) or kind.lower() != "command":
        why = NOT_COMMAND.get(kind.lower(), "") if isinstance(kind, str) else ""
        text = f"{kind.lower()}: {why}; expected command" if why else f"expected command; found {shown(kind)}"
        raise InvalidDocument([document.problem(("type",), text)])
    idle = frozenset(JobSpec.model_fields) - frozenset(Work.model_fields) - _OF_ITSELF - {"inputs", "outputs"}
    cautions = [
        _caution(document, key, DROPPED_KEYS.get(key, "not used in a trial; say it in the sweep"))
        for key in data
        if key in idle or key in DROPPED_KEYS
    ]
    apart = {*idle, *DROPPED_KEYS, *_OF_ITSELF, "inputs", "outputs"}
    trial = {key: value for key, value in data.items() if key not in apart}
    trial["code"] = _code(data.get("code"), file.folder)
    grafts: dict[Path, Graft] = {("trial",): Graft(document, ())}
    raw = {("trial", *path): text for path, text in document.raw.items() if path[:1] and path[0] not in apart}
    merged = dict(sweep.data) | {"trial": trial}
    for key, names in (("inputs", _inputs(data, sweep.data, file.folder)), ("outputs", data.get("outputs"))):
        own = merged.get(key) or {}
        if not isinstance(own, dict) or not isinstance(names, dict):
            continue
        for name in names.keys() - own.keys():
            grafts[key, name] = Graft(document, (key, name))
            raw |= {path: text for path, text in document.raw.items() if path[:2] == (key, name)}
        merged[key] = {**names, **own}
    kept = {path: text for path, text in sweep.raw.items() if path[:1] != ("trial",)}
    return replace(sweep, data=merged, grafts=grafts, raw=kept | raw), tuple(cautions)


def file_of(trial: str) -> str:
    """The path that a text in the place of `trial` means; empty where it names something else."""
    if trial.startswith("azureml:") or "://" in trial:
        return ""
    return trial.removeprefix("file:")


def _code(code: Any, folder: str) -> Any:
    if code is None:
        return folder
    return absolute(folder, code) if isinstance(code, str) and _is_local(code) else code


def _is_local(path: str) -> bool:
    return "://" not in path and not path.startswith(("azureml:", "git+"))


def _inputs(data: dict[str, Any], sweep: dict[str, Any], folder: str) -> Any:
    """The file's inputs, as they have to stand in the sweep."""
    inputs = data.get("inputs")
    if not isinstance(inputs, dict):
        return inputs
    space = sweep.get("search_space")
    return dict(_values(inputs, space if isinstance(space, dict) else {}, folder))


def _values(inputs: dict[str, Any], space: dict[str, Any], folder: str) -> Iterator[tuple[str, Any]]:
    for name, value in inputs.items():
        if not isinstance(value, dict):
            yield name, value
        elif value.get("type") in _VALUE_TYPES:
            if "default" in value or name in space:
                yield name, value.get("default", "")
        elif isinstance(value.get("path"), str) and _is_local(value["path"]):
            path = value["path"].removeprefix("file:").removeprefix("//")
            yield name, value | {"path": absolute(folder, path)}
        else:
            yield name, value


def _caution(document: Document, key: str, text: str) -> Caution:
    source, mark = document.place((key,), at_key=True)
    return Caution(source, mark.line, mark.column, dotted((key,)), text)
