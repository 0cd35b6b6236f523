"""`code`: a folder on the client becomes a tree at the scheduler, and the job's document says which.

A folder that was packed before costs a look at each file; only what has changed is asked for, only what the
scheduler lacks is sent, and a broken upload goes on where it was. One folder is packed once, however many
jobs of a submit run in it.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..spec.errors import InvalidRequest, NotFound
from . import rpc
from .documents import Prepared
from .settings import Settings

if TYPE_CHECKING:
    from ..content.manifest import Bounds, Manifest
    from ..spec.code import CodeGit
    from .content_calls import Source
    from .last_tree import LastTree, Since

T = TypeVar("T")
Calling = Generator[rpc.Call[Any], Any, T]
"""Yields calls, gets what they give, and returns: so that both clients drive one and the same code."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A folder as it was."""

    folder: str
    manifest: "Manifest"
    text: bytes
    """The manifest's, of which `tree` is the hash."""
    tree: str
    last: "LastTree"
    git: "CodeGit | None" = None
    diff: bytes = b""

    @property
    def diffs(self) -> list[str]:
        """The hash of the diff, if there is one."""
        return [self.git.diff] if self.git is not None and self.git.diff else []

    def with_code(self, prepared: Prepared) -> Prepared:
        """The same job or sweep, running in this tree."""
        return replace(prepared, spec=prepared.spec.with_code(self.tree, self.git))


def packed(prepared: Sequence[Prepared], settings: Settings) -> Calling[list[Prepared]]:
    """Those of them that have code to pack run in what is uploaded here, and their URLs are looked at. Raises
    UnreadableFile, UnsafePath, TreeTooLarge, InvalidRequest, Conflict (a file changed meanwhile), UrlRefused,
    UrlAway."""
    from .looking import looked

    prepared = looked(prepared)
    trees: dict[str, Packed] = {}
    for folder in dict.fromkeys(one.packs for one in prepared if one.packs):
        trees[folder] = pack(folder, settings)
        yield from uploaded(trees[folder])
    return [trees[one.packs].with_code(one) if one.packs else one for one in prepared]


def pack(folder: str, settings: Settings) -> Packed:
    """Look at a folder, and read what has changed in it since the last time."""
    from ..content.manifest import hash_of
    from . import git_state
    from .last_tree import LastTree

    if not Path(folder).is_dir():
        raise InvalidRequest(f"code: {folder} is not a folder here", hint="code is packed where you submit")
    real = str(Path(folder).resolve())
    cache = settings.cache.expanduser() / "code" / hash_of(real.encode())
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(git_state.state_of, folder)
        manifest = _read(real, _bounds(settings), cache.with_suffix(".json"))
        text = manifest.to_bytes()
        made = Packed(folder, manifest, text, hash_of(text), LastTree(cache.with_suffix(".tree")))
        found = asked.result()
    if found is None:
        return made
    git = found.said.model_copy(update={"diff": hash_of(found.diff) if found.diff else None})
    return replace(made, git=git, diff=found.diff)


def _read(folder: str, bounds: "Bounds", hashes: Path) -> "Manifest":
    from ..content.manifest import Entry, Link, manifest_of
    from ..content.walking import walk
    from . import git_state
    from .ignoring import Ignoring
    from .stat_cache import StatCache

    cache = StatCache(hashes, time.time_ns())
    ignored = Ignoring(folder, git_state.top_folder(folder))
    files: list[Entry] = []
    links: list[Link] = []
    for one in walk(folder, ignored, bounds):
        if isinstance(one, Link):
            links.append(one)
            continue
        hash_ = cache.hash_of(one.path, one.stat)
        if hash_ is None:
            hash_ = hash_of_file(folder, one.path)
            cache.note(one.path, one.stat, hash_)
        files.append(Entry(one.path, one.stat.st_size, one.mode, hash_))
    cache.save()
    return manifest_of(files, links, bounds)


def _bounds(settings: Settings) -> "Bounds":
    from ..content.manifest import Bounds

    return Bounds(
        files_max=settings.code_files_max,
        bytes_max=settings.code_bytes_max,
        file_bytes_max=settings.code_file_bytes_max,
    )


def hash_of_file(folder: str, path: str) -> str:
    """Raises UnreadableFile."""
    from blake3 import blake3

    from ..content.walking import unreadable

    digest = blake3()
    try:
        with Path(folder, path).open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def uploaded(one: Packed) -> Calling[None]:
    """All of it is at the scheduler, and its git diff."""
    since = one.last.since(one.manifest, one.text)
    if since is None or not (yield from _sent_change(one, since)):
        yield from _sent_whole(one)
    one.last.note(one.text)


def _sent_change(one: Packed, since: "Since") -> Calling[bool]:
    """False: the scheduler has not what the folder was before."""
    from . import content_calls

    hashes = [*since.change.new.blobs(), *one.diffs]
    found = yield content_calls.missing(hashes, tree=one.tree, base=since.base)
    if not found.tree and not found.base:
        return False
    yield from content_calls.put(_sources(one, found.lacking), found.lacking)
    try:
        if not found.tree:
            yield content_calls.commit(since.new, base=since.base, gone=since.change.gone)
    except NotFound:
        return False
    return True


def _sent_whole(one: Packed) -> Calling[None]:
    from . import content_calls

    found = yield content_calls.missing(one.diffs, tree=one.tree)
    has_tree = found.tree
    if not has_tree:
        found = yield content_calls.missing([*one.manifest.blobs(), *one.diffs])
    yield from content_calls.put(_sources(one, found.lacking), found.lacking)
    if not has_tree:
        yield content_calls.commit(one.text)


def _sources(one: Packed, lacking: Mapping[str, int]) -> "dict[str, Source]":
    from .content_calls import Source

    sources = {
        entry.hash: Source(Path(one.folder, entry.path), entry.size)
        for entry in one.manifest.files
        if entry.hash in lacking
    }
    return sources | {hash_: Source(one.diff, len(one.diff)) for hash_ in one.diffs}
