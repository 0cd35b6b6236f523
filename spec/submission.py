"""What a job and a sweep have in common as things that are submitted: name, data, queue.

As in parts.py, every field's docstring becomes its description in the JSON Schema.
"""

import json
import posixpath
import re
from typing import Any, Final, Self

from pydantic import ConfigDict, Field, model_validator

from .fields import (
    ENTRIES_MAX,
    Count,
    Identifier,
    Line,
    Loose,
    Name,
    PlainData,
    QueuePath,
    Text,
    refusal,
)
from .parts import DataInput, Identity, InputValue, Model, OutputValue
from .policies import QueueSettings

_MARKERS: Final = "/@needs/"
_PRIORITIES: Final = {"low": -100, "medium": 0, "high": 100}


class Submission(Model):
    """What is submitted as one thing."""

    model_config = ConfigDict(defer_build=True)  # it is validated as what inherits it only

    schema_: Text = Field(default="", alias="$schema")
    """For editors."""
    name: Name | None = None
    """Its name; need not be unique, the scheduler gives numbers."""
    display_name: Line = ""
    """Name for people."""
    experiment_name: Line = ""
    """What it belongs to, for listing."""
    description: Text = ""
    """For people."""
    tags: dict[Line, Loose] = Field(default={}, max_length=ENTRIES_MAX)
    """For people and for search."""
    properties: dict[Line, Loose] = Field(default={}, max_length=ENTRIES_MAX)
    """For tools."""
    inputs: dict[Identifier, InputValue] = Field(default={}, max_length=ENTRIES_MAX)
    """Values and data for `${{inputs.NAME}}`."""
    outputs: dict[Identifier, OutputValue] = Field(default={}, max_length=ENTRIES_MAX)
    """Folders for `${{outputs.NAME}}`."""
    compute: Line = ""
    """A pool of nodes of the cluster's policy. `local` or absent: its default pool, else any node."""
    queue: QueuePath = ""
    """The queue of the cluster's policy in which it waits, such as `research/vision`; absent: the default."""
    priority: Count = Field(default=0, ge=-1000, le=1000)
    """Higher goes first; 0 is usual."""
    queue_settings: QueueSettings = QueueSettings()
    """Azure's way of saying how urgent it is; see priority."""
    services: dict[Line, PlainData] = Field(default={}, max_length=ENTRIES_MAX)
    """Interactive services; not started here."""
    identity: Identity | None = None
    """Not used here."""

    @model_validator(mode="after")
    def _one_priority(self) -> Self:
        if self.priority and self.queue_settings.priority:
            raise refusal("given twice: here and as queue_settings.priority; keep one", "priority")
        return self

    @property
    def effective_priority(self) -> int:
        """`priority`, or what queue_settings.priority stands for."""
        return self.priority or _PRIORITIES[self.queue_settings.priority or "medium"]

    @property
    def pool(self) -> str:
        """The pool that `compute` names; empty: none."""
        name = self.compute.removeprefix("azureml:")
        return "" if name == "local" else name

    def input_values(self) -> dict[str, str]:
        """What each `${{inputs.NAME}}` becomes, as text."""
        return {
            name: _data_text(name, value) if isinstance(value, DataInput) else str(value)
            for name, value in self.inputs.items()
        }

    def local_paths(self) -> list[str]:
        """Of the nodes' own, which inputs stand for."""
        data = ((name, value) for name, value in self.inputs.items() if isinstance(value, DataInput))
        texts = (_data_text(name, value) for name, value in data)
        return [text for text in texts if text.startswith("/") and not text.startswith(_MARKERS)]

    def rooted_inputs(self, folder: str) -> dict[str, Any]:
        """The inputs with their local paths made absolute, those relative ones below `folder`."""
        return {
            name: value.model_copy(update={"path": absolute(folder, local_path(value))})
            if isinstance(value, DataInput) and value.is_local
            else value
            for name, value in self.inputs.items()
        }

    def plain(self) -> dict[str, Any]:
        """As plain data, defaults included."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def canonical(plain: Any) -> str:
    """The one JSON text of plain data, whatever the order of its keys."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def slug(text: str) -> str:
    """The part of a text that can stand in a name; it may be empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64].strip("-._")


def input_marker(name: str) -> str:
    """In the place of a path that only the node knows; none is the beginning of another."""
    return f"{_MARKERS}inputs.{name}@"


def _data_text(name: str, value: DataInput) -> str:
    pinned = value.pinned
    if pinned is None:
        return local_path(value)
    if value.is_provided:
        return input_marker(name) + (f"/{pinned.file}" if pinned.file else "")
    return pinned.url if pinned.value is None else str(pinned.value)


def local_path(value: DataInput) -> str:
    """The path without `file:` before it."""
    if not value.path.startswith("file:"):
        return value.path
    return value.path.removeprefix("file:").removeprefix("//")


def absolute(folder: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(folder, path))
