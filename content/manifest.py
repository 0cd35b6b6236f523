"""A tree as its manifest says: files by path with size, mode and hash, and links within the tree.

Pure. One text for one tree: sorted, canonical JSON; its BLAKE3 is the tree's id. A Manifest that exists was
checked: its paths are safe, none stands twice, none is below a file or a link, and it is within its bounds.
Folders are those of the paths: an empty one is not kept.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from blake3 import blake3

from .errors import BadManifest, TreeTooLarge
from .paths import HASH, all_safe, safe_link

VERSION: Final = 1
PLAIN: Final = 0o644
EXECUTABLE: Final = 0o755


class Entry(NamedTuple):
    """A file. `mode` is PLAIN or EXECUTABLE: neither set-uid nor anything else comes through."""

    path: str
    size: int
    mode: int
    hash: str


class Link(NamedTuple):
    """A symbolic link within the tree."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one tree."""

    files_max: int = 100_000
    bytes_max: int = 1 << 40
    file_bytes_max: int = 1 << 38
    ratio_max: int = 1000
    """Bytes of the tree to bytes that are stored for it: the same blob many times over is a bomb, too."""
    ratio_from_bytes: int = 1 << 30
    """Smaller trees may repeat themselves as they like."""
    manifest_bytes_max: int = 15 << 20

    @property
    def of_some(self) -> "Bounds":
        """Of some of a tree's files: what repeats itself is judged when all of them are there."""
        return replace(self, ratio_from_bytes=self.bytes_max)


BOUNDS: Final = Bounds()


@dataclass(frozen=True, slots=True)
class Manifest:
    """Made by `manifest_of` and `read_manifest`."""

    files: tuple[Entry, ...]
    links: tuple[Link, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def blobs(self) -> dict[str, int]:
        """What is stored: hash -> size."""
        return {hash_: size for _, size, _, hash_ in self.files}

    def to_bytes(self) -> bytes:
        """The one text of this tree."""
        plain = {"files": self.files, "links": self.links, "version": VERSION}
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


@dataclass(frozen=True, slots=True)
class Change:
    """What another tree becomes this one by."""

    new: Manifest
    """The files and links that are not as they were there."""
    gone: tuple[str, ...]
    """The paths that are not here any more."""


def tree_id(manifest: Manifest) -> str:
    """64 hex digits."""
    return hash_of(manifest.to_bytes())


def hash_of(data: bytes) -> str:
    return blake3(data).hexdigest()


def manifest_of(files: Iterable[Entry], links: Iterable[Link] = (), bounds: Bounds = BOUNDS) -> Manifest:
    """In order. Raises UnsafePath, BadManifest, TreeTooLarge."""
    made = Manifest(tuple(sorted(files)), tuple(sorted(links)))
    _check(made, bounds)
    return made


def read_manifest(data: bytes, bounds: Bounds = BOUNDS) -> Manifest:
    """Of bytes from anywhere. Raises UnsafePath, BadManifest, TreeTooLarge."""
    check_text(data, bounds)
    made = written_manifest(data)
    if made.to_bytes() != data:
        raise BadManifest("this is not a manifest in its canonical form")
    _check(made, bounds)
    return made


def check_text(data: bytes, bounds: Bounds = BOUNDS) -> None:
    """Raises TreeTooLarge for a manifest that nobody would take."""
    if len(data) > bounds.manifest_bytes_max:
        raise TreeTooLarge(f"a manifest of {len(data)} bytes; at most {bounds.manifest_bytes_max} are taken")


def written_manifest(data: bytes) -> Manifest:
    """Of the text of one that was checked then. Raises BadManifest where it is none."""
    try:
        plain = json.loads(data)
        if plain["version"] != VERSION:
            raise ValueError(f"version {VERSION} is known here")
        return Manifest(tuple(map(_entry, plain["files"])), tuple(map(_link, plain["links"])))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadManifest(f"this is not a manifest: {type(error).__name__}: {str(error)[:200]}") from None


def change_between(before: Manifest, now: Manifest) -> Change:
    files, links = set(before.files), set(before.links)
    new = Manifest(
        tuple(entry for entry in now.files if entry not in files),
        tuple(link for link in now.links if link not in links),
    )
    return Change(new, tuple(sorted(_paths(before) - _paths(now))))


def changed(before: Manifest, change: Change, bounds: Bounds = BOUNDS) -> Manifest:
    """The tree that it becomes. Raises UnsafePath, BadManifest, TreeTooLarge."""
    other = _paths(change.new).union(change.gone)
    files = [entry for entry in before.files if entry.path not in other]
    links = [link for link in before.links if link.path not in other]
    return manifest_of((*files, *change.new.files), (*links, *change.new.links), bounds)


def _paths(manifest: Manifest) -> set[str]:
    return {entry.path for entry in manifest.files}.union(link.path for link in manifest.links)


def _entry(plain: Any) -> Entry:
    path, size, mode, hash_ = plain
    kinds = (type(path), type(size), type(mode), type(hash_))
    if kinds != (str, int, int, str):
        raise TypeError(f"a file's entry is a path, a size, a mode and a hash, not {kinds}")
    return Entry(path, size, mode, hash_)


def _link(plain: Any) -> Link:
    path, target = plain
    if type(path) is not str or type(target) is not str:
        raise TypeError("a link's entry is a path and a target")
    return Link(path, target)


def _check(made: Manifest, bounds: Bounds) -> None:
    count, size = len(made.files) + len(made.links), made.size
    if count > bounds.files_max:
        raise TreeTooLarge(f"a tree of {count} files; at most {bounds.files_max} are taken", files=count)
    all_safe(entry.path for entry in made.files)
    for path, bytes_, mode, hash_ in made.files:
        if mode not in (PLAIN, EXECUTABLE):
            raise BadManifest(f"{path!r} has mode {mode:04o}; a file's is 0644 or 0755")
        if bytes_ < 0 or HASH.fullmatch(hash_) is None:
            raise BadManifest(f"{path!r} has no hash of 64 hex digits, or a size below 0")
        if bytes_ > bounds.file_bytes_max:
            raise too_large_a_file(path, bytes_, bounds)
    all_safe(link.path for link in made.links)
    for link in made.links:
        safe_link(link.path, link.target)
    if size > bounds.bytes_max:
        raise TreeTooLarge(f"a tree of {size} bytes; at most {bounds.bytes_max} are taken", bytes=size)
    _check_places(made)
    _check_blobs(made, size, bounds)


def too_large_a_file(path: str, size: int, bounds: Bounds) -> TreeTooLarge:
    return TreeTooLarge(
        f"{path} has {size} bytes; a file may have {bounds.file_bytes_max}", path=path, bytes=size
    )


def _check_places(made: Manifest) -> None:
    """Each path once, in order, and below folders only."""
    files, links = [one.path for one in made.files], [one.path for one in made.links]
    taken = {*files, *links}
    if len(taken) != len(files) + len(links):
        raise BadManifest("a path stands twice in this manifest")
    if files != sorted(files) or links != sorted(links):
        raise BadManifest("the paths of this manifest are not in order")
    checked: set[str] = set()
    for path in taken:
        parent = path.rpartition("/")[0]
        while parent and parent not in checked:
            if parent in taken:
                raise BadManifest(f"{path!r} is below {parent!r}, which is no folder")
            checked.add(parent)
            parent = parent.rpartition("/")[0]


def _check_blobs(made: Manifest, size: int, bounds: Bounds) -> None:
    stored = made.blobs()
    for path, bytes_, _, hash_ in made.files:
        if stored[hash_] != bytes_:
            raise BadManifest(f"{path!r} has another size than a file of the same hash")
    stored_bytes = sum(stored.values())
    if size > bounds.ratio_from_bytes and size > bounds.ratio_max * stored_bytes:
        raise TreeTooLarge(
            f"a tree of {size} bytes of which {stored_bytes} are stored; it may have at most"
            f" {bounds.ratio_max} times as many",
            bytes=size,
        )
