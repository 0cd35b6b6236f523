"""How several agents share one machine, and how processes are known."""

import os
import signal
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from paceline.client import machine, process
from support.cluster import wait_until


@given(st.integers(2, 64), st.integers(0, 64))
def test_gpus_are_shared_without_overlap_and_all_of_them(count: int, gpus: int) -> None:
    shares = [machine.gpu_share(index, count, gpus) for index in range(count)]
    given_out = [int(gpu) for share in shares if share != "none" for gpu in share.split(",")]
    assert given_out == list(range(gpus))
    sizes = [0 if share == "none" else len(share.split(",")) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_agent_has_all_gpus_whatever_is_known_of_them() -> None:
    assert machine.gpu_share(0, 1, 0) == "all"


@given(st.integers(1, 500))
def test_shares_are_at_least_one_cpu_and_no_more_than_there_is(count: int) -> None:
    cpus = machine.cpu_share(count)
    assert cpus >= 1 and (cpus == 1 or cpus * count <= os.cpu_count())  # type: ignore[operator]
    assert 0 < machine.memory_share_bytes(count) * count <= machine.memory_share_bytes(1)


def test_a_process_is_known_by_its_start_time_too() -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        known = process.identify(child.pid)
        assert known is not None and known.is_alive()
        stranger = process.Identity(child.pid, known.start_time + 1)
        assert not stranger.is_alive() and not process.send(stranger, signal.SIGKILL)
        assert known.is_alive()
        assert process.send(known, signal.SIGKILL) and process.wait_gone(known, 10)
        assert not known.is_alive() and process.identify(child.pid) is None  # a zombie is gone
    finally:
        child.kill()
        child.wait()
    assert not process.send(known, signal.SIGTERM)


def test_descendants_and_marks_find_what_hides() -> None:
    script = "import os, time; os.fork() or os.setsid(); time.sleep(600)"
    mark = f"mark-{os.getpid()}"
    child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PACELINE_TEST_MARK": mark})
    known = process.identify(child.pid)
    assert known is not None
    try:
        below = wait_until("it has forked", lambda: next(process.descendants(known), None))
        marked = set(process.with_environment("PACELINE_TEST_MARK", lambda value: value == mark))
        assert marked == {known, below}
    finally:
        killed = process.kill_all(
            lambda: process.with_environment("PACELINE_TEST_MARK", lambda value: value == mark), 10
        )
        child.wait()
    assert set(killed) == {known, below}
