"""A partition between agent and scheduler, shorter and longer than the lease, for fenced and exclusive jobs.

Node local-0 talks through a proxy; local-1 directly, and joins when the job is placed on local-0.
"""

import itertools
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paceline.agent import kernel
from support.cluster import Cluster, wait_until
from support.counting import Counting
from support.proxy import Proxy

HEARTBEAT_S = 0.5
LOST_AFTER_S = 3.5 * HEARTBEAT_S
LEASE_S, REPLACE_S = 3.0, 6.0
SETTINGS = (
    *("--heartbeat", str(HEARTBEAT_S)),
    *("--lease-exclusive", str(LEASE_S)),
    *("--replace-exclusive", str(REPLACE_S)),
)

Fault = Callable[[Proxy], object]
SILENT: dict[str, Fault] = {
    "silence": lambda proxy: proxy.stall(),
    "silence up": lambda proxy: proxy.stall(up=True, down=False),
    "refusal": lambda proxy: (proxy.refuse(), proxy.cut()),
}


@contextmanager
def apart(folder: Path, *settings: str) -> Iterator[tuple[Cluster, Proxy]]:
    """A scheduler, a node behind a proxy, and no other node yet."""
    with Cluster(folder, agents=0, cpus=2, scheduler_args=settings, agent_args=["--cold"]) as cluster:
        host, _, port = cluster.address.rpartition(":")
        with Proxy((host, int(port))) as proxy:
            cluster.start_agent(0, address=f"127.0.0.1:{proxy.port}")
            yield cluster, proxy
            proxy.heal()
            proxy.refuse(False)
            for index in cluster.agents:
                cluster.stop_agent(index)


def told(cluster: Cluster, job: int, kind: str) -> list[str]:
    return [entry.text for entry in cluster.client.timeline(job).entries if entry.kind == kind]


@pytest.mark.parametrize("exclusive", [False, True], ids=["fenced", "exclusive"])
def test_shorter_than_the_lease(tmp_path: Path, exclusive: bool) -> None:
    """Silence, cuts, delays, doubled connections: the job goes on, same pids, and its output is whole."""
    with apart(tmp_path) as (cluster, proxy):
        counting = Counting(tmp_path / "counting", exclusive=exclusive)
        job = cluster.submit_text(counting.text)
        pids = counting.wait_running(1)
        cluster.start_agent(1)
        proxy.stall()
        time.sleep(1.2)  # the partition's length
        proxy.heal()
        cluster.wait_connected(0)
        proxy.stall(up=False, down=True)
        time.sleep(1.2)
        proxy.heal()
        proxy.duplicate()
        for size in (400, 2_000, 5_000):
            proxy.cut_after(size)
            counting.wait_counting_on(1)
        proxy.cut_after(None)
        proxy.duplicate(False)
        proxy.cut()
        proxy.delay(0.05, jitter_s=0.1)
        cluster.wait_connected(0)
        proxy.delay(0)
        assert counting.pids(1) == pids == cluster.gang_pids(job, 1)
        counting.stop()
        counting.check(cluster, job, alone=True)


@pytest.mark.parametrize("silence", list(SILENT))
def test_a_fenced_job_is_replaced_after_three_missed_heartbeats(tmp_path: Path, silence: str) -> None:
    """And what is left of it on the silent node is killed when that hears of the newer attempt."""
    with apart(tmp_path, *SETTINGS) as (cluster, proxy):
        counting = Counting(tmp_path / "counting")
        job = cluster.submit_text(counting.text)
        (left,) = counting.wait_running(1)
        cluster.start_agent(1)
        began_s = time.monotonic()
        SILENT[silence](proxy)
        counting.wait_running(2)
        replaced_s = time.monotonic() - began_s
        assert replaced_s >= LOST_AFTER_S - HEARTBEAT_S, "given up before three heartbeats were missed"
        if silence != "silence up":  # there it can still be told
            assert kernel.start_time(left) is not None, "a fenced job's leftover goes on until it hears"
        counting.wait_counting_on(2)
        proxy.refuse(False)
        proxy.heal()
        wait_until("the leftover is killed", lambda: kernel.start_time(left) is None)
        counting.stop()
        counting.check(cluster, job, attempts=2)
        (lost,) = [text for text in told(cluster, job, "AttemptEnded") if text.startswith("attempt 1")]
        assert "node-lost" in lost and "local-0 has not been heard of for" in lost
        wait_until("its folder is dropped", lambda: not list((cluster.agent_state() / "tasks").iterdir()))


@pytest.mark.parametrize("silence", list(SILENT))
def test_an_exclusive_job_never_lives_twice(tmp_path: Path, silence: str) -> None:
    """The agent kills it when its lease has run out, the scheduler starts it anew only well after that."""
    with apart(tmp_path, *SETTINGS) as (cluster, proxy):
        counting = Counting(tmp_path / "counting", exclusive=True)
        job = cluster.submit_text(counting.text)
        (left,) = counting.wait_running(1)
        cluster.start_agent(1)
        SILENT[silence](proxy)
        wait_until("the lease has run out at the agent", lambda: kernel.start_time(left) is None, REPLACE_S)
        killed_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        # By the last acknowledged renewal: a busy machine may have renewed long before the silence began.
        (renewed_s,) = struct.unpack_from("<d", (cluster.agent_state() / "lease").read_bytes())
        assert killed_s >= renewed_s + LEASE_S
        counting.wait_running(2)
        assert time.clock_gettime(time.CLOCK_BOOTTIME) >= renewed_s + REPLACE_S
        proxy.refuse(False)
        proxy.heal()
        cluster.wait_connected(0)
        counting.wait_counting_on(2)
        counting.stop()
        counting.check(cluster, job, attempts=2, alone=True)
        for earlier, later in itertools.pairwise((counting.life(1, 0), counting.life(2, 0))):
            assert earlier[1] < later[0]


def test_an_exclusive_job_outlives_a_restart_of_the_scheduler(tmp_path: Path) -> None:
    """Its lease bridges the time that the scheduler is away, however busy the machine that starts it."""
    with apart(tmp_path, "--lease-exclusive", "60", "--replace-exclusive", "120") as (cluster, _):
        counting = Counting(tmp_path / "counting", exclusive=True)
        job = cluster.submit_text(counting.text)
        pids = counting.wait_running(1)
        cluster.kill_scheduler()
        cluster.start_scheduler()
        cluster.wait_connected(0)
        assert cluster.gang_pids(job, 1) == pids
        counting.stop()
        counting.check(cluster, job, alone=True)
