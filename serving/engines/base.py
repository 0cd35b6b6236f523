"""The seam: an engine is a module with `load(Folder) -> Loaded`. What it loaded answers in any thread.

The server has the wire, the limits and the errors; an engine has the model. To add one: a module here, its
line in ENGINES, and its case in tests/serving/.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ...spec.model_signature import ModelSignature
from ..folder import Folder

__all__ = ["ENGINES", "NUMPY", "Answer", "Array", "Arrays", "Engine", "Folder", "Loaded", "Post", "engine"]

Array = NDArray[Any]
Arrays = dict[str, Array]

ENGINES: Final = {
    "torch": "torch_models",
    "score": "score_script",
    "mlflow": "mlflow_models",
    "ray": "ray_serve",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """To a request that is not the protocol's."""

    body: bytes
    status: int = 200
    media_type: str = "application/json"


Post = Callable[[bytes, str], Answer]
"""Takes the body and its content type. Raises InvalidRequest for what the client did wrong."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to answer."""

    platform: str
    signature: ModelSignature | None
    infer: Callable[[Arrays], Arrays] | None
    """Takes what fits the signature's inputs. None: the model takes no tensors, or nobody knows which."""
    posts: Mapping[str, Post] = field(default_factory=lambda: MappingProxyType({}))
    """The engine's own routes, beside the protocol's."""
    gets: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Texts that are told once the model is loaded."""
    at_once: int = 1
    """Requests that may be in the model at the same time."""
    close: Callable[[], None] = lambda: None
    """Called once, when nothing is in the model any more."""


class Engine(Protocol):
    """A module of this folder."""

    def load(self, folder: Folder) -> Loaded:
        """Load the model. Whatever it raises is told, and the server ends."""


def engine(name: str) -> Engine:
    """Imported when it is used: each engine wants libraries of its own."""
    found: Any = import_module(f".{ENGINES[name]}", __package__)
    loaded: Engine = found
    return loaded


NUMPY: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""The protocol's data types; BYTES are str or bytes, one an element."""
