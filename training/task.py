"""What the scheduler told this task (`task.json`): which checkpoints count, and how many to keep.

Only these checkpoints may ever be restored inside Paceline, each bound to its manifest by a hash, so that
what another job or a stale attempt left in the folder is never looked at. Read-only.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ..spec.retention import KEEP_ALL, Retention
from .errors import InvalidEnvironment


@dataclass(frozen=True, slots=True)
class AcceptedCheckpoint:
    """One that the scheduler accepted from an attempt that was current then."""

    step: int
    attempt: int
    path: Path
    manifest_hash: str
    uploaded: bool = False
    job: int = 0
    """Whose it is, where this job was forked from it; 0: its own."""
    stall_s: float = 0.0
    persist_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Task:
    """The part of StartTask that training needs. `checkpoints` are newest first."""

    checkpoints: tuple[AcceptedCheckpoint, ...] = ()
    retention: Retention = KEEP_ALL
    when_busy: str = "wait"
    """At a save while the one before is not on disk yet: "wait" for it, or "skip" this one."""
    url: str = ""
    """Where this job's checkpoints are uploaded; empty: nowhere."""
    scrub_s: float = 0.0
    """How often those that are kept are read again; 0: never."""
    peer_memory: bool = False
    """Files of checkpoints are kept in the memory of other nodes of the gang, too."""
    save_every: str = ""
    """spec.every; empty: as the script says."""
    mtbf_s: float = 0.0
    git_commit: str = ""
    """Of the code, where it was packed from a checkout."""
    elastic: bool = False
    """The next attempt may have more or fewer ranks."""


def read_task(folder: Path) -> Task:
    """Read `task.json` of the task's folder; int64 are strings there (protobuf's JSON mapping)."""
    path = folder / "task.json"
    try:
        document = json.loads(path.read_bytes())
        return Task(
            checkpoints=tuple(
                AcceptedCheckpoint(
                    step=int(entry.get("step", 0)),
                    attempt=int(entry.get("attempt", 0)),
                    path=Path(entry["path"]),
                    manifest_hash=str(entry["manifest_hash"]),
                    uploaded=bool(entry.get("uploaded", False)),
                    job=int(entry.get("job", 0)),
                    stall_s=float(entry.get("stall_s", 0)),
                    persist_s=float(entry.get("persist_s", 0)),
                )
                for entry in document.get("checkpoints", ())
            ),
            retention=Retention(
                keep_last=int(document.get("keep_last", 0)),
                keep_best=int(document.get("keep_best", 0)),
                best_metric=str(document.get("best_metric", "")),
                keep_every=int(document.get("keep_every", 0)),
            ),
            when_busy=str(document.get("when_busy") or "wait"),
            url=str(document.get("checkpoint_url", "")),
            scrub_s=float(document.get("scrub_s", 0.0)),
            peer_memory=bool(document.get("peer_memory", False)),
            save_every=str(document.get("save_every", "")),
            mtbf_s=float(document.get("mtbf_s", 0)),
            git_commit=str(document.get("git_commit", "")),
            elastic=bool(document.get("elastic", False)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidEnvironment(
            f"{path} cannot be read: {type(error).__name__}: {error}",
            hint="the agent writes it before the start; is PACELINE_TASK_FOLDER a task's folder?",
            path=str(path),
        ) from error


def read_acked_seq(folder: Path) -> int:
    """The journal seq up to which the scheduler has committed what this task reported; 0: nothing yet."""
    try:
        return int((folder / "acked").read_bytes() or b"0")
    except (FileNotFoundError, ValueError):  # not acknowledged yet, or seen in the middle of its first write
        return 0
