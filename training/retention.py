"""Which checkpoints may go: a pure choice.

One goes only when the scheduler is known to have accepted a newer one of this attempt: what a cut-off attempt
writes is never accepted, so it deletes nothing that its successor may be restoring from. The newest accepted
one always stays.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..spec.folder_names import FolderName
from ..spec.retention import RECORD_MAX, Retention, reasons_to_keep


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint that is on disk. `seq` is the journal entry that told of it; None: accepted before this
    attempt.
    """

    step: int
    path: Path
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    seq: int | None = None
    good: bool = True
    """False: it was rejected at the restore, or found damaged since. It fills no place, and goes when the
    others may.
    """
    manifest_hash: str | None = None

    def accepted(self, acked_seq: int) -> bool:
        return self.seq is None or self.seq <= acked_seq


def choose_removals(kept: Sequence[Kept], retention: Retention, acked_seq: int) -> list[Kept]:
    """Those of `kept` (oldest first) that the policy does not want and nobody can need."""
    if retention.keep_last <= 0 or not any(one.seq is not None and one.seq <= acked_seq for one in kept):
        return []
    accepted = [one for one in kept if one.accepted(acked_seq)]
    good = [one for one in accepted if one.good]
    whys = reasons_to_keep(good, retention)
    wanted = {one.path for one, why in zip(good, whys, strict=True) if why}
    return [one for one in accepted if one.path not in wanted]


def is_before_record(name: FolderName, known: Collection[FolderName]) -> bool:
    """It may be one of those that stay for ever, older than all that are known."""
    return len(known) >= RECORD_MAX and name < min(known)
