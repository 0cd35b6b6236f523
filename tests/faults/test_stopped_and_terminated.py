"""SIGSTOP for a while, and SIGTERM, of each kind of process: scheduler, agent, zygote, shim, worker."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.agent import kernel
from paceline.client import process
from support.cluster import Cluster
from support.counting import Counting

STOPPED_S = 1.5


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    patient = ("--missed-heartbeats", "30")
    with Cluster(tmp_path, agents=1, cpus=4, scheduler_args=patient, agent_args=["--cold"]) as made:
        yield made


def identified(pid: int) -> process.Identity:
    found = process.identify(pid)
    assert found is not None
    return found


def above(pid: int) -> process.Identity:
    """The process that started this one: a rank's shim, a shim's zygote."""
    parent = process.parent_of(identified(pid))
    assert parent is not None
    return identified(parent)


def test_each_is_stopped_for_a_while(cluster: Cluster, tmp_path: Path) -> None:
    """The job goes on, same pids, one attempt, whoever stands still; a worker counts on later."""
    counting = Counting(tmp_path / "counting")
    job = cluster.submit_text(counting.text)
    (pid,) = counting.wait_running(1)
    shim = above(pid)
    assert cluster.scheduler is not None
    victims = {
        "scheduler": cluster.scheduler.identity,
        "agent": cluster.agents[0].identity,
        "zygote": above(shim.pid),
        "shim": shim,
        "worker": identified(pid),
    }
    for name, victim in victims.items():
        process.send(victim, signal.SIGSTOP)
        if name != "worker":
            counting.wait_counting_on(1)
        time.sleep(STOPPED_S)  # how long it stands still
        process.send(victim, signal.SIGCONT)
        counting.wait_counting_on(1)
    cluster.wait_connected(0)
    # While it stood still nobody lost anything: a second job starts through the same processes.
    second = Counting(tmp_path / "second")
    other = cluster.submit_text(second.text)
    second.wait_running(1)
    counting.stop()
    second.stop()
    counting.check(cluster, job, alone=True)
    second.check(cluster, other)
    assert cluster.client.job(job).tasks[0].pids == (pid,)


def test_sigterm_of_scheduler_agent_and_zygote_stops_no_job(cluster: Cluster, tmp_path: Path) -> None:
    counting = Counting(tmp_path / "counting")
    job = cluster.submit_text(counting.text)
    (pid,) = counting.wait_running(1)
    zygote = above(above(pid).pid)
    cluster.stop_scheduler()
    counting.wait_counting_on(1)
    cluster.start_scheduler()
    process.send(zygote, signal.SIGTERM)
    cluster.stop_agent(0)
    counting.wait_counting_on(1)
    cluster.start_agent(0)
    counting.wait_counting_on(1)
    assert cluster.gang_pids(job, 1) == [pid]
    counting.stop()
    counting.check(cluster, job, alone=True)


def test_sigterm_of_a_shim_stops_its_task_and_the_job_starts_anew(cluster: Cluster, tmp_path: Path) -> None:
    """Nobody had asked for it: not the job's fault, so no retry is used, and the reason is true."""
    counting = Counting(tmp_path / "counting", retry={"max_attempts": 1})
    job = cluster.submit_text(counting.text)
    (pid,) = counting.wait_running(1)
    process.send(above(pid), signal.SIGTERM)
    counting.wait_running(2)
    assert kernel.start_time(pid) is None
    counting.stop()
    counting.check(cluster, job, attempts=2, alone=True)
    texts = [entry.text for entry in cluster.client.timeline(job).entries if entry.kind == "AttemptEnded"]
    assert "the agent on local-0 stopped task 0 without being asked to: stopped" in texts[0]


def test_sigterm_of_a_worker_is_its_own_end(cluster: Cluster, tmp_path: Path) -> None:
    counting = Counting(tmp_path / "counting", retry={"max_attempts": 1})
    job = cluster.submit_text(counting.text)
    (pid,) = counting.wait_running(1)
    process.send(identified(pid), signal.SIGTERM)
    found = counting.check(cluster, job, state="FAILED")
    assert found.exit_code == 128 + signal.SIGTERM
    assert "signal 15 (SIGTERM)" in found.reason.text
