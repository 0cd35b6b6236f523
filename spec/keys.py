"""Which keys may stand where in a job document, read off the models, and which one was probably meant."""

from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from .model import JobSpec
from .problems import Path, nearest


def valid_keys(path: Path) -> list[str] | None:
    """The keys that may stand in the mapping at `path`; None where any may, empty where none."""
    model: Any = JobSpec
    for part in path:
        if get_origin(model) is dict:
            model = _inner(get_args(model)[1])
        elif model is not None:
            model = _inner(_fields(model).get(str(part)))
    if model is None:
        return []
    return None if get_origin(model) is dict else list(_fields(model))


def nearest_key(path: Path) -> str:
    """The valid key that was probably meant by the last one of `path`: one beside it, or one elsewhere."""
    key = str(path[-1])
    return nearest(key, valid_keys(path[:-1]) or ()) or _homes().get(key, "")


@cache
def _homes() -> dict[str, str]:
    """Where each key of the inner mappings belongs, for a key that stands in the wrong one."""
    homes: dict[str, str] = {}
    for key, annotation in _fields(JobSpec).items():
        model = _inner(annotation)
        if model is not None and get_origin(model) is not dict:
            for name in _fields(model):
                homes.setdefault(name, f"{key}.{name}")
    return {name: home for name, home in homes.items() if name not in _fields(JobSpec)}


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info.annotation for name, info in model.model_fields.items()}


def _inner(annotation: Any) -> Any:
    """The model, or the mapping, that an annotation speaks of among its alternatives."""
    if get_origin(annotation) is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return annotation
    for part in get_args(annotation):
        found = _inner(part)
        if found is not None:
            return found
    return None
