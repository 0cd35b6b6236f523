"""Checkpoints at a URL, through fsspec: objects that appear whole, and no rename.

    URL/step-00000040.a2/__3_0.distcp
    URL/step-00000040.a2/manifest.json    put last: with it the checkpoint is there, without it there is none

Nothing of it is trusted: what is read counts with the size and hash of an accepted manifest. fsspec and what
speaks the URL's scheme are imported at the first use. Every failure is a StorageFailed that says what and
where; retries and timeouts are those libraries' own, and bounded.
"""

import contextlib
import importlib.util
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ..content.filesystems import open_url
from ..spec.folder_names import FolderName
from ..spec.stores import opener_of, why_not_kept
from . import manifest
from .errors import InvalidEnvironment, StorageFailed
from .fetching import Take, fetch
from .manifest import FileEntry
from .retention import is_before_record

_CHUNK_BYTES: Final = 4 * 1024 * 1024
_IDLE_S: Final = 30.0


def check_opener(url: str) -> None:
    """Raises InvalidEnvironment where this interpreter cannot open it: at the start, and not at a save."""
    opener = opener_of(url)
    if opener is None:
        raise InvalidEnvironment(f"checkpoint.storage is {url!r}: {why_not_kept(url)}")
    needed = [("fsspec", "fsspec", opener.extra or "train"), (opener.package, opener.module, opener.extra)]
    for package, module, extra in needed:
        if package and importlib.util.find_spec(module) is None:
            install = f"'paceline[{extra}]'" if extra else package
            raise InvalidEnvironment(
                f"checkpoint.storage is {url}, which needs {package}, and this interpreter has none",
                hint=f"install it where the job runs: pip install {install}",
                url=url,
            )


class Remote:
    """One job's checkpoints at `url`. May be used by one thread at a time."""

    def __init__(self, url: str) -> None:
        self.url = url
        opener = opener_of(url)
        self._folders = opener is not None and opener.folders
        self._filesystem: Any = None
        self._root = ""
        self._used_s = 0.0

    def names(self) -> list[FolderName]:
        """What is there, whole or not."""
        with self._told("listing"):
            found = self._listed(None)
        parsed = (FolderName.parse(str(entry["name"]).rstrip("/").rpartition("/")[2]) for entry in found)
        return [name for name in parsed if name is not None]

    def sizes(self, name: FolderName) -> dict[str, int]:
        """File -> bytes, of what is there of one."""
        with self._told(str(name)):
            found = self._listed(name)
        return {str(entry["name"]).rpartition("/")[2]: int(entry["size"] or 0) for entry in found}

    def put(self, name: FolderName, file: str, source: Path) -> None:
        with self._told(f"{name}/{file}"):
            filesystem = self._open()
            if self._folders:
                filesystem.makedirs(self._path(name), exist_ok=True)
            filesystem.put_file(str(source), self._path(name, file))

    def commit(self, name: FolderName, document: bytes, files: Mapping[str, FileEntry]) -> None:
        """With this it is there, if all its files are."""
        there = self.sizes(name)
        for file, entry in files.items():
            if there.get(file) != entry.size_bytes:
                found = f"has {there[file]} bytes" if file in there else "is not there"
                raise StorageFailed(f"{self.url}: {name}/{file} {found}, expected {entry.size_bytes}")
        with self._told(f"{name}/{manifest.NAME}"):
            self._open().pipe_file(self._path(name, manifest.NAME), document)

    def read_small(self, name: FolderName, file: str, entry: FileEntry | None = None) -> bytes:
        """A manifest, or `entry`'s metadata. Raises StorageFailed also for what is too large to be one."""
        with self._told(f"{name}/{file}"):
            data: bytes = self._open().cat_file(self._path(name, file), start=0, end=_small(entry) + 1)
        if len(data) > _small(entry):
            raise StorageFailed(f"{self.url}: {name}/{file} is longer than {_small(entry)} bytes")
        return data

    def read(self, name: FolderName, file: str, on_chunk: Callable[[bytes], None]) -> None:
        """All of it, in order. Raises FileNotFoundError when it is not there."""
        with (
            self._told(f"{name}/{file}", missing_too=False),
            self._open().open(
                self._path(name, file), "rb", block_size=_CHUNK_BYTES, cache_type="readahead"
            ) as stream,
        ):
            while chunk := stream.read(_CHUNK_BYTES):
                on_chunk(chunk)

    def fetch(self, name: FolderName, file: str, entry: FileEntry, target: Path) -> str:
        """Bring it to `target` if it is as the manifest says; else what is wrong."""

        def read(take: Take) -> None:
            try:
                self.read(name, file, take)
            except FileNotFoundError:
                raise StorageFailed(f"missing at {self.url}") from None

        return fetch(target, entry, self.url, read)

    def remove(self, name: FolderName) -> None:
        """The manifest first: no moment shows half a checkpoint."""
        with self._told(f"removing {name}"):
            filesystem = self._open()
            if filesystem.exists(self._path(name, manifest.NAME)):
                filesystem.rm_file(self._path(name, manifest.NAME))
            filesystem.rm(self._path(name), recursive=True)

    def keep_only(self, kept: Collection[FolderName], before: FolderName) -> None:
        """Remove what is older than `before` and is not kept, whole or not."""
        for name in self.names():
            if name < before and name not in kept and not is_before_record(name, kept):
                self.remove(name)

    def _listed(self, name: FolderName | None) -> list[dict[str, Any]]:
        """What is below one, or below the URL; nothing where it is missing. Not by `exists`, which says no on
        any failure.
        """
        filesystem = self._open()
        try:
            return list(filesystem.ls(self._root if name is None else self._path(name), detail=True))
        except FileNotFoundError:
            return []

    def _path(self, name: FolderName, file: str = "") -> str:
        return f"{self._root}/{name}" + (f"/{file}" if file else "")

    def _open(self) -> Any:
        """Anew after a failure and a while: a server may have ended the connection."""
        now_s = time.monotonic()
        if self._filesystem is None or now_s - self._used_s > _IDLE_S:
            self._filesystem, self._root = open_url(self.url, shared=not self._folders)
        self._used_s = now_s
        return self._filesystem

    @contextlib.contextmanager
    def _told(self, what: str, *, missing_too: bool = True) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if not missing_too:
                raise
            raise StorageFailed(f"{self.url}: {what}: missing") from None
        except StorageFailed:
            raise
        except Exception as error:  # each of these libraries has its own
            self._filesystem = None
            raise StorageFailed(f"{self.url}: {what}: {_text_of(error)}") from error


def _text_of(error: BaseException) -> str:
    """With what is behind it: that an endpoint cannot be reached does not say why."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    behind = error.__cause__ or error.__context__
    return f"{text} ({str(behind) or type(behind).__name__})" if behind is not None else str(text)


def _small(entry: FileEntry | None) -> int:
    return entry.size_bytes if entry is not None else manifest.MANIFEST_BYTES_MAX
