"""The folder of checkpoints: names, what is there, publishing by rename, removing.

    step-00000040.a2       complete; .a2 is the attempt; saved again in that attempt: .a2.1 ...
    .tmp-step-00000040.a2  being written, or left by a process that was killed
    .gone-...              being deleted
    .up-step-...           word of ranks whose files are uploaded

A name without a leading dot appears only by rename, after all that is in it is on disk.
"""

import os
import shutil
from pathlib import Path

from ..spec.folder_names import ASIDE, FolderName
from .errors import StorageFailed

_GONE = ".gone-"
UPLOADS = ".up-"


def published(root: Path) -> list[FolderName]:
    """The complete ones, newest first; nothing when the folder does not exist."""
    return sorted((name for name in map(FolderName.parse, _entries(root)) if name is not None), reverse=True)


def leftovers(root: Path, before_attempt: int) -> list[Path]:
    """What attempts before this one were writing or deleting when they ended."""
    found = []
    for entry in _entries(root):
        for prefix in (ASIDE, _GONE, UPLOADS):
            name = FolderName.parse(entry.removeprefix(prefix)) if entry.startswith(prefix) else None
            if name is not None and name.attempt < before_attempt:
                found.append(root / entry)
    return found


def next_attempt(root: Path) -> int:
    """One more than any attempt that has left a trace here: a run outside Paceline never meets its
    forerunners' names.
    """
    names = (FolderName.parse(entry.removeprefix(ASIDE).removeprefix(_GONE)) for entry in _entries(root))
    return 1 + max((name.attempt for name in names if name is not None), default=0)


def publish(root: Path, name: FolderName) -> Path:
    """Give the finished folder its name, durably. Its files have been fsynced by whoever wrote them."""
    aside, final = root / name.aside, root / str(name)
    if final.exists():
        raise StorageFailed(f"{final} exists already", path=str(final))
    sync_folder(aside)
    aside.rename(final)
    sync_folder(root)
    return final


def remove(path: Path) -> None:
    """Take it out of sight at once, then delete it: no moment shows half a checkpoint."""
    gone = path if path.name.startswith(_GONE) else path.with_name(_GONE + path.name.removeprefix(ASIDE))
    if gone != path:
        path.rename(gone)
    shutil.rmtree(gone)


def sync_folder(path: Path) -> None:
    """fsync a folder, so that the names in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entries(root: Path) -> list[str]:
    try:
        return os.listdir(root)  # noqa: PTH208 - names are wanted, and many: no Path per entry
    except FileNotFoundError:
        return []
