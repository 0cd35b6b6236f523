"""Checkpoints: asked for, accepted, copied elsewhere, found damaged, gone back to."""

from collections.abc import Mapping

from msgspec import Struct, field

from ...spec.ids import Attempt, JobId, Micros, TaskKey
from .job import NEVER


class CheckpointRequested(Struct, frozen=True):
    """`number` is this event's own seq."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    number: int
    key: str
    by: str = ""


class CheckpointAccepted(Struct, frozen=True):
    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    path: str
    manifest_hash: str
    size_bytes: int = 0
    stall_us: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    removed_steps: tuple[int, ...] = ()
    persist_us: int = 0
    staged_us: Micros = NEVER
    """When the state was copied: steps after that are not in it. 0: not known, taken for `at_us`."""
    why: str = ""
    request: int = 0
    """CheckpointRequested.number that it answers."""
    step_us: float = 0.0
    """Of an elastic gang: the mean time of its steps in this attempt; 0: not known."""
    faster: str = ""
    """What its new size has brought, when that is measured first."""
    waited_us: int = 0
    """Of `stall_us`, until the one before was on disk."""
    image: str = ""
    """Where rank 0's image of it is: "memory", "disk"; empty: not known."""


class CheckpointFailed(Struct, frozen=True):
    """Training could not write it and goes on without; nothing of it is left."""

    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    why: str
    request: int = 0


class CheckpointUploaded(Struct, frozen=True):
    """`why` not empty: it could not be, and stays where it was."""

    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    path: str
    url: str
    duration_us: int = 0
    why: str = ""


class PeerMemoryTold(Struct, frozen=True):
    """Where a rank's part of checkpoints is kept beyond its own node; `why` not empty: why it is not."""

    at_us: Micros
    task: TaskKey
    seq: int
    rank: int
    peer: str
    step: int
    size_bytes: int
    duration_us: int
    why: str = ""


class CheckpointDamaged(Struct, frozen=True):
    """One copy of it was found so, long after it was good."""

    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    path: str
    copy: str
    why: str
    newest_good: int = -1
    """Step of the checkpoint that a restore would take now; -1: there is none."""


class CheckpointRestored(Struct, frozen=True):
    at_us: Micros
    task: TaskKey
    seq: int
    step: int
    """-1: none was good, the run starts anew."""
    path: str = ""
    duration_us: int = 0
    rejected: tuple[str, ...] = ()
    tier: str = ""
    """From where it was read, and why not from a faster place."""


class RestoreRequested(Struct, frozen=True):
    """The job goes on from there; what was accepted since does not count any more."""

    at_us: Micros
    job: JobId
    attempt: Attempt
    step: int
    path: str
    by: str = ""
