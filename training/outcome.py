"""What `save` and `restore` tell the script. torch is not needed to hold it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class SaveOutcome:
    """How a save went, the same at all ranks. `path` None: it failed or was skipped as `error` says, and
    training goes on without it. Else it is on its way to `path`, and there when `published`.
    """

    step: int
    path: Path | None
    stall_s: float
    error: str = ""
    published: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back. `values` holds the plain values and tensors given to `save`; also by
    `restored["name"]`.
    """

    step: int
    path: Path
    attempt: int
    values: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    rejected: tuple[str, ...] = ()
    """Newer ones that were passed over, and why."""
    seconds: float = 0.0
    tier: str = "storage"
    """What it was read from: "memory" of this node, "storage", or some of both; and why not memory."""

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)
