"""Opens the state folder: its folders, and the store in it.

A module of its own, so that a starting process can do this in a thread while it still imports the rest: the
check of the store's file is SQLite's work and leaves the interpreter free.
"""

import contextlib
from pathlib import Path

from ..content.storage_mark import claim
from ..spec.errors import StoreFailure
from .config import SchedulerConfig
from .store import open_store
from .store.base import Store


def open_state(config: SchedulerConfig) -> Store:
    """The locked, checked and migrated store, whose cluster's the storage folder is. Raises StoreFailure and
    ForeignStorage."""
    _make_folders(config)
    store = open_store(config.store_location)
    with contextlib.ExitStack() as undo:
        undo.callback(store.close)
        _claim_storage(config.storage_folder, store.cluster_id)
        undo.pop_all()
    return store


def _claim_storage(folder: Path, cluster_id: str) -> None:
    try:
        claim(folder, cluster_id)
    except OSError as error:
        raise StoreFailure(
            f"cannot write to the storage folder {folder}: {error.strerror}",
            hint="name a folder that the scheduler's user may write to, with --storage",
        ) from error


def _make_folders(config: SchedulerConfig) -> None:
    folders = {config.state: 0o755, config.storage_folder: 0o755, config.state / "logs": 0o700}
    for folder, mode in folders.items():
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreFailure(
                f"cannot make the folder {folder}: {error.strerror}",
                hint="name a folder that the scheduler's user may write to, with --state or --storage",
            ) from error
