"""Which keys may stand where in a document, read off the models, and which one was probably meant."""

from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from .by_type import MODELS
from .model import JobSpec
from .problems import Path, nearest


def valid_keys(path: Path, root: type[BaseModel] = JobSpec) -> list[str] | None:
    """The keys that may stand in the mapping at `path`; None where any may, empty where none. A tag in
    the path says which one of several is meant."""
    models: list[Any] = [root]
    for part in path:
        if isinstance(part, int):  # an entry of a list: its models are those of the list
            continue
        chosen = MODELS.get(str(part))
        models = [chosen] if chosen else [inner for model in models for inner in _below(model, str(part))]
    if any(get_origin(model) is dict for model in models):
        return None
    return list(dict.fromkeys(key for model in models for key in _fields(model)))


def nearest_key(path: Path, root: type[BaseModel] = JobSpec) -> str:
    """The valid key that was probably meant by the last one of `path`: one beside it, or one elsewhere."""
    key = str(path[-1])
    home = _homes(root).get(key, "")
    return nearest(key, valid_keys(path[:-1], root) or ()) or ("" if home == f"{path[0]}.{key}" else home)


@cache
def _homes(root: type[BaseModel]) -> dict[str, str]:
    """Where each key of the inner mappings belongs, for a key that stands in the wrong one."""
    homes: dict[str, str] = {}
    for key, annotation in _fields(root).items():
        for model in _inner(annotation):
            if get_origin(model) is not dict:
                for name in _fields(model):
                    homes.setdefault(name, f"{key}.{name}")
    return {name: home for name, home in homes.items() if name not in _fields(root)}


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info.annotation for name, info in model.model_fields.items()}


def _below(model: Any, key: str) -> list[Any]:
    return _inner(get_args(model)[1] if get_origin(model) is dict else _fields(model).get(key))


def _inner(annotation: Any) -> list[Any]:
    """The models and mappings that an annotation speaks of among its alternatives."""
    if get_origin(annotation) is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return [annotation]
    return [model for part in get_args(annotation) for model in _inner(part)]
