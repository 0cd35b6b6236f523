"""What is registered: versions of data and of models, aliases, endpoints; and edges of the lineage.

A version never changes and its name is never given again: one that is deleted stays as a tombstone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...spec.ids import JobId, Micros

AssetKey = tuple[str, str]
"""Kind (`data` or `model`) and name."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a version is: a tree of the content store, what a URL leads to, or a literal value."""

    tree: str = ""
    file: str = ""
    """The one file of the tree, where the asset is a file."""
    url: str = ""
    etag: str = ""
    """What the URL's server called its state when it was registered."""
    value: str = ""
    """JSON of a literal value."""
    size_bytes: int = 0
    files: int = 0


@dataclass(frozen=True, slots=True)
class About:
    """What is told of a version."""

    type: str
    """As job files say it: uri_file, uri_folder, custom_model, mlflow_model ...; literal."""
    framework: str = ""
    signature: str = ""
    """JSON: inputs, outputs, example; empty: nobody said."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True, slots=True)
class Asset:
    """One version."""

    kind: str
    name: str
    version: str
    serial: int
    """Grows from version to version of a name."""
    content: Content
    about: About
    source: str
    """Where it came from, as a reference of the lineage, or a path of the user's."""
    made_by: str
    made_us: Micros
    key: str
    """Of the call that registered it."""
    deleted_us: Micros | None = None
    deleted_by: str = ""

    @property
    def ref(self) -> str:
        return f"{self.kind}:{self.name}:{self.version}"

    @property
    def there(self) -> bool:
        return self.deleted_us is None


@dataclass(frozen=True, slots=True)
class AliasMove:
    """A move of an alias; an empty version: it was not there, or is no more."""

    alias: str
    before: str
    after: str
    by: str
    at_us: Micros
    key: str


@dataclass(frozen=True, slots=True)
class Named:
    """A name with its aliases, the moves of these, the newest last; and what the next version is called."""

    kind: str
    name: str
    next_number: int = 1
    next_serial: int = 1
    aliases: Mapping[str, str] = field(default_factory=dict)
    history: tuple[AliasMove, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint as whoever drives it wrote it down, and the versions that its deployments use."""

    name: str
    record: str
    uses: tuple[str, ...] = ()
    """Such as `model:digits:2`."""


@dataclass(frozen=True, slots=True)
class Edge:
    """What `target` was made of, or is used by: a line of the lineage, from what was first."""

    source: str
    target: str
    relation: str


@dataclass(frozen=True, slots=True)
class Outputs:
    """A job some of whose outputs are to be registered: when it has succeeded they are due."""

    job: JobId
    due: bool = False
    refused: str = ""
    """Why they could not be."""


def job_ref(job: int) -> str:
    return f"job:{job}"
