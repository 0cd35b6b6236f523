"""What a rank orders of its persister, and what it is answered: JSON lines over a pipe, one answer an order,
and a word `{"uploaded": NAME}` when an upload is over.

An order names one save. Rank 0's has `publish` too: what the manifest says, beside the files.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..proto.peer_door import Door
from ..spec.folder_names import FolderName
from ..spec.retention import Retention
from .manifest import Parent


@dataclass(frozen=True, slots=True)
class History:
    """What a save must know of the restore before it."""

    parents: tuple[Parent, ...] = ()
    bad: tuple[str, ...] = ()
    keep_slot: int | None = None
    """Of this rank's image that was restored from."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a save is made for, in words, and the request that it answers; nothing: the script's own."""

    why: str = ""
    request: int = 0
    must: bool = False
    """It waits for the one before, whatever `when_busy` says."""


@dataclass(frozen=True, slots=True)
class Publish:
    """For the manifest, and for the agent's shim."""

    job: int
    world_size: int
    stall_s: float
    code_folder: str
    contents: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: Any = None
    parents: tuple[Parent, ...] = ()
    bad: tuple[str, ...] = ()
    """Folders that were passed over at the restore."""
    waited_s: float = 0.0
    """Of `stall_s`, until the save before was on disk."""
    staged_s: float = 0.0
    """CLOCK_MONOTONIC when the state had been copied."""
    purpose: Purpose = Purpose()


@dataclass(frozen=True, slots=True)
class Order:
    """Copy `files` (name -> image) to storage. `error`: this rank has nothing to give, and why."""

    root: str
    rank: int
    attempt: int
    step: int
    repetition: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    upload: bool = False
    """It may be uploaded at once: none was under way."""
    publish: Publish | None = None

    @property
    def name(self) -> FolderName:
        return FolderName(self.attempt, self.step, self.repetition)

    @property
    def aside(self) -> Path:
        return Path(self.root) / self.name.aside

    def encode(self) -> bytes:
        return json.dumps(self, default=_fields).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Setting:
    """Told once, at the persister's start. `task_folder`: of the shim; empty outside Paceline."""

    root: str
    task_folder: str
    scratch: str
    """Folder of images that nobody needs when the rank and its persister are gone; empty: there is none."""
    retention: Retention
    attempt: int
    continues: bool
    url: str = ""
    """Where checkpoints are uploaded; empty: nowhere."""
    scrub_s: float = 0.0
    """How often those that are kept are read again; 0: never."""
    elastic: bool = False
    """The next attempt may have more or fewer ranks."""
    job: int = 0
    peer: Door | None = None
    """Of the memory that keeps this rank's files, too."""
    first_of_node: bool = False

    def encode(self) -> bytes:
        return json.dumps(self, default=_fields).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """`error` empty: this rank's files are on disk and, at rank 0, the checkpoint is published."""

    name: str
    error: str = ""
    persist_s: float = 0.0
    """From the copy until it was on disk, at rank 0."""
    told: bool = True
    """False: it died, and neither stderr nor the timeline knows."""


def _fields(part: Any) -> dict[str, Any]:
    """Of a dataclass, not copied."""
    return {each.name: getattr(part, each.name) for each in dataclasses.fields(part)}


def decode_order(line: bytes) -> Order:
    told = json.loads(line)
    publish = told.pop("publish")
    if publish is not None:
        parents = tuple(Parent(**parent) for parent in publish.pop("parents"))
        purpose = Purpose(**publish.pop("purpose"))
        publish = Publish(**{**publish, "parents": parents, "bad": tuple(publish["bad"]), "purpose": purpose})
    return Order(**told, publish=publish)


def decode_setting(line: bytes) -> Setting:
    told = json.loads(line)
    retention = Retention(**told.pop("retention"))
    peer = told.pop("peer")
    return Setting(**told, retention=retention, peer=Door(**peer) if peer is not None else None)
