"""A follower's place: whatever the connection does, each byte and each event comes once and in order."""

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from paceline.client.calls import LogCursor, WatchCursor
from paceline.client.patience import MOST_S, Patience
from paceline.client.rpc import Sent
from paceline.client.submit_calls import BYTES_PER_SUBMIT_MAX, JOBS_PER_SUBMIT_MAX, batches
from paceline.proto.generated import jobs_pb2, logs_pb2
from paceline.proto.payload import Payload, decoder


def cursor(**changes: object) -> LogCursor:
    return LogCursor(7, **{"attempt": 0, "rank": -1, "offset": 0, "follow": True, **changes})  # type: ignore[arg-type]


def request_of(made: LogCursor) -> logs_pb2.FollowRequest:
    class Stubs:
        class logs:
            Follow = None

    return made.open(Stubs())[1]  # type: ignore[arg-type]


def sent(**fields: Any) -> Payload[logs_pb2.LogChunk]:
    return decoder(logs_pb2.LogChunk)(logs_pb2.LogChunk(**fields).SerializeToString())


def served(
    streams: dict[tuple[int, int], bytes], request: logs_pb2.FollowRequest, size: int
) -> list[Payload[logs_pb2.LogChunk]]:
    """What a scheduler sends that honours `positions`: attempt after attempt, rank after rank."""
    places = {(p.attempt, p.rank): p.offset for p in request.positions}
    first = min((attempt for attempt, _ in places), default=0)
    chunks = []
    for (attempt, rank), data in sorted(streams.items()):
        if attempt < first:
            continue
        for at in range(places.get((attempt, rank), 0), len(data), size):
            chunks.append(sent(job=7, attempt=attempt, rank=rank, offset=at, data=data[at : at + size]))
    return chunks


@given(
    st.dictionaries(
        st.tuples(st.integers(1, 3), st.integers(0, 2)), st.binary(min_size=1, max_size=40), min_size=1
    ),
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), max_size=6),
    st.booleans(),
)
def test_no_byte_is_lost_or_doubled_over_lost_connections(
    streams: dict[tuple[int, int], bytes], breaks: list[tuple[int, int]], forgetful: bool
) -> None:
    made = cursor()
    got: dict[tuple[int, int], bytes] = {}
    for after, size in [*breaks, (10**6, 7)]:
        request = request_of(made)
        if forgetful:  # a scheduler that does not know `positions` sends all again
            request.ClearField("positions")
        for message in served(streams, request, size)[:after]:
            chunk = made.accept(message)
            if chunk is not None:
                key = (chunk.attempt, chunk.rank)
                assert chunk.offset == len(got.get(key, b""))
                got[key] = got.get(key, b"") + chunk.data
    assert got == streams


def test_a_tail_starts_where_the_scheduler_says_and_goes_on_from_there() -> None:
    made = cursor(offset=-10)
    first = made.accept(sent(job=7, attempt=1, rank=0, offset=90, data=b"0123456789"))
    assert first is not None and first.offset == 90
    positions = request_of(made).positions
    assert [(p.attempt, p.rank, p.offset) for p in positions] == [(1, 0, 100)]


def test_dropped_bytes_are_passed_on() -> None:
    made = cursor()
    chunk = made.accept(sent(job=7, attempt=1, rank=0, offset=500, data=b"x", dropped_bytes=500))
    assert chunk is not None and chunk.dropped_bytes == 500


@given(st.lists(st.integers(1, 20), max_size=30))
def test_watched_events_come_once_and_in_order(seqs: list[int]) -> None:
    made = WatchCursor(7, 3)
    got = []
    for seq in seqs:
        reply = jobs_pb2.WatchReply(
            entry=jobs_pb2.TimelineEntry(seq=seq, kind="x"), job=jobs_pb2.JobView(job=7, state="RUNNING")
        )
        if (change := made.accept(reply)) is not None:
            got.append(change.entry.seq)
    assert got == sorted(set(got)) and all(seq > 3 for seq in got)


@given(st.lists(st.integers(0, BYTES_PER_SUBMIT_MAX // 3), max_size=12))
def test_batches_keep_the_order_and_the_bounds(sizes: list[int]) -> None:
    jobs = [Sent("x" * size, f"{number}.yaml") for number, size in enumerate(sizes)]
    parts = batches(jobs)
    assert [sent for part in parts for sent in part] == jobs
    assert all(part and sum(len(sent.document) for sent in part) <= BYTES_PER_SUBMIT_MAX for part in parts)


def test_batches_of_many_small_jobs() -> None:
    assert [len(part) for part in batches([Sent("{}", "a")] * 2500)] == [JOBS_PER_SUBMIT_MAX] * 2 + [500]


@given(st.floats(0.01, 100), st.lists(st.floats(0, 0.999), min_size=1, max_size=60))
def test_patience_ends_and_waits_are_bounded(limit_s: float, luck: list[float]) -> None:
    patience, now_s = Patience(limit_s), 1000.0
    for value in itertools.cycle(luck):
        wait_s = patience.on_failure(now_s, value)
        if wait_s is None:
            break
        assert 0 < wait_s <= MOST_S
        now_s += wait_s
        assert now_s <= 1000.0 + limit_s + 1e-6
    patience.on_success()
    assert patience.on_failure(now_s, 0.5) is not None
