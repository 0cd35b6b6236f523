"""Messages that carry output: what is made and read in place is what protobuf makes and reads."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from paceline.proto.generated import common_pb2, logs_pb2
from paceline.proto.payload import decoder, encode

CHUNKS = st.builds(
    logs_pb2.LogChunk,
    job=st.integers(0, 2**63 - 1),
    attempt=st.integers(0, 2**31 - 1),
    rank=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**50),
    dropped_bytes=st.integers(0, 2**50),
)
PIECES = st.builds(
    logs_pb2.LogPiece,
    task=st.builds(common_pb2.TaskKey, job=st.integers(1, 2**40), attempt=st.integers(1, 9)),
    rank=st.integers(0, 1000),
    size=st.integers(0, 1 << 18),
)
REQUESTS = st.builds(logs_pb2.ShipRequest, pieces=st.lists(PIECES, max_size=5), node_id=st.text(max_size=9))
DATA = st.lists(st.one_of(st.binary(max_size=200), st.integers(0, 70_000).map(bytes)), max_size=4)


@given(CHUNKS | REQUESTS, DATA)
def test_it_is_the_message_that_protobuf_makes(
    head: logs_pb2.LogChunk | logs_pb2.ShipRequest, data: list[bytes]
) -> None:
    kind = type(head)
    raw = encode(head, *map(memoryview, data))
    whole = kind()
    whole.CopyFrom(head)
    whole.data = b"".join(data)
    assert kind.FromString(raw) == whole
    for each in (raw, whole.SerializeToString()):
        read = decoder(kind)(each)
        read.head.ClearField("data")
        assert (read.head, read.data) == (head, whole.data)


@given(CHUNKS, st.binary(min_size=1, max_size=300), st.data())
def test_what_is_cut_off_is_refused_or_means_what_protobuf_says(
    head: logs_pb2.LogChunk, data: bytes, drawn: st.DataObject
) -> None:
    raw = encode(head, data)
    cut = raw[: drawn.draw(st.integers(0, len(raw) - 1))]
    try:
        expected = logs_pb2.LogChunk.FromString(cut)
    except DecodeError:
        with pytest.raises(DecodeError):
            decoder(logs_pb2.LogChunk)(cut)
        return
    read = decoder(logs_pb2.LogChunk)(cut)
    assert read.data == expected.data
