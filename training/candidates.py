"""Which checkpoints count for this run, newest first.

Inside Paceline: those that the scheduler accepted, each with its manifest's hash, and no other. Outside: what
is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..spec.folder_names import FolderName
from . import folders, manifest
from .environment import Environment
from .errors import StorageFailed
from .manifest import FileEntry, Manifest
from .task import Task

METADATA = ".metadata"


class SmallFiles(Protocol):
    """Who has manifests and metadata beside storage, and how they are read there."""

    def read_small(self, name: FolderName, file: str, entry: FileEntry | None = None) -> bytes:
        """Raises StorageFailed."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """`manifest_hash` None: outside Paceline, where no scheduler has said which manifest it is."""

    path: Path
    step: int
    attempt: int
    manifest_hash: str | None = None
    job: int = 0
    """Of another job, which this one was forked from; 0: its own."""

    @property
    def name(self) -> FolderName:
        """As its folder and its images are called."""
        return FolderName.parse(self.path.name) or FolderName(self.attempt, self.step)

    def __str__(self) -> str:
        return f"step {self.step} (attempt {self.attempt})"


def accepted(task: Task) -> list[Candidate]:
    """As the scheduler gave them."""
    return [
        Candidate(one.path, one.step, one.attempt, one.manifest_hash, one.job) for one in task.checkpoints
    ]


def found(root: Path) -> list[Candidate]:
    """Every complete one in the folder."""
    return [Candidate(root / str(name), name.step, name.attempt) for name in folders.published(root)]


def check(
    candidate: Candidate, environment: Environment, copy: Path | None, farther: Sequence[SmallFiles]
) -> Manifest:
    """Its manifest: this node's copy of it, the one in storage, or that of who is farther. Raises
    StorageFailed, saying why, unless it is the one accepted, and this job's.
    """
    document = _from_copy(candidate, copy) or _read(candidate, farther)
    owner = candidate.job or environment.job
    if environment.managed and document.job != owner:
        whose = f"this was forked from job {owner}" if candidate.job else f"this is job {owner}"
        raise StorageFailed(f"is of job {document.job}, {whose}")
    if document.attempt != candidate.attempt or document.step != candidate.step:
        raise StorageFailed(
            f"holds step {document.step} of attempt {document.attempt}: the folder was swapped"
        )
    if METADATA not in document.files:
        raise StorageFailed(f"{manifest.NAME} names no {METADATA}")
    return document


def _read(candidate: Candidate, farther: Sequence[SmallFiles]) -> Manifest:
    try:
        return manifest.read(candidate.path, candidate.manifest_hash)
    except StorageFailed as failure:
        kind, problems = type(failure), [failure.message]
    for one in farther if candidate.manifest_hash is not None else ():
        try:
            return manifest.accepted(one.read_small(candidate.name, manifest.NAME), candidate.manifest_hash)
        except StorageFailed as failure:
            problems.append(failure.message)
    raise kind("; ".join(problems))


def _from_copy(candidate: Candidate, copy: Path | None) -> Manifest | None:
    """Only with the hash that was accepted is it as good as the one in storage."""
    if copy is None or candidate.manifest_hash is None:
        return None
    try:
        return manifest.read(copy.parent, candidate.manifest_hash)
    except StorageFailed:  # damaged or going: the one in storage counts, and its problems are said
        return None
