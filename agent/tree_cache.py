"""Trees on this node, for tasks to come: each file once, whatever trees it is in; the least used go first.

    trees/ID/            a tree's files: hard links to blobs, read-only
    trees/ID.json        its manifest; its time is that of the last use
    blobs/ab/HASH.644    a file; of 755 apart, for a mode belongs to all links

The file system counts: a blob with one link is in no tree, and may go. A blob's time is set to one fixed
moment when it is whole, so that a file which somebody has written to is seen without reading it.
"""

import contextlib
import errno
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from blake3 import blake3

from ..content.errors import Damaged
from ..content.manifest import Entry, Manifest, hash_of, read_manifest
from ..content.writing import new_file, remove_tree, write_tree

_SEAL_NS: Final = 315_532_800 * 10**9
"""1980-01-01, the first moment that a zip file can hold."""
_LINKED_FROM_BYTES: Final = 1 << 20
"""Files of a working folder that are as large are read-only links; smaller ones are the task's own copies."""
_TRIES: Final = 3


class CacheFull(Exception):
    """What is needed at once is more than may be kept."""

    def __init__(self, needed: int, bytes_max: int) -> None:
        super().__init__(f"{needed} bytes are needed at once; this node keeps at most {bytes_max}")
        self.needed, self.bytes_max = needed, bytes_max


class Stopped(Exception):
    """Whoever needed it does not want it any more."""


class Source(Protocol):
    """From where a tree comes, such as the content store."""

    def manifest(self, tree: str) -> Manifest:
        """Raises NoContent, Damaged."""

    def copy_to(self, hash_: str, path: str, mode: int) -> None:
        """Make a file of a blob, verified; asked once for each that the cache lacks. Raises NoContent,
        Damaged."""


@dataclass(frozen=True, slots=True)
class Provided:
    folder: Path
    manifest: Manifest
    fetched_bytes: int

    def told(self, where: str = "") -> str:
        """`3 files, 2.23 kB, 1.1 kB fetched from ...`."""
        count = len(self.manifest.files)
        files = "1 file" if count == 1 else f"{count} files"
        fetched = f", {_size(self.fetched_bytes)} fetched{where}" if self.fetched_bytes else ""
        return f"{files}, {_size(self.manifest.size)}{fetched}"


class TreeCache:
    """Blocks on the disk; may be used from several threads, of one tree by one at a time. Methods raise
    OSError where the disk refuses."""

    def __init__(self, root: Path, bytes_max: int) -> None:
        self._trees, self._blobs = root / "trees", root / "blobs"
        self.bytes_max = bytes_max
        self._lock = threading.Lock()
        self._used: dict[str, None] = {}
        """Trees, the least recently used one first."""
        self.size = 0
        """Bytes of all blobs."""

    def begin(self) -> None:
        """Once. What an earlier agent has left half done goes."""
        self._trees.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._blobs.mkdir(mode=0o700, exist_ok=True)
        used, folders = [], []
        for entry in os.scandir(self._trees):
            name = entry.name.removesuffix(".json")
            if name == entry.name:
                folders.append(name)
            else:
                used.append((entry.stat().st_mtime_ns, name))
        self._used = {tree: None for _, tree in sorted(used)}
        for name in folders:
            if name not in self._used:
                remove_tree(self._trees / name)
        for folder in os.scandir(self._blobs):
            for blob in os.scandir(folder.path):
                self._drop_unused(Path(blob.path))
        self.size = sum(blob.stat().st_size for blob in self._blobs.glob("??/*"))

    def kept(self, tree: str) -> Provided | None:
        """The tree as it is kept here; what was written to goes."""
        if tree not in self._used:
            return None
        with contextlib.suppress(OSError, Damaged):
            manifest = self._manifest(tree)
            self._check_seals(tree, manifest)
            self._use(tree)
            return Provided(self._trees / tree, manifest, 0)
        self._drop(tree, distrusted=True)
        return None

    @contextmanager
    def room(self, needed: int, pinned: Collection[str]) -> Iterator[None]:
        """So many bytes count as kept, for what is yet to be. Raises CacheFull."""
        self._make_room(needed, pinned)
        with self._lock:
            self.size += needed
        try:
            yield
        finally:
            with self._lock:
                self.size -= needed

    def provide(
        self, source: Source, tree: str, pinned: Collection[str], stopped: Callable[[], object]
    ) -> Provided:
        """The tree's folder. What is fetched is verified by its hash, what is here by its seal. Raises
        NoContent, Damaged, CacheFull, Stopped."""
        if (found := self.kept(tree)) is not None:
            return found
        manifest = source.manifest(tree)
        lacking = {self._blob(one): one for one in manifest.files if not self._blob(one).exists()}
        fetched = sum(one.size for one in lacking.values())
        self._make_room(fetched, pinned)
        aside = self._trees / secrets.token_hex(8)
        try:
            write_tree(manifest, str(aside), lambda entry, path: self._place(source, entry, path, stopped))
            self._write(tree, manifest)
            os.rename(aside, self._trees / tree)  # noqa: PTH104
        except BaseException:
            remove_tree(aside)
            (self._trees / f"{tree}.json").unlink(missing_ok=True)
            for blob in lacking:
                self._drop_unused(blob)
            raise
        self._use(tree)
        return Provided(self._trees / tree, manifest, fetched)

    def copy(self, provided: Provided, into: str, stopped: Callable[[], object]) -> None:
        """A folder of its own with the tree's files, verified. Raises Damaged, Stopped."""
        write_tree(
            provided.manifest,
            into,
            lambda entry, path: _copy(provided.folder / entry.path, entry, path, stopped),
        )

    def distrust(self, tree: str) -> None:
        """What is kept of it is not what it was: fetch it anew next time."""
        self._drop(tree, distrusted=True)

    def _use(self, tree: str) -> None:
        with self._lock:
            self._used.pop(tree, None)
            self._used[tree] = None
            now_ns = time.time_ns()  # the kernel's own stamps are milliseconds apart
            os.utime(self._trees / f"{tree}.json", ns=(now_ns, now_ns))

    def _manifest(self, tree: str) -> Manifest:
        data = (self._trees / f"{tree}.json").read_bytes()
        if hash_of(data) != tree:
            raise Damaged(f"the manifest of tree {tree} is not what it was")
        return read_manifest(data)

    def _write(self, tree: str, manifest: Manifest) -> None:
        aside = self._trees / f"{secrets.token_hex(8)}"
        aside.write_bytes(manifest.to_bytes())
        os.rename(aside, self._trees / f"{tree}.json")  # noqa: PTH104

    def _check_seals(self, tree: str, manifest: Manifest) -> None:
        root = str(self._trees / tree)
        for entry in manifest.files:
            info = os.lstat(f"{root}/{entry.path}")
            if info.st_mtime_ns != _SEAL_NS or info.st_size != entry.size:
                raise Damaged(f"{entry.path} of tree {tree} was written to on this node")

    def _blob(self, entry: Entry) -> Path:
        return self._blobs / entry.hash[:2] / f"{entry.hash}.{entry.mode:o}"

    def _place(self, source: Source, entry: Entry, path: str, stopped: Callable[[], object]) -> None:
        if stopped():
            raise Stopped
        blob = self._blob(entry)
        for _ in range(_TRIES):  # it may go meanwhile, as long as it is in no tree
            try:
                os.link(blob, path)
                return
            except FileNotFoundError:
                self._fetch(source, entry, blob)
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                break
        self._copy_blob(entry, path)

    def _copy_blob(self, entry: Entry, path: str) -> None:
        """It has as many links as a file may have. Raises Damaged."""
        shutil.copyfile(self._blob(entry), path)
        if blake3().update_mmap(path).hexdigest() != entry.hash:
            raise Damaged(f"{entry.path} is not what it was")
        _seal(entry, path)

    def _fetch(self, source: Source, entry: Entry, blob: Path) -> None:
        blob.parent.mkdir(mode=0o700, exist_ok=True)
        aside = blob.with_name(secrets.token_hex(8))
        try:
            self._seal_copy(source, entry, str(aside))
            os.link(aside, blob)
            with self._lock:
                self.size += entry.size
        except FileExistsError:  # another tree has just brought it
            pass
        finally:
            aside.unlink(missing_ok=True)

    def _seal_copy(self, source: Source, entry: Entry, path: str) -> None:
        source.copy_to(entry.hash, path, 0o600)
        _seal(entry, path)

    def _make_room(self, needed: int, pinned: Collection[str]) -> None:
        if needed > self.bytes_max:
            raise CacheFull(needed, self.bytes_max)
        for tree in list(self._used):
            if self.size + needed <= self.bytes_max:
                return
            if tree not in pinned:
                self._drop(tree)
        if self.size + needed > self.bytes_max:
            raise CacheFull(self.size + needed, self.bytes_max)

    def _drop(self, tree: str, *, distrusted: bool = False) -> None:
        """With the blobs that are in no other tree; distrusted: with all that were written to."""
        with self._lock:
            self._used.pop(tree, None)
        blobs: set[Path] = set()
        with contextlib.suppress(OSError, Damaged):
            blobs = {self._blob(entry) for entry in self._manifest(tree).files}
        aside = self._trees / secrets.token_hex(8)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._trees / tree, aside)  # noqa: PTH104
        remove_tree(aside)
        (self._trees / f"{tree}.json").unlink(missing_ok=True)
        for blob in blobs:
            self._drop_unused(blob, distrusted=distrusted)

    def _drop_unused(self, blob: Path, *, distrusted: bool = False) -> None:
        with contextlib.suppress(FileNotFoundError):
            info = os.lstat(blob)
            if info.st_nlink == 1 or (distrusted and info.st_mtime_ns != _SEAL_NS):
                blob.unlink()
                with self._lock:
                    self.size = max(0, self.size - info.st_size)


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _seal(entry: Entry, path: str) -> None:
    os.chmod(path, entry.mode & 0o555)  # noqa: PTH101
    os.utime(path, ns=(_SEAL_NS, _SEAL_NS))


def _copy(source: Path, entry: Entry, path: str, stopped: Callable[[], object]) -> None:
    if stopped():
        raise Stopped
    if entry.size >= _LINKED_FROM_BYTES:
        info = os.lstat(source)
        if info.st_mtime_ns != _SEAL_NS or info.st_size != entry.size:
            raise Damaged(f"{entry.path} was written to on this node")
        with contextlib.suppress(OSError):  # too many links, or another file system
            os.link(source, path)
            return
    data = source.read_bytes()
    if hash_of(data) != entry.hash:
        raise Damaged(f"{entry.path} is not what it was")
    fd = new_file(path, entry.mode)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
