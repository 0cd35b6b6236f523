"""Trees as files in a folder: made new, and removed."""

import os
import shutil
from collections.abc import Callable
from typing import Final

from .manifest import Entry, Manifest

_NOFOLLOW: Final = os.O_NOFOLLOW | os.O_CLOEXEC


def write_tree(manifest: Manifest, into: str, place: Callable[[Entry, str], None]) -> None:
    """Make the folder `into` with all that a manifest names; `place` makes a file, given its path. Links come
    last, so that no file is written through one. Raises FileExistsError, and what `place` raises."""
    os.mkdir(into, 0o755)  # noqa: PTH102
    made = {""}
    for path in (*(entry.path for entry in manifest.files), *(link.path for link in manifest.links)):
        _make_parents(into, path.rpartition("/")[0], made)
    for entry in manifest.files:
        place(entry, f"{into}/{entry.path}")
    for link in manifest.links:
        os.symlink(link.target, f"{into}/{link.path}")  # noqa: PTH211


def new_file(path: str, mode: int) -> int:
    """A descriptor to write a file with that is not there yet. Raises FileExistsError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW, mode)


def remove_tree(folder: str | os.PathLike[str]) -> None:
    """All of a folder that was made of a tree. Gone already: nothing."""
    shutil.rmtree(folder, ignore_errors=True)


def _make_parents(into: str, folder: str, made: set[str]) -> None:
    if folder in made:
        return
    _make_parents(into, folder.rpartition("/")[0], made)
    os.mkdir(f"{into}/{folder}", 0o755)  # noqa: PTH102
    made.add(folder)
