"""Images of checkpoints in this node's memory. Each is, byte for byte, the file that is published.

    FOLDER/0/__3_0.distcp       what rank 3 has staged; FOLDER/1 likewise: they take turns
    FOLDER/0/__3_0.distcp.of    the checkpoint that it holds; not there while it is written
    FOLDER/0/__3_of.NAME        what rank 3 publishes as NAME: a DeepSpeed engine's files
    FOLDER/peers/step-00000040.a2/__1_0.distcp    kept for another node (agent/peer_receiver.py)

A label only says where to look: an image counts when its size and hash are those in the manifest of an
accepted checkpoint. So a partial, a stale or a strange one is never taken. torch is not needed here.
"""

import contextlib
import errno
import mmap
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from ..proto.peer_door import PEERS, is_plain
from ..spec.folder_names import FolderName
from . import manifest
from .manifest import FileEntry
from .mapping import map_file, take_huge_pages

SLOTS = 2
_LABEL = ".of"
_MAKINGS = 3
_ATTACHED = re.compile(r"__\d+_of\.")


class Image:
    """One file, mapped: `size_bytes`, and what `write` puts beyond them. `on_close` undoes what was made of
    the mapping.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Takes the memory now: a full tmpfs is an OSError here, and no SIGBUS at a later copy."""
        self.path = path
        self.on_close: Callable[[], None] | None = None
        make_private(path.parent)
        remove_label(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            take_huge_pages(self._fd, size_bytes)
            os.posix_fallocate(self._fd, 0, max(1, size_bytes))
            self.map = map_file(self._fd, max(1, size_bytes), mmap.MAP_POPULATE)
        except OSError:
            os.close(self._fd)
            path.unlink(missing_ok=True)
            raise

    def write(self, offset: int, data: bytes) -> None:
        """Also beyond the mapped part."""
        while data:
            written = os.pwrite(self._fd, data, offset)
            data, offset = data[written:], offset + written

    def end_at(self, size_bytes: int) -> None:
        """Nothing lies behind. The mapped part stays."""
        os.ftruncate(self._fd, size_bytes)

    def close(self) -> None:
        """The mapping goes with the last view of it."""
        if self.on_close is not None:
            self.on_close()
        os.close(self._fd)


class Places:
    """Where images are made: the first of `folders` that has room. `on_fallback` hears why not the first."""

    def __init__(self, folders: Sequence[Path], on_fallback: Callable[[str], None]) -> None:
        self._folders = folders
        self._on_fallback = on_fallback

    def make(self, slot: int, name: str, size_bytes: int) -> Image:
        """Raises OSError when none has room."""
        *others, last = self._folders
        for folder in others:
            try:
                return Image(folder / str(slot) / name, size_bytes)
            except OSError as error:
                self._on_fallback(f"{folder}: {error.strerror} ({_room(folder, size_bytes)})")
        return Image(last / str(slot) / name, size_bytes)

    def write(self, slot: int, name: str, fill: Callable[[BinaryIO], None]) -> Path:
        """One whose length is known when `fill` has written it. Raises OSError when none has room."""
        *others, last = self._folders
        for folder in others:
            try:
                return _write(folder / str(slot) / name, fill)
            except OSError as error:
                self._on_fallback(f"{folder}: {error.strerror} (an image of {name})")
        return _write(last / str(slot) / name, fill)


def attached_name(rank: int, name: str) -> str:
    """Of the image of a file that a rank publishes under a name that is not ours."""
    return f"__{rank}_of.{name}"


def make_private(folder: Path) -> None:
    """With all that is missing above it. The agent may take one above away in between: once more."""
    for _ in range(_MAKINGS):
        missing = [part for part in (folder, *folder.parents) if not part.exists()]
        try:
            for part in reversed(missing):
                part.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError:
            continue
        return
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def set_label(path: Path, name: FolderName) -> None:
    """What the image holds is whole, and of that checkpoint."""
    fd = os.open(f"{path}{_LABEL}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, str(name).encode())
    finally:
        os.close(fd)


def remove_label(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}{_LABEL}")  # noqa: PTH108 - training stands still meanwhile, and a Path costs more


def find(folder: Path | None, name: FolderName) -> dict[str, Path]:
    """File name -> image that says to be of this checkpoint, this node's own or one kept for another."""
    found: dict[str, Path] = {}
    for label in folder.glob(f"[0-9]/*{_LABEL}") if folder is not None else ():
        try:
            if label.read_text() == str(name):
                image = label.with_name(label.name.removesuffix(_LABEL))
                found[_ATTACHED.sub("", image.name)] = image
        except (OSError, ValueError):  # goes away just now, or is damaged: then it is none
            continue
    kept = folder / PEERS / str(name) if folder is not None else None
    for path in kept.iterdir() if kept is not None and kept.is_dir() else ():
        if is_plain(path.name):
            found.setdefault(path.name, path)
    return found


def map_image(path: Path) -> memoryview:
    """It could be written to, as torch wants of what it reads; nobody does. Raises OSError, for an empty one,
    too.
    """
    with path.open("r+b") as file:  # not populated: whoever reads it first does that, beside other threads
        return map_file(file.fileno(), os.fstat(file.fileno()).st_size)


def map_verified(path: Path, entry: FileEntry) -> memoryview | str:
    """Mapped, if it is as the manifest says; else what is wrong."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes or not size_bytes:
            return f"{size_bytes} bytes, expected {entry.size_bytes}"
        mapped = map_image(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return str(error.strerror)
    return mapped if manifest.hash_bytes(mapped) == entry.xxh3 else "hash differs"


def slot_of(path: Path) -> int | None:
    """None: it is not this node's own."""
    return int(path.parent.name) if path.parent.name.isdigit() else None


def keep_only(folder: Path, prefixes: Sequence[str]) -> None:
    """Let go of images whose ranks are not here (any more)."""
    for path in folder.glob("[0-9]/__*"):
        if not path.name.startswith(tuple(prefixes)):
            path.unlink(missing_ok=True)


def drop(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, fill: Callable[[BinaryIO], None]) -> Path:
    """Over the memory that an image of that name has."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_label(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "r+b") as file:
            fill(file)
            file.truncate()
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def _room(folder: Path, wanted_bytes: int) -> str:
    try:
        status = os.statvfs(folder if folder.exists() else folder.parent)
    except OSError as error:
        return str(error.strerror)
    free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    return f"{wanted_bytes / 1e6:,.1f} MB wanted, {free / 1e6:,.1f} of {total / 1e6:,.1f} MB free"
