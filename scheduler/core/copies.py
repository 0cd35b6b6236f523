"""What is known of a checkpoint's copies: in the job's folder (`FOLDER`), and at the job's URL (`UPLOAD`).

A copy that was found damaged counts no more; a checkpoint without a good copy is not offered for a restore,
but for the one that a fork begins from.
"""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from ...spec.ids import Micros
from .checkpoint_events import CheckpointDamaged, CheckpointUploaded
from .effects import Plan
from .job import Checkpoint, Job
from .stimuli import Damaged, Entry, Uploaded

FOLDER: Final = "storage"
UPLOAD: Final = "upload"
MEMORY: Final = "memory"
PEER_MEMORY: Final = "peer memory"
DISK: Final = "disk"
"""Where the image of a checkpoint may have been made."""


def good_copies(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Those that are not known to be damaged."""
    copies = (FOLDER, UPLOAD) if checkpoint.url else (FOLDER,)
    return tuple(copy for copy in copies if copy not in checkpoint.damaged)


def is_good(checkpoint: Checkpoint) -> bool:
    """True while a copy is not known to be damaged."""
    return bool(good_copies(checkpoint))


def newest_good(checkpoints: Sequence[Checkpoint]) -> int:
    """Its step; -1: there is none."""
    return next((one.step for one in checkpoints if is_good(one)), -1)


def is_in_memory(job: Job, checkpoint: Checkpoint) -> bool:
    """Of a job that has its nodes, the one that this attempt made last: the image of the one before may be
    written over by now."""
    is_newest = checkpoint in job.course.checkpoints[:1]
    return job.placed and is_newest and checkpoint.attempt == job.attempt and checkpoint.image == MEMORY


def offered(checkpoints: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
    """What a start may go on from, newest first: the good ones. Where none is, what a fork was to begin from,
    so that it fails on it: it does not start anew."""
    good = tuple(one for one in checkpoints if is_good(one))
    return good or tuple(one for one in checkpoints if one.job is not None)


def on_copy(job: Job, entry: Entry, said: Uploaded | Damaged, now_us: Micros) -> Plan[None]:
    task, seq = entry.task, entry.seq
    if isinstance(said, Uploaded):
        uploaded = CheckpointUploaded(
            now_us, task, seq, said.step, said.path, said.url, said.duration_us, said.why
        )
        return Plan(None, (uploaded,))
    newest = newest_good(with_damage(job.course.checkpoints, said.path, said.copy, said.why))
    damaged = CheckpointDamaged(now_us, task, seq, said.step, said.path, said.copy, said.why, newest)
    return Plan(None, (damaged,))


def with_upload(checkpoints: Sequence[Checkpoint], path: str, url: str) -> tuple[Checkpoint, ...]:
    return tuple(replace(one, url=url) if one.path == path else one for one in checkpoints)


def with_damage(checkpoints: Sequence[Checkpoint], path: str, copy: str, why: str) -> tuple[Checkpoint, ...]:
    return tuple(
        replace(one, damaged={**one.damaged, copy: why}) if one.path == path else one for one in checkpoints
    )
