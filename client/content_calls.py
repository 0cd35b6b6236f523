"""The Content service's calls, and how blobs are sent and read: a few MiB in a call, each of which may be
repeated."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..proto.generated import content_pb2
from ..proto.limits import CONTENT_PIECES_MAX, CONTENT_PUT_BYTES_MAX
from ..spec.errors import Conflict, LimitExceeded
from .rpc import Call

_TRY_S: Final = 60.0
_TRIES: Final = 5
"""For a blob of which the scheduler has less than we thought: another client is sending it, too."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a blob's bytes are: in a file, or here."""

    data: Path | bytes
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Raises Conflict where the file has changed since it was looked at."""
        if isinstance(self.data, bytes):
            return self.data[offset : offset + size]
        try:
            with self.data.open("rb") as file:
                file.seek(offset)
                found = file.read(size)
        except OSError as error:
            raise changed(self.data, error.strerror or "") from error
        if len(found) != min(size, self.size - offset):
            raise changed(self.data, "it has another size")
        return found


def changed(path: Path, why: str) -> Conflict:
    return Conflict(f"{path} has changed while it was sent: {why}", hint="submit again", path=str(path))


@dataclass(frozen=True, slots=True)
class Found:
    """What the scheduler has."""

    tree: bool
    base: bool
    lacking: dict[str, int]
    """Hash -> bytes that are there of it."""


def missing(hashes: Sequence[str], *, tree: str = "", base: str = "") -> Call[Found]:
    """Which of the blobs are not there, and whether these trees are."""
    request = content_pb2.MissingRequest(
        tree=tree, base=base, hashes=[bytes.fromhex(hash_) for hash_ in hashes]
    )
    return Call(
        lambda stubs: stubs.content.Missing,
        request,
        lambda reply: Found(
            reply.has_tree, reply.has_base, {hashes[one.index]: one.have_bytes for one in reply.lacking}
        ),
        _TRY_S,
    )


def commit(manifest: bytes, *, base: str = "", gone: Sequence[str] = ()) -> Call[str]:
    """Of a whole tree, or of what is not as it is in the tree `base`. Raises NotFound where that has gone."""
    request = content_pb2.CommitRequest(manifest=manifest, base=base, gone=gone)
    return Call(lambda stubs: stubs.content.Commit, request, lambda reply: str(reply.tree), _TRY_S)


def read(hash_: str, bytes_max: int) -> Generator[Call[Any], Any, bytes]:
    """All of a blob. Raises NotFound, LimitExceeded."""
    data = bytearray()
    while True:
        piece, size = yield _piece_of(hash_, len(data))
        if size > bytes_max:
            raise LimitExceeded(f"blob {hash_} has {size} bytes; at most {bytes_max} are read here")
        data += piece
        if len(data) >= size or not piece:
            return bytes(data)


def _piece_of(hash_: str, offset: int) -> Call[tuple[bytes, int]]:
    request = content_pb2.ReadRequest(hash=bytes.fromhex(hash_), offset=offset)
    return Call(
        lambda stubs: stubs.content.Read, request, lambda reply: (bytes(reply.data), int(reply.size)), _TRY_S
    )


def put(sources: Mapping[str, Source], lacking: Mapping[str, int]) -> Generator[Call[Any], Any, None]:
    """Send what is lacking, from where an earlier upload has ended. Raises Conflict."""
    batch: list[content_pb2.Piece] = []
    size = 0
    for hash_, have in lacking.items():
        source = sources[hash_]
        if source.size > CONTENT_PUT_BYTES_MAX:
            yield from _put_large(hash_, source, have)
            continue
        if size + source.size > CONTENT_PUT_BYTES_MAX or len(batch) == CONTENT_PIECES_MAX:
            yield _put(batch)
            batch, size = [], 0
        batch.append(_piece(hash_, source, 0))
        size += source.size
    if batch:
        yield _put(batch)


def _put_large(hash_: str, source: Source, have: int) -> Generator[Call[Any], Any, None]:
    stuck = 0
    while have < source.size:
        [now] = yield _put([_piece(hash_, source, have)])
        stuck = stuck + 1 if now <= have else 0
        if stuck == _TRIES:
            raise Conflict(f"the upload of blob {hash_} does not go on", hint="submit again")
        have = now


def _piece(hash_: str, source: Source, offset: int) -> content_pb2.Piece:
    data = source.read(offset, CONTENT_PUT_BYTES_MAX)
    return content_pb2.Piece(hash=bytes.fromhex(hash_), size=source.size, offset=offset, data=data)


def _put(pieces: list[content_pb2.Piece]) -> Call[list[int]]:
    request = content_pb2.PutRequest(pieces=pieces)
    return Call(lambda stubs: stubs.content.Put, request, lambda reply: list(reply.have_bytes), _TRY_S)
