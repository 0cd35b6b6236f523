"""The Content service at the wire: bounds, what makes no sense, and nothing that leaves the store."""

from pathlib import Path

import pytest
from paceline.content import store
from paceline.content.manifest import Entry, hash_of, manifest_of
from paceline.proto.failures import translated
from paceline.proto.generated import content_pb2
from paceline.proto.limits import CONTENT_HASHES_MAX, CONTENT_PIECES_MAX, CONTENT_PUT_BYTES_MAX
from paceline.spec.errors import Conflict, InvalidRequest, LimitExceeded, NotFound, PacelineError
from support.wire import wire

DATA = b"print(1)\n"
HASH = bytes.fromhex(hash_of(DATA))
EMPTY = manifest_of([]).to_bytes()


def piece(
    data: bytes = DATA, hash_: bytes = HASH, size: int | None = None, offset: int = 0
) -> content_pb2.Piece:
    return content_pb2.Piece(hash=hash_, size=len(data) if size is None else size, offset=offset, data=data)


def put(*pieces: content_pb2.Piece) -> content_pb2.PutRequest:
    return content_pb2.PutRequest(pieces=pieces)


async def test_what_is_put_is_kept_and_read_back(tmp_path: Path) -> None:
    manifest = manifest_of([Entry("train.py", len(DATA), 0o644, hash_of(DATA))]).to_bytes()
    async with wire(tmp_path) as made:
        stub = made.content
        lacking = await stub.Missing(content_pb2.MissingRequest(hashes=[HASH, b"\0" * 32]))
        assert [one.index for one in lacking.lacking] == [0, 1]
        with pytest.raises(NotFound), translated():
            await stub.Commit(content_pb2.CommitRequest(manifest=manifest))
        assert (await stub.Put(put(piece(DATA[:4], size=len(DATA))))).have_bytes == [4]
        lacking = await stub.Missing(content_pb2.MissingRequest(hashes=[HASH]))
        assert [one.have_bytes for one in lacking.lacking] == [4]
        assert (await stub.Put(put(piece(DATA[4:], size=len(DATA), offset=4)))).have_bytes == [len(DATA)]
        tree = (await stub.Commit(content_pb2.CommitRequest(manifest=manifest))).tree
        assert tree == hash_of(manifest)
        assert (await stub.Commit(content_pb2.CommitRequest(manifest=manifest))).tree == tree
        assert (await stub.Missing(content_pb2.MissingRequest(tree=tree))).has_tree
        assert (await stub.Manifest(content_pb2.ManifestRequest(tree=tree))).manifest == manifest
        read = await stub.Read(content_pb2.ReadRequest(hash=HASH, offset=6))
        assert (read.data, read.size) == (DATA[6:], len(DATA))
        assert (await stub.Read(content_pb2.ReadRequest(hash=HASH, offset=1 << 40))).data == b""


async def test_of_a_tree_that_is_like_one_that_is_here_the_change_is_enough(tmp_path: Path) -> None:
    first = Entry("train.py", len(DATA), 0o644, hash_of(DATA))
    more = Entry("more.py", 1, 0o644, hash_of(b"2"))
    whole = manifest_of([first]).to_bytes()
    base, change = hash_of(whole), manifest_of([more]).to_bytes()
    asked = content_pb2.MissingRequest(hashes=[bytes.fromhex(more.hash)], base=base)
    wanted = content_pb2.CommitRequest(manifest=change, base=base, gone=["train.py"])
    async with wire(tmp_path) as made:
        stub = made.content
        assert not (await stub.Missing(asked)).has_base
        with pytest.raises(NotFound, match=f"no tree {base}"), translated():
            await stub.Commit(wanted)
        await stub.Put(put(piece()))
        await stub.Commit(content_pb2.CommitRequest(manifest=whole))
        found = await stub.Missing(asked)
        assert found.has_base and [one.index for one in found.lacking] == [0]
        with pytest.raises(NotFound, match="blobs"), translated():
            await stub.Commit(wanted)
        await stub.Put(put(piece(b"2", bytes.fromhex(more.hash))))
        assert (await stub.Commit(wanted)).tree == hash_of(change)
        tree = (await stub.Commit(content_pb2.CommitRequest(manifest=change, base=base))).tree
        kept = (await stub.Manifest(content_pb2.ManifestRequest(tree=tree))).manifest
        assert kept == manifest_of([first, more]).to_bytes()


async def test_a_blob_is_hashed_once_however_many_pieces_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    monkeypatch.setattr(store, "_hash_from", lambda file: hashed.append(file) or hash_of(file.read()))
    async with wire(tmp_path) as made:
        await made.content.Put(put(piece()))
        hashed.clear()
        found = [
            (await made.content.Read(content_pb2.ReadRequest(hash=HASH, offset=offset))).data[:1]
            for offset in range(len(DATA))
        ]
        assert b"".join(found) == DATA
        assert len(hashed) == 1


@pytest.mark.parametrize(
    ("method", "request_", "kind"),
    [
        ("Missing", content_pb2.MissingRequest(hashes=[b"short"]), InvalidRequest),
        ("Missing", content_pb2.MissingRequest(tree="../../state/client.token"), InvalidRequest),
        ("Missing", content_pb2.MissingRequest(hashes=[b""] * (CONTENT_HASHES_MAX + 1)), LimitExceeded),
        ("Put", put(piece(hash_=b"x" * 31)), InvalidRequest),
        ("Put", put(piece(offset=-1)), InvalidRequest),
        ("Put", put(piece(size=3)), InvalidRequest),
        ("Put", put(piece(size=1 << 60)), LimitExceeded),
        ("Put", put(piece(b"x" * (CONTENT_PUT_BYTES_MAX + 1))), LimitExceeded),
        ("Put", put(*[piece(b"")] * (CONTENT_PIECES_MAX + 1)), LimitExceeded),
        ("Put", put(piece(b"another")), Conflict),
        ("Commit", content_pb2.CommitRequest(manifest=b"{}"), InvalidRequest),
        (
            "Commit",
            content_pb2.CommitRequest(
                manifest=b'{"files":[["../x",0,420,"' + b"0" * 64 + b'"]],"links":[],"version":1}'
            ),
            InvalidRequest,
        ),
        ("Commit", content_pb2.CommitRequest(manifest=b"x" * ((15 << 20) + 1)), LimitExceeded),
        ("Missing", content_pb2.MissingRequest(base="../../state/client.token"), InvalidRequest),
        ("Commit", content_pb2.CommitRequest(manifest=EMPTY, base="0" * 64), NotFound),
        ("Commit", content_pb2.CommitRequest(manifest=EMPTY, base="/etc/passwd"), InvalidRequest),
        ("Commit", content_pb2.CommitRequest(manifest=b"{}", base="0" * 64), InvalidRequest),
        ("Commit", content_pb2.CommitRequest(manifest=EMPTY, gone=["train.py"]), InvalidRequest),
        (
            "Commit",
            content_pb2.CommitRequest(manifest=EMPTY, base="0" * 64, gone=["x"] * (CONTENT_HASHES_MAX + 1)),
            LimitExceeded,
        ),
        ("Manifest", content_pb2.ManifestRequest(tree="0" * 64), NotFound),
        ("Manifest", content_pb2.ManifestRequest(tree="/etc/passwd"), InvalidRequest),
        ("Read", content_pb2.ReadRequest(hash=b"\0" * 32), NotFound),
        ("Read", content_pb2.ReadRequest(hash=b"../../../../etc/passwd" + b"\0" * 10), NotFound),
        ("Read", content_pb2.ReadRequest(hash=HASH, offset=-1), InvalidRequest),
    ],
)
async def test_what_makes_no_sense_or_is_too_much_is_refused(
    tmp_path: Path, method: str, request_: object, kind: type[PacelineError]
) -> None:
    async with wire(tmp_path) as made:
        stub = made.content
        with pytest.raises(kind), translated():
            await getattr(stub, method)(request_)
