"""A checkpoint's manifest: what it is of, which files it has, their sizes and hashes.

`manifest.json` is written last, inside the folder that is still aside, so a folder with a manifest under its
final name is complete. Files are named in it plainly, never with a path. Nothing of a checkpoint is
interpreted before its manifest has been checked against what was accepted, and its files against the
manifest. torch is not needed here.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from .errors import Damaged, StorageFailed
from .metrics import to_json

NAME = "manifest.json"
FORMAT = 2
_FORMATS = (1, 2)
"""The first has no data position, git commit and parents."""
MANIFEST_BYTES_MAX = 64 * 1024 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: its size and the 128-bit xxh3 of its bytes, in hex."""

    size_bytes: int
    xxh3: str


@dataclass(frozen=True, slots=True)
class Parent:
    """A checkpoint that this one was made from."""

    step: int
    attempt: int
    path: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """`contents` says for each name given to `save` what kind of thing it was."""

    job: int
    attempt: int
    step: int
    world_size: int
    files: Mapping[str, FileEntry]
    contents: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: Any = None
    """Where in the data the run stood, if it said so: plain JSON."""
    git_commit: str = ""
    """Of the code's folder."""
    parents: tuple[Parent, ...] = ()
    """The checkpoints that the run went on from."""

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files.values())


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON: equal manifests have equal bytes, hence equal hashes."""
    document = {
        "format": FORMAT,
        "job": manifest.job,
        "attempt": manifest.attempt,
        "step": manifest.step,
        "world_size": manifest.world_size,
        "contents": dict(manifest.contents),
        "metrics": to_json(manifest.metrics),
        "data": manifest.data,
        "git_commit": manifest.git_commit,
        "parents": [dataclasses.asdict(parent) for parent in manifest.parents],
        "files": {name: {"size": e.size_bytes, "xxh3": e.xxh3} for name, e in manifest.files.items()},
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def decode(data: bytes) -> Manifest:
    """Raises ValueError, saying what is wrong, on anything that `encode` does not make."""
    try:
        document = json.loads(data)
        if document["format"] not in _FORMATS:
            raise ValueError(f"is of format {document['format']!r}, this version reads up to {FORMAT}")
        return Manifest(
            job=int(document["job"]),
            attempt=int(document["attempt"]),
            step=int(document["step"]),
            world_size=int(document["world_size"]),
            files={
                _plain(name): FileEntry(int(entry["size"]), str(entry["xxh3"]))
                for name, entry in document["files"].items()
            },
            contents={str(name): str(kind) for name, kind in document["contents"].items()},
            metrics={str(name): float(value) for name, value in document["metrics"].items()},
            data=document.get("data"),
            git_commit=str(document.get("git_commit", "")),
            parents=tuple(Parent(**parent) for parent in document.get("parents", ())),
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"is not a manifest: {type(error).__name__}: {error}") from None


def new_hash() -> xxhash.xxh3_128:
    return xxhash.xxh3_128()


def hash_bytes(data: bytes | memoryview) -> str:
    return xxhash.xxh3_128(data).hexdigest()


def hash_file(path: Path) -> FileEntry:
    """Size and hash of what is in the file now."""
    digest, size_bytes = new_hash(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return FileEntry(size_bytes, digest.hexdigest())


def sync_file(path: Path) -> None:
    """fsync what is in it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(folder: Path, manifest: Manifest) -> str:
    """Write and fsync the manifest; its hash."""
    data = encode(manifest)
    with (folder / NAME).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hash_bytes(data)


def read(folder: Path, manifest_hash: str | None) -> Manifest:
    """The folder's manifest; with a hash, only if it is that very one. Raises StorageFailed, saying what is
    wrong.
    """
    return accepted(read_bytes(folder / NAME), manifest_hash)


def accepted(data: bytes, manifest_hash: str | None) -> Manifest:
    """As `read`, of what was read."""
    if manifest_hash is not None and hash_bytes(data) != manifest_hash:
        raise Damaged(
            f"{NAME} is not the one that was accepted: hash {hash_bytes(data)}, expected {manifest_hash}"
        )
    try:
        return decode(data)
    except ValueError as error:
        raise StorageFailed(f"{NAME} {error}") from None


def read_bytes(path: Path) -> bytes:
    """A small file. Raises StorageFailed."""
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_BYTES_MAX + 1)
    except FileNotFoundError:
        if path.parent.is_dir():
            raise Damaged(f"no {path.name}") from None
        raise StorageFailed("no such folder") from None
    except OSError as error:
        raise StorageFailed(f"{path.name}: {error.strerror}") from error
    if len(data) > MANIFEST_BYTES_MAX:
        raise StorageFailed(f"{path.name} is longer than {MANIFEST_BYTES_MAX} bytes")
    return data


def difference(found: FileEntry, entry: FileEntry) -> str:
    """What is wrong with what was found; empty when it is as the manifest says."""
    if found.size_bytes != entry.size_bytes:
        return f"{found.size_bytes} bytes, expected {entry.size_bytes}"
    return "" if found.xxh3 == entry.xxh3 else "hash differs"


def damage_of(path: Path, entry: FileEntry) -> str:
    """What is wrong with the file; empty when it is as the manifest says."""
    try:
        check_file(path, entry)
    except StorageFailed as failure:
        return failure.message
    return ""


def check_file(path: Path, entry: FileEntry) -> None:
    """Raises Damaged when it is not as the manifest says, StorageFailed when that cannot be seen just now."""
    try:
        size_bytes = path.stat().st_size
        same_size = size_bytes == entry.size_bytes
        found = hash_file(path) if same_size else FileEntry(size_bytes, "")
    except FileNotFoundError:
        raise (Damaged if path.parent.is_dir() else StorageFailed)("missing") from None
    except OSError as error:
        raise StorageFailed(str(error.strerror)) from error
    if why := difference(found, entry):
        raise Damaged(why)


def _plain(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in (".", "..", NAME):
        raise ValueError(f"names a file {name!r}")
    return name
