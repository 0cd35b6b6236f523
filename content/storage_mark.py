"""Whose a storage folder is, in a file there.

The folder must be the same one at the same path on every node. Where it is not, there is another of that
name or none: what a job saved in it, the next attempt on another node would not find.
"""

import os
from pathlib import Path
from typing import Final

from .errors import ForeignStorage

FILE: Final = "cluster-id"


def claim(storage: Path, cluster_id: str) -> None:
    """Mark it as that cluster's, durably, if it is nobody's yet. Raises ForeignStorage if another's, and
    OSError."""
    file = storage / FILE
    if not _owner(storage):
        aside = storage / f".{FILE}.{cluster_id}"
        with aside.open("w") as made:
            made.write(f"{cluster_id}\n")
            made.flush()
            os.fsync(made.fileno())
        aside.replace(file)
        folder = os.open(storage, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    owner = _owner(storage)
    if owner != cluster_id:
        raise ForeignStorage(
            f"the storage folder {storage} is that of cluster {owner}, and this is cluster {cluster_id}",
            hint="name another folder with --storage: two clusters would write over each other's jobs."
            f" If {owner} is no more, move what is in the folder away, {file} too",
        )


def check(storage: Path, cluster_id: str) -> None:
    """Raises ForeignStorage unless this node has that cluster's there, and OSError."""
    owner = _owner(storage)
    if owner != cluster_id:
        found = f"it is that of cluster {owner}" if owner else f"there is no {FILE} in it"
        raise ForeignStorage(
            f"{storage} on this node is not the storage folder of cluster {cluster_id}: {found}",
            hint="mount it: it must be the same folder, at the same path, on every node",
        )


def _owner(storage: Path) -> str:
    """Empty: nobody's, or there is no such folder."""
    try:
        return (storage / FILE).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
