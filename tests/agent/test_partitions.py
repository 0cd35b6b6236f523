"""A node behind a partition, with the real scheduler: who is replaced when, and what of the leftovers."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from paceline.spec.lifecycle import NodeContact
from support.cluster import Cluster, wait_until
from support.proxy import Proxy

LEASE_S, REPLACE_S = 4.0, 8.0
SCHEDULER = ("--heartbeat", "0.2", "--lease-exclusive", str(LEASE_S), "--replace-exclusive", str(REPLACE_S))

BEATS = """
import os, sys, time
attempt = os.environ["PACELINE_ATTEMPT"]
with open(sys.argv[1], "a") as beats:
    while not os.path.exists(sys.argv[2]):
        beats.write(f"{attempt} {os.getpid()} {time.monotonic()}\\n")
        beats.flush()
        time.sleep(0.02)
"""


class Beats:
    """A job that says, every 20 ms, that it lives: attempt, pid, monotonic time of this machine."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "beats"
        self._file.touch()
        self.go_home = folder / "go-home"
        script = folder / "beats.py"
        script.write_text(BEATS)
        self.command = f"python {script} {self._file} {self.go_home}"

    def of(self, attempt: int) -> list[float]:
        return [float(at) for number, _, at in self._lines() if int(number) == attempt]

    def pid(self, attempt: int) -> int:
        return next(int(pid) for number, pid, _ in self._lines() if int(number) == attempt)

    def _lines(self) -> list[tuple[str, str, str]]:
        lines = [
            line.split() for line in self._file.read_text().splitlines(keepends=True) if line[-1] == "\n"
        ]
        return [(words[0], words[1], words[2]) for words in lines]


@pytest.fixture
def beats(tmp_path: Path) -> Beats:
    return Beats(tmp_path)


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Cluster, list[Proxy]]]:
    """Each behind a proxy of its own; the second joins when the first has its job."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(folder, agents=0, scheduler_args=SCHEDULER))
        host, _, port = cluster.address.rpartition(":")
        proxies = [stack.enter_context(Proxy((host, int(port)))) for _ in range(2)]
        start_agent(cluster, proxies, 0)
        yield cluster, proxies
        for index in cluster.agents:  # before their proxies go
            cluster.stop_agent(index)


def start_agent(cluster: Cluster, proxies: list[Proxy], index: int) -> None:
    cluster.start_agent(index, "--cold", address=f"127.0.0.1:{proxies[index].port}")


def submit(cluster: Cluster, beats: Beats, exclusive: bool) -> int:
    extra = "exclusive: true\n" if exclusive else ""
    job = cluster.submit_text(f"command: {beats.command}\n{extra}")
    wait_until("the first attempt lives", lambda: bool(beats.of(1)))
    return job


def test_an_exclusive_job_is_dead_here_before_it_lives_there(tmp_path: Path, beats: Beats) -> None:
    with two_nodes(tmp_path) as (cluster, proxies):
        job = submit(cluster, beats, exclusive=True)
        start_agent(cluster, proxies, 1)
        proxies[0].stall()
        stalled_s = time.monotonic()
        wait_until("the second attempt lives", lambda: bool(beats.of(2)), 30)
        last_of_first, first_of_second = beats.of(1)[-1], beats.of(2)[0]
        assert last_of_first < first_of_second
        assert LEASE_S - 1 < last_of_first - stalled_s < REPLACE_S
        assert first_of_second - stalled_s > REPLACE_S - 1
        proxies[0].heal()
        beats.go_home.touch()
        assert cluster.wait_state(job, "SUCCEEDED").attempt == 2
        assert beats.of(1)[-1] == last_of_first


def test_a_fenced_job_is_replaced_at_once_and_its_leftovers_die_on_contact(
    tmp_path: Path, beats: Beats
) -> None:
    with two_nodes(tmp_path) as (cluster, proxies):
        job = submit(cluster, beats, exclusive=False)
        start_agent(cluster, proxies, 1)
        proxies[0].stall()
        stalled_s = time.monotonic()
        wait_until("the second attempt lives", lambda: bool(beats.of(2)), 30)
        assert beats.of(2)[0] - stalled_s < 5.0
        assert psutil.pid_exists(beats.pid(1))  # nobody could tell it
        proxies[0].heal()
        wait_until("the leftovers are dead", lambda: not psutil.pid_exists(beats.pid(1)), 30)
        beats.go_home.touch()
        found = cluster.wait_state(job, "SUCCEEDED")
        assert found.attempt == 2
        wait_until("its folder is dropped", lambda: not list((cluster.agent_state(0) / "tasks").iterdir()))


def test_a_short_partition_replaces_no_exclusive_job(tmp_path: Path, beats: Beats) -> None:
    with two_nodes(tmp_path) as (cluster, proxies):
        job = submit(cluster, beats, exclusive=True)
        start_agent(cluster, proxies, 1)
        proxies[0].stall()

        def contact() -> NodeContact:
            return next(node.contact for node in cluster.client.nodes().nodes if node.name == "local-0")

        wait_until("contact is lost", lambda: contact() is not NodeContact.CONNECTED)
        proxies[0].heal()
        wait_until("contact is back", lambda: contact() is NodeContact.CONNECTED)
        pid = beats.pid(1)
        before = len(beats.of(1))
        wait_until("it goes on", lambda: len(beats.of(1)) > before)
        beats.go_home.touch()
        assert cluster.wait_state(job, "SUCCEEDED").attempt == 1
        assert beats.pid(1) == pid
