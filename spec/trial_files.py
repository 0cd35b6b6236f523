"""A sweep whose `trial` is a job file: that file's work put in its place, its data below the sweep's own.

Each part keeps the place where it stood, so that problems name the job file and its line. Components in
Azure's shape are read, too: what they declare as an input of a plain type is a value of the sweep's.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from .compat import DROPPED_KEYS, Caution
from .document import Document, Graft
from .model import JobSpec
from .problems import InvalidDocument, Path, shown
from .reading import JOB, caution, other_type
from .submission import absolute
from .work import Work

_OF_ITSELF: Final = frozenset(
    ("$schema", "type", "name", "display_name", "description", "params", "version", "is_deterministic")
)
"""Keys that say what the file is, and nothing of a trial."""
_DATA: Final = ("inputs", "outputs")
_IDLE: Final = frozenset(JobSpec.model_fields) - frozenset(Work.model_fields) - _OF_ITSELF - frozenset(_DATA)
"""Keys that a sweep says for all of its trials."""
_VALUE_TYPES: Final = ("string", "number", "integer", "boolean")


def inlined(sweep: Document, file: Document, folder: str) -> tuple[Document, tuple[Caution, ...]]:
    """The sweep with the file in the place of its `trial`, and what of the file has no effect in it;
    `folder`: where the file lies. Raises InvalidDocument."""
    data = file.data
    if not isinstance(data, dict):
        raise InvalidDocument([file.problem((), f"expected a mapping of keys; found {shown(data)}")])
    wrong_type = other_type(file, JOB)
    if wrong_type:
        raise InvalidDocument([wrong_type])
    apart = {*_IDLE, *DROPPED_KEYS, *_OF_ITSELF, *_DATA}
    cautions = [
        caution(file, (key,), DROPPED_KEYS.get(key, "not used in a trial; say it in the sweep"))
        for key in data
        if key in _IDLE or key in DROPPED_KEYS
    ]
    trial = {key: value for key, value in data.items() if key not in apart}
    trial["code"] = _code(data.get("code"), folder)
    if data.get("code") is None:
        trial["code_in_place"] = True
    if isinstance(environment := data.get("environment"), dict):
        files = {key: environment[key] for key in ("requirements", "conda_file") if key in environment}
        trial["environment"] = environment | {
            key: absolute(folder, path) for key, path in files.items() if isinstance(path, str)
        }
    merged = sweep.data | {"trial": trial}
    grafts: dict[Path, Graft] = {("trial",): Graft(file, ())}
    raw = {("trial", *path): text for path, text in file.raw.items() if path[:1] and path[0] not in apart}
    for key in _DATA:
        names, own = data.get(key) or {}, merged.get(key) or {}
        if not isinstance(names, dict):
            raise InvalidDocument([file.problem((key,), f"expected a mapping; found {shown(names)}")])
        if not isinstance(own, dict):  # the reading of the sweep says so
            continue
        added = {name: value for name, value in names.items() if name not in own}
        grafts |= {(key, name): Graft(file, (key, name)) for name in added}
        raw |= {path: text for path, text in file.raw.items() if path[:2] in grafts}
        merged[key] = dict(_values(added, sweep.data, folder)) | own
    return replace(sweep, data=merged, grafts=grafts, raw={**sweep.raw, **raw}), tuple(cautions)


def _code(code: Any, folder: str) -> Any:
    if code is None:
        return folder
    return absolute(folder, code) if isinstance(code, str) and _is_local(code) else code


def _is_local(path: str) -> bool:
    return "://" not in path and not path.startswith(("azureml:", "git+"))


def _values(inputs: dict[str, Any], sweep: dict[str, Any], folder: str) -> Iterator[tuple[str, Any]]:
    """The file's inputs, as they have to stand in the sweep."""
    space = sweep.get("search_space")
    chosen = space if isinstance(space, dict) else {}
    for name, value in inputs.items():
        if not isinstance(value, dict):
            yield name, value
        elif value.get("type") in _VALUE_TYPES:
            if "default" in value or name in chosen:
                yield name, value.get("default", "")
        elif isinstance(value.get("path"), str) and _is_local(value["path"]):
            path = value["path"].removeprefix("file:").removeprefix("//")
            yield name, value | {"path": absolute(folder, path)}
        else:
            yield name, value
