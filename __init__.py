"""Paceline: a distributed training runtime and compute scheduler.

Owns the public names. Importing this package imports nothing heavy: each name is loaded
when it is first used, so that a training script never pays for gRPC and a client never
pays for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.aio import AsyncClient
    from .client.optuna_storage import StudyStorage
    from .client.sdk import Client
    from .training.model_saving import save_model
    from .training.run import Run, init

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Run", "StudyStorage", "__version__", "init", "save_model"]

_HOMES = {
    "AsyncClient": "client.aio",
    "Client": "client.sdk",
    "Run": "training.run",
    "StudyStorage": "client.optuna_storage",
    "init": "training.run",
    "save_model": "training.model_saving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'paceline' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
