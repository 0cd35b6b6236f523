"""Blobs and trees in a folder. What has its final name is whole, never changes, and is verified when read.

    blobs/ab/HASH         a file's bytes
    trees/ab/ID.json      a manifest; all of its blobs are there
    part/                 what is being written; HASH.part of an upload that can go on

Written aside, made durable, renamed. Any number of processes may use one store at once. What a method was
given to keep is durable when it returns.

A file's time is when somebody was last told that it is here, to be kept, give or take FRESH_S; a blob's is
never more than that before the time of a tree that names it. So what is old may go (expiry.py), if nobody
refers to it.
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from blake3 import blake3

from .errors import Damaged, NoContent
from .kernel import clone
from .manifest import (
    BOUNDS,
    Bounds,
    Change,
    Entry,
    Link,
    Manifest,
    changed,
    check_text,
    hash_of,
    manifest_of,
    read_manifest,
    written_manifest,
)
from .paths import safe_hash
from .settling import Settling
from .times import FRESH_S, kept_size, renewed
from .walking import FoundFile, Ignored, unreadable, walk
from .writing import new_file, write_tree

_PIECE_BYTES: Final = 1 << 20
_STALE_PART_S: Final = 7 * 86400.0
_NOFOLLOW: Final = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Lacking:
    """A blob that is not here, and how many of its bytes an earlier upload has left."""

    hash: str
    have_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the blob `hash`, which has `size` in all, from `offset` on."""

    hash: str
    size: int
    offset: int
    data: bytes


class ContentStore:
    """Blocks on the disk: call it in a thread. Methods raise OSError where the disk refuses."""

    def __init__(self, root: Path, bounds: Bounds = BOUNDS) -> None:
        """Nothing is touched before something is written."""
        self.root = root
        self.blobs, self.trees, self._parts = root / "blobs", root / "trees", root / "part"
        self.bounds = bounds
        self._settling = Settling()
        self._has_parts = False

    def tree_path(self, tree: str) -> Path:
        """Where that manifest is, or would be. Raises UnsafePath."""
        return self.trees / safe_hash(tree)[:2] / f"{tree}.json"

    def blob_path(self, hash_: str) -> Path:
        """Where that blob is, or would be. Raises UnsafePath."""
        return Path(self._blob_name(hash_))

    def missing(self, hashes: Iterable[str]) -> list[Lacking]:
        """Those that are not here, each once; the others stay for a while."""
        return [
            Lacking(hash_, self._part_size(hash_))
            for hash_ in dict.fromkeys(hashes)
            if not renewed(self._blob_name(hash_))
        ]

    def has_tree(self, tree: str, older_s: float = FRESH_S) -> bool:
        """Whether it is here with all its blobs; then these stay for a while. Looked at whole where its time
        is older than that; one that is damaged is not."""
        path = str(self.tree_path(tree))
        try:
            if os.stat(path).st_mtime >= time.time() - older_s:  # noqa: PTH116
                return True
            manifest = self.manifest(tree)
        except (FileNotFoundError, NoContent, Damaged):
            return False
        return not self.missing(manifest.blobs()) and renewed(path)

    def manifest(self, tree: str) -> Manifest:
        """Verified. Raises NoContent, Damaged."""
        return read_manifest(self._tree_bytes(tree), self.bounds)

    def open(self, hash_: str) -> BinaryIO:
        """The blob, all of which was verified just now. Raises NoContent, Damaged."""
        file = self._open(hash_)
        try:
            if _hash_from(file) != hash_:
                raise _damaged(hash_)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def open_part(self, hash_: str) -> BinaryIO:
        """The blob as it stands, for a reader that verifies all of it. Raises NoContent."""
        return self._open(hash_)

    def put_file(self, path: str | os.PathLike[str]) -> str:
        """Keep a copy of a file; its hash. Raises UnreadableFile."""
        hash_, _ = self._put_file(os.fspath(path))
        self._settling.settle()
        return hash_

    def put_bytes(self, data: bytes) -> str:
        """Keep a small blob; its hash."""
        hash_ = hash_of(data)
        self.put_pieces([Piece(hash_, len(data), 0, data)])
        return hash_

    def put_pieces(self, pieces: Iterable[Piece]) -> list[int]:
        """Pieces of blobs, those of one in order; how many bytes of each are here then, whole blobs for good.

        Bytes that are here already are passed over; after a gap nothing is taken. Raises Damaged where a
        whole blob is another than its hash says: nothing of it is kept.
        """
        try:
            return [self._put_piece(piece) for piece in pieces]
        finally:
            self._settling.settle()

    def commit(self, data: bytes) -> str:
        """Keep a tree whose blobs are all here; its id. Raises NoContent with what is missing, UnsafePath,
        BadManifest, TreeTooLarge."""
        return self._keep_tree(read_manifest(data, self.bounds), data)

    def commit_change(self, base: str, new: bytes, gone: Iterable[str]) -> str:
        """Keep the tree that the tree `base` becomes by a change: a manifest of what is new, and the paths
        that are gone; its id. What `base` has is not looked at again. Raises NoContent where `base` is not
        here, and as `commit` does."""
        change = Change(read_manifest(new, self.bounds.of_some), tuple(gone))
        try:
            before = written_manifest(self._tree_bytes(base))
        except Damaged:
            raise _no_tree(base) from None
        if not self.has_tree(base):
            raise _no_tree(base)
        time_s = os.stat(self.tree_path(base)).st_mtime  # noqa: PTH116
        manifest = changed(before, change, self.bounds)
        data = manifest.to_bytes()
        check_text(data, self.bounds)
        return self._keep_tree(manifest, data, before.blobs(), time_s)

    def put_tree(self, folder: str | os.PathLike[str], ignored: Ignored | None = None) -> str:
        """Keep a copy of all that is in a folder, or of one file under its name; the tree's id. Raises
        UnreadableFile, UnsafePath, TreeTooLarge."""
        where = os.fspath(folder)
        if os.path.isfile(where):  # noqa: PTH113
            info = os.stat(where)  # noqa: PTH116
            where, name = os.path.split(where)
            found: Iterable[FoundFile | Link] = [FoundFile(name, info)]
        else:
            found = walk(where, ignored or _keep_all, self.bounds)
        files, links = [], []
        for one in found:
            if isinstance(one, Link):
                links.append(one)
            else:
                hash_, size = self._put_file(os.path.join(where, one.path))  # noqa: PTH118
                files.append(Entry(one.path, size, one.mode, hash_))
        self._settling.settle()
        manifest = manifest_of(files, links, self.bounds)
        return self._keep_tree(manifest, manifest.to_bytes())

    def materialise(self, tree: str, into: str | os.PathLike[str]) -> Manifest:
        """Write a tree's files into the folder `into`, which must not exist; a part of it is left when that
        fails. Every byte is verified on the way. Raises NoContent, Damaged, FileExistsError."""
        manifest = self.manifest(tree)
        write_tree(manifest, os.fspath(into), lambda entry, path: self.copy_to(entry.hash, path, entry.mode))
        return manifest

    def copy_to(self, hash_: str, path: str, mode: int) -> None:
        """Make a file of a blob, verified on the way. Raises NoContent, Damaged, FileExistsError."""
        with self._open(hash_) as file:
            fd = new_file(path, mode)
            try:
                if _copy(file, fd) != hash_:
                    raise _damaged(hash_)
            finally:
                os.close(fd)

    def drop_stale_parts(self, now_s: float | None = None) -> None:
        """Uploads that nobody has gone on with for a week."""
        before_s = (time.time() if now_s is None else now_s) - _STALE_PART_S
        with contextlib.suppress(FileNotFoundError), os.scandir(self._parts) as parts:
            for part in parts:
                with contextlib.suppress(FileNotFoundError):
                    if part.stat(follow_symlinks=False).st_mtime < before_s:
                        os.unlink(part.path)  # noqa: PTH108

    def _blob_name(self, hash_: str) -> str:
        """As text: to make a Path costs more than to look at the file."""
        return f"{self.blobs}/{safe_hash(hash_)[:2]}/{hash_}"

    def _part_size(self, hash_: str) -> int:
        try:
            return os.stat(self._parts / f"{hash_}.part").st_size  # noqa: PTH116
        except FileNotFoundError:
            return 0

    def _open(self, hash_: str) -> BinaryIO:
        try:
            fd = os.open(self.blob_path(hash_), os.O_RDONLY | _NOFOLLOW)
        except FileNotFoundError:
            raise NoContent(f"there is no blob {hash_} here", hash=hash_) from None
        return open(fd, "rb")  # noqa: PTH123 - a descriptor

    def _put_piece(self, piece: Piece) -> int:
        if renewed(self._blob_name(piece.hash)):
            return piece.size
        if piece.offset == 0 and len(piece.data) == piece.size:
            if hash_of(piece.data) != piece.hash:
                raise _damaged(piece.hash)
            aside = self._aside()
            aside.write_bytes(piece.data)
            self._adopt(aside, piece.hash)
            return piece.size
        part = self._parts / f"{piece.hash}.part"
        aside = self._aside()
        fd = os.open(part, os.O_RDWR | os.O_CREAT | _NOFOLLOW, 0o600)
        with open(fd, "r+b") as file:  # noqa: PTH123 - a descriptor
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not _is_at(fd, part):  # another has just completed it
                return 0
            have = os.fstat(fd).st_size
            if piece.offset > have:
                return have
            file.seek(have)
            file.write(piece.data[have - piece.offset :])
            file.flush()
            have = max(have, piece.offset + len(piece.data))
            if have < piece.size:
                return have
            os.rename(part, aside)  # noqa: PTH104
            file.seek(0)
            if have > piece.size or _hash_from(file) != piece.hash:
                aside.unlink()
                raise _damaged(piece.hash)
            self._adopt(aside, piece.hash)
        return piece.size

    def _put_file(self, path: str) -> tuple[str, int]:
        """Its hash and its size, as they were while it was copied."""
        try:
            source = open(path, "rb")  # noqa: PTH123, SIM115 - errors of reading apart from those of writing
        except OSError as error:
            raise unreadable(path, error) from error
        aside = self._aside()
        try:
            with source, aside.open("x+b") as copy:
                if clone(source.fileno(), copy.fileno()):
                    hash_ = _hash_from(copy)
                else:
                    hash_ = _copy(source, copy.fileno())
                size = os.fstat(copy.fileno()).st_size
            if renewed(self._blob_name(hash_)):
                aside.unlink()
            else:
                self._adopt(aside, hash_)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        return hash_, size

    def _aside(self) -> Path:
        if not self._has_parts:
            self._parts.mkdir(parents=True, exist_ok=True)
            self._has_parts = True
        return self._parts / f"{secrets.token_hex(8)}.new"

    def _adopt(self, aside: Path, hash_: str) -> None:
        os.chmod(aside, 0o444)  # noqa: PTH101
        self._settling.add(aside, self.blob_path(hash_))

    def _tree_bytes(self, tree: str) -> bytes:
        """Of its manifest. Raises NoContent, Damaged."""
        try:
            data = self.tree_path(tree).read_bytes()
        except FileNotFoundError:
            raise _no_tree(tree) from None
        if hash_of(data) != tree:
            raise Damaged(f"the manifest of tree {tree} is not what it was", tree=tree)
        return data

    def _keep_tree(
        self, manifest: Manifest, data: bytes, here: Mapping[str, int] | None = None, time_s: float = 0.0
    ) -> str:
        """`here`: blobs of a tree whose time was `time_s`; this one is then given no later time."""
        tree = hash_of(data)
        if not self.has_tree(tree):
            self._check_blobs(manifest, here or {})
            self._write_tree(tree, data, time_s)
        return tree

    def _check_blobs(self, manifest: Manifest, here: Mapping[str, int]) -> None:
        wrong = [
            hash_
            for hash_, size in manifest.blobs().items()
            if here.get(hash_) != size and kept_size(self._blob_name(hash_)) != size
        ]
        if wrong:
            raise NoContent(
                f"{len(wrong)} of the tree's blobs are not here: {wrong[0]} and others"
                if len(wrong) > 1
                else f"one of the tree's blobs is not here: {wrong[0]}",
                hint="put them first",
                count=len(wrong),
            )

    def _write_tree(self, tree: str, data: bytes, time_s: float) -> None:
        aside = self._aside()
        aside.write_bytes(data)
        os.chmod(aside, 0o444)  # noqa: PTH101
        if time_s:
            os.utime(aside, (time_s, time_s))
        self._settling.add(aside, self.tree_path(tree))
        self._settling.settle()


def _keep_all(path: str, is_folder: bool) -> bool:
    return False


def content_folder(storage: Path) -> Path:
    """Of a cluster's storage."""
    return storage / "content"


def records_folder(storage: Path) -> Path:
    """What agents write of the tasks that they start. Apart, for they may be another user's than what the
    scheduler writes."""
    return storage / "records"


def _copy(source: BinaryIO, fd: int) -> str:
    """Copy all of a file; the hash of what was written."""
    digest = blake3()
    while piece := source.read(_PIECE_BYTES):
        digest.update(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]
    return digest.hexdigest()


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))  # noqa: PTH116
    except FileNotFoundError:
        return False


def _hash_from(file: BinaryIO) -> str:
    digest = blake3()
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _no_tree(tree: str) -> NoContent:
    return NoContent(f"there is no tree {tree} here", tree=tree)


def _damaged(hash_: str) -> Damaged:
    return Damaged(f"blob {hash_} is not what its hash says", hint="put it anew", hash=hash_)
