"""What is at a URL: looked at when somebody names it, and fetched as it was then, or not at all.

A file's state is its etag, or what else its server calls so; a folder's is a hash over the names, sizes and
states of all files below. What is fetched is looked at before and after, and each file's bytes are counted.
"""

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple

from blake3 import blake3

from ..spec.errors import PacelineError
from ..spec.stores import LISTING, WEB, Seen, opener_of, scheme_of, shown_url
from .errors import TreeTooLarge, UrlAway, UrlChanged, UrlRefused
from .filesystems import open_url
from .manifest import PLAIN, Entry, Manifest, hash_of, manifest_of
from .paths import safe_relative

FILES_MAX: Final = 100_000
_STATES: Final = (
    "ETag",
    "etag",
    "content_md5",
    "md5Hash",
    "crc32c",
    "Content-MD5",
    "Digest",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "mtime",
)
"""What the file systems of fsspec call the state of a file, the best first."""
_AT_ONCE: Final = 8
_PIECE_BYTES: Final = 16 << 20
_TEXT_CHARS: Final = 500
_NOT_ALLOWED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_COMES_BACK: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_FOR_GOOD: Final = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, ImportError)


class _File(NamedTuple):
    place: str
    """In its file system."""
    path: str
    """Below the URL; empty: it is the URL itself."""
    size: int | None
    """None: its server does not say."""


class _Look(NamedTuple):
    seen: Seen
    files: list[_File]


def look(url: str) -> Seen:
    """What is there now. Raises UrlRefused, UrlAway, OSError (of this machine's disk)."""
    return _look(url).seen


def fetch(expected: Seen, folder: Path, bytes_max: int, tell: Callable[[int], None]) -> Manifest:
    """Put all of it into `folder`, each file under its hash; the tree that it makes.

    `tell` hears, from any thread and as long as something happens, how many bytes have come in all. Raises
    UrlChanged, UrlRefused, UrlAway, UnsafePath, BadManifest, TreeTooLarge (more than `bytes_max` came),
    OSError (of the disk).
    """
    where = shown_url(expected.url)
    found = _look(expected.url)
    _check_same(expected, found.seen, where)
    fetching = _Fetching(open_url(expected.url)[0], folder, where, _Count(bytes_max, tell))
    pool = ThreadPoolExecutor(_AT_ONCE, "fetching")
    try:
        files = [one._replace(path=one.path or expected.file) for one in found.files]
        entries = list(pool.map(fetching.one, files, range(len(files))))
    finally:
        pool.shutdown(cancel_futures=True)
    _check_same(expected, look(expected.url), where)
    if fetching.short:
        raise UrlAway(f"{where}: {fetching.short}")
    return manifest_of(entries)


class _Count:
    """Bytes that have come, of all files."""

    def __init__(self, bytes_max: int, tell: Callable[[int], None]) -> None:
        self.bytes = 0
        self._bytes_max, self._tell = bytes_max, tell
        self._lock = threading.Lock()

    def add(self, more: int) -> None:
        with self._lock:
            self.bytes += more
            if self.bytes > self._bytes_max:
                raise TreeTooLarge(f"more than {self._bytes_max} bytes came")
            self._tell(self.bytes)


class _Fetching:
    """Files of one URL, from several threads."""

    def __init__(self, filesystem: Any, folder: Path, where: str, count: _Count) -> None:
        self._filesystem, self._folder, self._where, self.count = filesystem, folder, where, count
        self.short = ""
        """Of a file that came with another size than it was listed with."""

    def one(self, file: _File, number: int) -> Entry:
        from fsspec.callbacks import Callback

        class Counting(Callback):  # type: ignore[misc]
            """Counts for all."""

            def relative_update(self, inc: int = 1) -> None:
                count.add(inc)

        count = self.count
        safe_relative(file.path)
        part = self._folder / f"{number}.part"
        with _told(self._where, file.path):
            self._filesystem.get_file(file.place, str(part), callback=Counting())
        size = part.stat().st_size
        if file.size is not None and size != file.size:
            self.short = f"{file.path} came with {size} bytes, and it has {file.size}"
        hash_ = self._hash_of(part)
        part.rename(self._folder / hash_)
        return Entry(file.path, size, PLAIN, hash_)

    def _hash_of(self, part: Path) -> str:
        """Of many bytes that takes a while, in which none come."""
        digest = blake3(max_threads=blake3.AUTO)
        with part.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                self.count.add(0)
        self.count.add(0)  # an empty file, too, is one more
        return digest.hexdigest()


def _look(url: str) -> _Look:
    where = shown_url(url)
    if scheme_of(url) in WEB and url.partition("?")[0].endswith("/"):
        raise UrlRefused(
            f"{where} is a page and no file", hint="web servers do not list folders: name a file"
        )
    with _told(where):
        filesystem, root = open_url(url)
        if scheme_of(url) not in WEB and filesystem.isdir(root):
            return _look_at_folder(url, filesystem.find(root, detail=True), root)
        info = filesystem.info(url if scheme_of(url) in WEB else root)
    size = info.get("size")
    return _Look(Seen(url, _state_of(info), int(size or 0), 1), [_File(info["name"], "", size)])


def _look_at_folder(url: str, found: dict[str, Any], root: str) -> _Look:
    if not 0 < len(found) <= FILES_MAX:
        raise UrlRefused(f"{shown_url(url)} has {len(found)} files; expected 1 to {FILES_MAX}")
    lines, files = [], []
    for name, info in sorted(found.items()):
        below = name.removeprefix(root)
        lines.append(f"{below} {info.get('size')} {_state_of(info)}\n")
        if not below.endswith("/"):  # as some tools mark an empty folder
            files.append(_File(name, below.lstrip("/"), info.get("size")))
    size = sum(one.size or 0 for one in files)
    return _Look(Seen(url, f"{LISTING}{hash_of(''.join(lines).encode())}", size, len(found)), files)


def _state_of(info: dict[str, Any]) -> str:
    """As far as its server says."""
    found = next((info[name] for name in _STATES if info.get(name)), "")
    return str(found).strip('"')


def _check_same(expected: Seen, found: Seen, where: str) -> None:
    if found != expected:
        raise UrlChanged(f"{where} has changed: it was {expected}; it is {found}")


@contextlib.contextmanager
def _told(where: str, file: str = "") -> Iterator[None]:
    """Each file system has errors of its own; these are ours."""
    try:
        yield
    except PacelineError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _failure(
            error, f"{where}: {file}" if file and not where.endswith(f"/{file}") else where
        ) from error


def _failure(error: Exception, where: str) -> PacelineError:
    first = _first(error)
    status = _status(error)
    if status is not None:
        text = f"{where}: its server answers {status}{_phrase(status)}"
        if status >= 500 or status in _COMES_BACK:
            return UrlAway(text)
        hint = "it needs credentials, or others, where it is read" if status in _NOT_ALLOWED else ""
        return UrlRefused(text, hint=hint)
    text = f"{where} cannot be read: {type(first).__name__}: {str(first)[:_TEXT_CHARS]}"
    if isinstance(first, ImportError) or "Protocol not known" in str(first):
        return UrlRefused(text, hint=_install(where))
    return UrlRefused(text) if isinstance(first, (*_FOR_GOOD, ValueError)) else UrlAway(text)


def _first(error: BaseException) -> BaseException:
    """What brought it about."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that it tells of, as aiohttp, botocore, gcsfs and Azure's client have it."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = next(
                (got for name in ("status", "status_code", "code") if (got := getattr(error, name, 0))), 0
            )
        if isinstance(found, int) and 400 <= found < 600:
            return found
        error = error.__cause__
    return None


def _phrase(status: int) -> str:
    with contextlib.suppress(ValueError):
        return f" ({HTTPStatus(status).phrase})"
    return ""


def _install(url: str) -> str:
    scheme = scheme_of(url)
    opener = opener_of(url)
    package = "aiohttp" if scheme in WEB else opener.package if opener is not None else ""
    return (
        f"pip install fsspec {package}".rstrip()
        if package
        else f"pip install what speaks {scheme}: to fsspec"
    )
