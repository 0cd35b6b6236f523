"""Files of assets between this machine and the content store; and a look at what stays where it is.

What is uploaded is all of a folder: nothing is ignored. What is downloaded is written aside, verified file by
file, and has its name when all of it is there.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..proto.generated import content_pb2
from ..spec.errors import Conflict, InvalidRequest, StoreFailure
from . import content_calls, rpc
from .looking import seen
from .packing import Calling, hash_of_file
from .registry_calls import Ready, Uploaded
from .registry_views import Asset, AssetSource, OfPath, OfUrl

if TYPE_CHECKING:
    from ..content.manifest import Entry, Manifest

_READ_S: Final = 60.0
_NOTHING: Final[Mapping[str, str]] = {}


def ready(source: AssetSource) -> Calling[Ready]:
    """What can be registered: a path is uploaded, a URL looked at. Raises InvalidRequest, LimitExceeded,
    Conflict (a file changed meanwhile), UrlAway."""
    match source:
        case OfPath(path):
            return (yield from _uploaded(path))
        case OfUrl(url):
            return seen(url)
    return source


def downloaded(
    asset: Asset, to: str | os.PathLike[str], *, below: str = "", more: Mapping[str, str] = _NOTHING
) -> Calling[None]:
    """Write its files into the folder `to`, or a folder `below` that; and `more` files, name -> text. Raises
    Conflict where `to` is there, InvalidRequest for what has no files, StoreFailure for a blob that
    is not what it was."""
    from ..content.manifest import hash_of, read_manifest
    from ..content.writing import write_tree

    if not asset.tree:
        where = f": it is at {asset.url}" if asset.url else ""
        raise InvalidRequest(f"{asset.kind} {asset.reference} has no files here{where}")
    into = Path(to).absolute()
    if into.exists():
        raise Conflict(f"{into} is there already", hint="name a folder that is new")
    data = yield _manifest(asset.tree)
    if hash_of(data) != asset.tree:
        raise StoreFailure(f"the manifest of {asset.kind} {asset.reference} is not what it was")
    manifest = read_manifest(data)
    part = into.with_name(f".{into.name}.{os.getpid()}.part")
    try:
        (part / below).parent.mkdir(parents=True, exist_ok=True)
        write_tree(manifest, os.fspath(part / below), _empty)
        for entry in manifest.files:
            yield from _read(entry, part / below / entry.path)
        for name, text in more.items():
            (part / name).write_text(text, encoding="utf-8")
        part.rename(into)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _uploaded(path: str) -> Calling[Uploaded]:
    from ..content.manifest import Entry, Link, manifest_of
    from ..content.walking import FoundFile, walk

    whole = Path(path.removeprefix("file://")).expanduser().absolute()
    if not whole.exists():
        raise InvalidRequest(f"{whole} is not there")
    root = whole if whole.is_dir() else whole.parent
    everything = walk(os.fspath(whole), lambda below, is_folder: False) if whole.is_dir() else None
    files, links = [], []
    for one in everything or [FoundFile(whole.name, whole.stat())]:
        if isinstance(one, Link):
            links.append(one)
        else:
            hash_ = hash_of_file(os.fspath(root), one.path)
            files.append(Entry(one.path, one.stat.st_size, one.mode, hash_))
    tree = yield from _sent(manifest_of(files, links), root)
    return Uploaded(tree, str(whole))


def _sent(manifest: "Manifest", root: Path) -> Calling[str]:
    """The tree's id."""
    from ..content.manifest import hash_of

    text = manifest.to_bytes()
    tree = hash_of(text)
    there = yield content_calls.missing([], tree=tree)
    if there.tree:
        return tree
    sources = {entry.hash: content_calls.Source(root / entry.path, entry.size) for entry in manifest.files}
    found = yield content_calls.missing(list(sources))
    yield from content_calls.put(sources, found.lacking)
    yield content_calls.commit(text)
    return tree


def _empty(entry: "Entry", path: str) -> None:
    from ..content.writing import new_file

    os.close(new_file(path, entry.mode))


def _read(entry: "Entry", path: Path) -> Calling[None]:
    """A file's bytes, verified."""
    from blake3 import blake3

    digest, offset = blake3(), 0
    with path.open("wb") as file:
        while offset < entry.size:
            data = yield _piece(entry.hash, offset)
            if not data:
                break
            digest.update(data)
            file.write(data)
            offset += len(data)
    if digest.hexdigest() != entry.hash:
        raise StoreFailure(
            f"{entry.path} is not what was registered", hint="its blob in the content store is damaged"
        )


def _manifest(tree: str) -> rpc.Call[bytes]:
    request = content_pb2.ManifestRequest(tree=tree)
    return rpc.Call(
        lambda stubs: stubs.content.Manifest, request, lambda reply: bytes(reply.manifest), _READ_S
    )


def _piece(hash_: str, offset: int) -> rpc.Call[bytes]:
    request = content_pb2.ReadRequest(hash=bytes.fromhex(hash_), offset=offset)
    return rpc.Call(lambda stubs: stubs.content.Read, request, lambda reply: bytes(reply.data), _READ_S)
