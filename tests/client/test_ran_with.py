"""Records as nodes write them: read, checked, grouped by node, compared. The scheduler's part is played."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from paceline.client.content_calls import read
from paceline.client.ran_with import Change, Package, RanWith, _of_places, _pairs, _Place, package_changes
from paceline.proto.generated import content_pb2
from paceline.spec.errors import LimitExceeded, NotFound

RECORD, LIST = "aa" * 32, "bb" * 32
SAID = {
    **dict.fromkeys(("paceline", "interpreter", "python", "implementation", "machine", "kernel"), "x"),
    **dict.fromkeys(("os", "libc", "driver", "cuda", "problem"), ""),
    "version": 1,
    "packages": LIST,
    "packages_count": 1,
    "packages_left_out": 0,
    "gpus": [
        {"index": index, "name": "H200", "uuid": f"GPU-{index}", "serial": "", "slice_of": ""}
        for index in (0, 1)
    ],
}
PACKAGES = [["our", "1", ""]]


def found(places: list[_Place], blobs: Mapping[str, Any]) -> tuple[RanWith, ...]:
    """What is made of these places where the scheduler has these blobs."""
    calling = _of_places(places)
    try:
        call = next(calling)
        while True:
            hash_ = call.request.hash.hex()
            if hash_ in blobs:
                data = json.dumps(blobs[hash_]).encode()
                call = calling.send(call.decode(content_pb2.ReadReply(data=data, size=len(data))))
            else:
                call = calling.throw(NotFound(f"there is no blob {hash_} here"))
    except StopIteration as done:
        result: tuple[RanWith, ...] = done.value
        return result


def test_tasks_of_a_node_stand_together_with_the_gpus_that_were_theirs() -> None:
    places = [_Place(0, "n1", RECORD, (1,)), _Place(1, "n2", RECORD, (0,)), _Place(2, "n1", RECORD, ())]
    first, second = found([*places, _Place(3, "n3", "", ())], {RECORD: SAID, LIST: PACKAGES})
    assert (first.tasks, first.node, [gpu.uuid for gpu in first.gpus]) == ((0, 2), "n1", ["GPU-1"])
    assert (second.tasks, [gpu.uuid for gpu in second.gpus]) == ((1,), ["GPU-0"])
    assert first.packages == second.packages == (Package("our", "1"),)


@pytest.mark.parametrize(
    "blobs",
    [
        {RECORD: "text"},
        {RECORD: []},
        {RECORD: {}},
        {RECORD: {**SAID, "version": 2}},
        {RECORD: {**SAID, "gpus": [1]}},
        {RECORD: {**SAID, "packages": "no hash"}},
        {RECORD: {"version": 1}},
        {RECORD: SAID, LIST: [["our"]]},
        {RECORD: SAID},
        {},
    ],
)
def test_what_is_gone_or_of_another_form_is_said(blobs: Mapping[str, Any]) -> None:
    [one] = found([_Place(0, "n1", RECORD, ())], blobs)
    assert one.problem.startswith("record aaaaaaaaaaaa cannot be read: ")
    assert (one.tasks, one.node, one.packages) == ((0,), "n1", ())


def test_a_blob_is_read_in_pieces_and_no_more_of_it_than_is_wanted() -> None:
    calling = read(RECORD, 100)
    assert next(calling).request.offset == 0
    assert calling.send((b"abc", 5)).request.offset == 3
    with pytest.raises(StopIteration) as done:
        calling.send((b"de", 5))
    assert done.value.value == b"abcde"
    calling = read(RECORD, 4)
    next(calling)
    with pytest.raises(LimitExceeded, match="has 5 bytes; at most 4"):
        calling.send((b"abc", 5))


def test_packages_are_compared_by_name_version_and_origin() -> None:
    old = (Package("Same", "1"), Package("gone", "1"), Package("up", "1"), Package("moved", "1"))
    new = (Package("Same", "1"), Package("up", "2"), Package("moved", "1", "file:///x"), Package("new", "1"))
    assert list(package_changes(old, new)) == [
        Change("gone", "1", ""),
        Change("moved", "1", "1 (file:///x)"),
        Change("new", "", "1"),
        Change("up", "1", "2"),
    ]


def test_gangs_are_compared_task_by_task() -> None:
    old = (RanWith((0, 1), "a", "r"), RanWith((2,), "b", "s"))
    new = (RanWith((0,), "c", "t"), RanWith((1,), "d", "u"))
    assert [(one.node, other.node) for one, other in _pairs(old, new)] == [("a", "c"), ("a", "d")]
