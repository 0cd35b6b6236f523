"""Bringing a checkpoint's file here: it stays only if it is as the manifest says. No torch here."""

import os
from collections.abc import Callable
from pathlib import Path

from . import manifest
from .errors import StorageFailed
from .manifest import FileEntry

Take = Callable[[bytes | memoryview], None]


def fetch(target: Path, entry: FileEntry, where: str, read: Callable[[Take], None]) -> str:
    """What is wrong; empty: `target` is whole and good. `read` gives all that is `where`, chunk by chunk, or
    raises a StorageFailed that says so.
    """
    digest, size_bytes = manifest.new_hash(), 0
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with target.open("wb") as sink:
            os.posix_fallocate(
                sink.fileno(), 0, max(1, entry.size_bytes)
            )  # no room is an error here, and now

            def take(chunk: bytes | memoryview) -> None:
                nonlocal size_bytes
                size_bytes += len(chunk)
                if size_bytes > entry.size_bytes:
                    raise StorageFailed(f"more than {entry.size_bytes} bytes at {where}")
                digest.update(chunk)
                sink.write(chunk)

            read(take)
        difference = manifest.difference(FileEntry(size_bytes, digest.hexdigest()), entry)
        problem = f"{difference} at {where}" if difference else ""
    except StorageFailed as failure:
        problem = failure.message
    except OSError as failure:
        problem = f"{target}: {failure.strerror}"
    if problem:
        target.unlink(missing_ok=True)
    return problem
