"""A fork gets the parent's checkpoint as its own: hard links to the same files (copies where storage has
none), made under STORAGE/forks/KEY before the fork is committed. So the parent's retention deletes only its
own names, the fork's only the fork's, and a call that is repeated finds what it made.
"""

import os
import shutil
from pathlib import Path

from msgspec.structs import replace

from ..spec.errors import NotFound
from ..spec.ids import JobId
from .core.job import Checkpoint


def keep_for_fork(storage: Path, key: str, parent: JobId, chosen: Checkpoint) -> Checkpoint:
    """The parent's checkpoint under a name of the fork's own. Raises NotFound when it was just deleted."""
    source = Path(chosen.path)
    target = storage / "forks" / key / source.name
    aside = target.with_name(f".tmp-{target.name}")
    try:
        if not target.exists():
            shutil.rmtree(aside, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, aside, copy_function=_link)
            _sync(aside)
            aside.rename(target)
            _sync(target.parent)
    except (FileNotFoundError, shutil.Error) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise NotFound(
            f"job {parent}'s checkpoint of step {chosen.step} cannot be taken over: {error}",
            hint=f"`pace checkpoints {parent}` lists the others; `pace checkpoint` makes one now",
            job=parent,
            step=chosen.step,
        ) from error
    return replace(chosen, path=str(target), job=chosen.job or parent, url="", damaged={})


def drop_fork(storage: Path, key: str) -> None:
    """What was kept for a fork that will not be."""
    shutil.rmtree(storage / "forks" / key, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # storage without hard links
        shutil.copy2(source, target)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
