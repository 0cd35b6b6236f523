"""What the verbs on data, models and the lineage take and return; see views.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..spec.ids import Micros


@dataclass(frozen=True, slots=True)
class OfJob:
    """An output of a job that is over."""

    job: int
    output: str = ""
    """Empty: its only one."""


@dataclass(frozen=True, slots=True)
class OfCheckpoint:
    job: int
    step: int = 0
    """0: the newest good one."""


@dataclass(frozen=True, slots=True)
class OfTrial:
    """A trial's output, or its newest checkpoint where it has no outputs."""

    sweep: int
    trial: int | None = None
    """None: the best."""
    output: str = ""


@dataclass(frozen=True, slots=True)
class OfPath:
    """A file or a folder of this machine, which is uploaded."""

    path: str


@dataclass(frozen=True, slots=True)
class OfUrl:
    """What stays where it is: any URL that fsspec reads."""

    url: str


@dataclass(frozen=True, slots=True)
class OfValue:
    """A literal value of a data asset."""

    value: str | int | float | bool


AssetSource = OfJob | OfCheckpoint | OfTrial | OfPath | OfUrl | OfValue


@dataclass(frozen=True, slots=True)
class Asset:
    """A version of data or of a model."""

    kind: str
    """`data` or `model`."""
    name: str
    version: str
    type: str
    """As in job files; `literal` for a value."""
    tree: str
    """Id in the content store, which is the hash of all of it; empty: it is a URL or a value."""
    file: str
    """The one file of the tree, where it is a file."""
    url: str
    etag: str
    value: Any
    """None: it is no literal value."""
    bytes: int
    files: int
    framework: str
    signature: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    description: str
    source: str
    """Where it came from, for a person."""
    made_by: str
    made_us: Micros
    deleted_us: Micros | None
    deleted_by: str
    aliases: tuple[str, ...]
    damage: str
    """What is wrong with its files, where one version was asked for; empty: nothing."""

    @property
    def reference(self) -> str:
        """As job files name it."""
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class AliasMove:
    alias: str
    before: str
    """Version; empty: it was not there."""
    after: str
    """Version; empty: it went."""
    by: str
    at_us: Micros


@dataclass(frozen=True, slots=True)
class AssetName:
    """A name's aliases, and how they came to be, the newest last."""

    kind: str
    name: str
    aliases: Mapping[str, str]
    moves: tuple[AliasMove, ...]


@dataclass(frozen=True, slots=True)
class LineageNode:
    reference: str
    text: str


@dataclass(frozen=True, slots=True)
class LineageEdge:
    source: str
    """Was first."""
    target: str
    relation: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """All that `reference` was made of, and all that was made of it."""

    reference: str
    nodes: tuple[LineageNode, ...]
    edges: tuple[LineageEdge, ...]
    more: bool
    """There is more than is told."""
