"""The line to the shim: training neither waits nor dies, whatever the other side does."""

import os
import time
from pathlib import Path

import pytest
from paceline.proto.shim_line import BUFFER_BYTES_MAX, ShimLink
from support.fake_shim import FakeShim, FakeTask, wait_until


def test_posts_arrive_in_order_and_questions_get_their_answer(task: FakeTask, shim: FakeShim) -> None:
    link = ShimLink(task.folder)
    for number in range(50):
        link.post({"op": "metrics", "number": number})
    assert link.ask({"op": "checkpoint"}) == {"ok": True, "seq": 1}
    assert link.ask({"op": "restored"}) == {"ok": True, "seq": 2}
    wait_until(lambda: len(shim.of("metrics")) == 50, "all arrive")
    assert [one["number"] for one in shim.of("metrics")] == list(range(50))
    link.close(1.0)


def test_a_shim_that_is_away_is_no_reason_to_wait_or_fail(task: FakeTask) -> None:
    link = ShimLink(task.folder)
    since_s = time.monotonic()
    for number in range(20_000):
        link.post({"op": "metrics", "number": number, "padding": "x" * 50})
    assert link.ask({"op": "checkpoint"}) is None
    assert time.monotonic() - since_s < 60
    assert link.dropped_lines > 0
    link.close(1.0)


def test_what_waited_is_sent_when_the_shim_comes_newest_kept(
    task: FakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.proto.shim_line.RECONNECT_S", 0.0)
    link = ShimLink(task.folder)
    for number in range(20_000):
        link.post({"op": "metrics", "number": number})
    with FakeShim(task) as shim:
        link.post({"op": "metrics", "number": 20_000})
        link.close(5.0)
        wait_until(
            lambda: bool(shim.messages) and shim.messages[-1]["number"] == 20_000, "the newest is there"
        )
        numbers = [one["number"] for one in shim.messages]
    assert numbers == list(range(numbers[0], 20_001)), "the oldest went, nothing in between"
    assert 1000 < len(numbers) < BUFFER_BYTES_MAX / 20


def test_a_silent_shim_is_given_up_in_time(task: FakeTask) -> None:
    with FakeShim(task, mode="silent"):
        since_s = time.monotonic()
        assert ShimLink(task.folder).ask({"op": "checkpoint"}, timeout_s=0.2) is None
        assert 0.15 < time.monotonic() - since_s < 60


def test_a_shim_that_stops_reading_does_not_stop_training(task: FakeTask) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        folder = os.open(task.folder, os.O_PATH)
        server.bind(f"/proc/self/fd/{folder}/shim.sock")
        os.close(folder)
        server.listen()
        link = ShimLink(task.folder)
        since_s = time.monotonic()
        for number in range(20_000):
            link.post({"op": "metrics", "number": number, "padding": "x" * 100})
        link.close(0.1)
        assert time.monotonic() - since_s < 60
        assert link.dropped_lines > 0


def test_a_connection_that_breaks_is_made_anew_and_no_line_is_torn(
    task: FakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.proto.shim_line.RECONNECT_S", 0.0)
    link = ShimLink(task.folder)
    with FakeShim(task):
        link.post({"op": "metrics", "number": 1})
    with FakeShim(task) as shim:
        for number in range(2, 40):
            link.post({"op": "metrics", "number": number})
        wait_until(lambda: any(one["number"] == 39 for one in shim.messages), "the later ones arrive")
    link.close(1.0)


def test_a_forked_child_has_a_line_of_its_own(task: FakeTask, shim: FakeShim) -> None:
    link = ShimLink(task.folder)
    link.post({"op": "metrics", "who": "parent"})
    pid = os.fork()
    if pid == 0:
        for _ in range(100):
            link.post({"op": "metrics", "who": "child"})
        link.close(2.0)
        os._exit(0)
    for _ in range(100):
        link.post({"op": "metrics", "who": "parent"})
    assert os.waitpid(pid, 0)[1] == 0
    wait_until(lambda: len(shim.of("metrics")) == 201, "all arrive whole")
    link.close(1.0)


def test_a_folder_whose_path_is_longer_than_a_socket_may_be(tmp_path: Path) -> None:
    task = FakeTask(tmp_path / ("x" * 120))
    with FakeShim(task):
        assert ShimLink(task.folder).ask({"op": "stay", "rank": 0}) == {"ok": True, "seq": 1}
