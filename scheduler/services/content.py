"""The Content service: what clients upload, by content. Beside the loop: it changes nothing of the cluster.

At most two calls are on the disk at once, however many come.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ...content.errors import Damaged
from ...content.store import ContentStore, Piece
from ...proto.generated import content_pb2, content_pb2_grpc
from ...proto.limits import (
    CHUNK_BYTES_MAX,
    CONTENT_HASHES_MAX,
    CONTENT_PIECES_MAX,
    CONTENT_PUT_BYTES_MAX,
)
from ...spec.errors import Conflict, InvalidRequest, LimitExceeded, StoreFailure

T = TypeVar("T")

_AT_ONCE: Final = 2
_HASH_BYTES: Final = 32


class ContentService(content_pb2_grpc.ContentServicer):
    """Over the cluster's one store, and what agents have left of the tasks that they started."""

    def __init__(self, store: ContentStore, records: ContentStore) -> None:
        self._store, self._records = store, records
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def Missing(self, request: content_pb2.MissingRequest, context: Any) -> content_pb2.MissingReply:
        if len(request.hashes) > CONTENT_HASHES_MAX:
            raise LimitExceeded(f"{len(request.hashes)} hashes in one call; at most {CONTENT_HASHES_MAX}")
        hashes = [_hex(hash_) for hash_ in request.hashes]

        def look() -> content_pb2.MissingReply:
            has_tree = bool(request.tree) and self._store.has_tree(request.tree)
            has_base = bool(request.base) and self._store.has_tree(request.base)
            at = {hash_: index for index, hash_ in enumerate(hashes)}
            lacking = [
                content_pb2.Lacking(index=at[one.hash], have_bytes=one.have_bytes)
                for one in self._store.missing(hashes)
            ]
            return content_pb2.MissingReply(has_tree=has_tree, lacking=lacking, has_base=has_base)

        return await self._on_disk(look)

    async def Put(self, request: content_pb2.PutRequest, context: Any) -> content_pb2.PutReply:
        size = sum(len(piece.data) for piece in request.pieces)
        if len(request.pieces) > CONTENT_PIECES_MAX or size > CONTENT_PUT_BYTES_MAX:
            raise LimitExceeded(
                f"{len(request.pieces)} pieces of {size} bytes in one call; at most {CONTENT_PIECES_MAX}"
                f" and {CONTENT_PUT_BYTES_MAX} bytes"
            )
        pieces = [_piece(piece, self._store.bounds.file_bytes_max) for piece in request.pieces]
        try:
            have = await self._on_disk(lambda: self._store.put_pieces(pieces))
        except Damaged as error:
            raise Conflict(
                f"{error.message}: the file has changed while it was sent", hint="submit again"
            ) from error
        return content_pb2.PutReply(have_bytes=have)

    async def Commit(self, request: content_pb2.CommitRequest, context: Any) -> content_pb2.CommitReply:
        if len(request.gone) > CONTENT_HASHES_MAX:
            raise LimitExceeded(f"{len(request.gone)} paths that are gone; at most {CONTENT_HASHES_MAX}")
        if request.gone and not request.base:
            raise InvalidRequest("paths are gone of a base, and none is named")

        def keep() -> str:
            if request.base:
                return self._store.commit_change(request.base, request.manifest, request.gone)
            return self._store.commit(request.manifest)

        return content_pb2.CommitReply(tree=await self._on_disk(keep))

    async def Manifest(self, request: content_pb2.ManifestRequest, context: Any) -> content_pb2.ManifestReply:
        manifest = await self._on_disk(lambda: self._store.manifest(request.tree).to_bytes())
        return content_pb2.ManifestReply(manifest=manifest)

    async def Read(self, request: content_pb2.ReadRequest, context: Any) -> content_pb2.ReadReply:
        hash_ = _hex(request.hash)
        if request.offset < 0:
            raise InvalidRequest(f"{request.offset} is no offset")

        def read() -> content_pb2.ReadReply:
            store = self._records if self._records.blob_path(hash_).exists() else self._store
            # Verified with its first piece: with each, it would be hashed as often as it has pieces.
            opened = store.open_part if request.offset else store.open
            with opened(hash_) as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(min(request.offset, size))
                return content_pb2.ReadReply(data=file.read(CHUNK_BYTES_MAX), size=size)

        return await self._on_disk(read)

    async def _on_disk(self, work: Callable[[], T]) -> T:
        async with self._turns:
            try:
                return await asyncio.to_thread(work)
            except OSError as error:
                raise StoreFailure(
                    f"the storage of files does not take or give it: {error}",
                    hint="see the disk below the scheduler's --storage folder",
                ) from error


def _piece(piece: content_pb2.Piece, size_max: int) -> Piece:
    if piece.size < 0 or piece.offset < 0 or piece.offset + len(piece.data) > piece.size:
        raise InvalidRequest("a piece that is not within its blob")
    if piece.size > size_max:
        raise LimitExceeded(f"a blob of {piece.size} bytes; at most {size_max} are taken")
    return Piece(_hex(piece.hash), piece.size, piece.offset, piece.data)


def _hex(hash_: bytes) -> str:
    if len(hash_) != _HASH_BYTES:
        raise InvalidRequest(f"a hash of {len(hash_)} bytes; it has {_HASH_BYTES}")
    return hash_.hex()
