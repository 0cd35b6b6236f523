"""kill -9 of everything on a node, one after the other: agent, zygote, shim, one worker, all workers."""

import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.agent import kernel
from paceline.client import process
from support.cluster import Cluster, wait_until
from support.counting import Counting

PATIENT = ("--missed-heartbeats", "60")
"""No node is given up only because the machine is busy."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, agents=2, cpus=2, scheduler_args=PATIENT, agent_args=["--cold"]) as made:
        yield made


def parent(pid: int) -> process.Identity:
    """Of a rank: its shim."""
    rank = process.identify(pid)
    assert rank is not None
    above = process.parent_of(rank)
    assert above is not None
    found = process.identify(above)
    assert found is not None
    return found


def zygotes(cluster: Cluster) -> list[process.Identity]:
    """The agents' children that start tasks."""
    agents = [agent.identity for agent in cluster.agents.values()]
    below = [child for agent in agents for child in process.descendants(agent)]
    return [child for child in below if process.parent_of(child) in {agent.pid for agent in agents}]


def reasons(cluster: Cluster, job: int) -> list[str]:
    """Of the attempts that ended before the job did."""
    return [entry.text for entry in cluster.client.timeline(job).entries if entry.kind == "AttemptEnded"]


def test_agents_killed_again_and_again(cluster: Cluster, tmp_path: Path) -> None:
    """Restarted in time: same pids, one attempt. Killed while the job ends and that is told: nothing lost."""
    luck = random.Random(7)
    fine, failing = (
        Counting(tmp_path / "fine", instances=2),
        Counting(tmp_path / "failing", exit_code=3, retry={"max_attempts": 1}),
    )
    jobs = [cluster.submit_text(each.text) for each in (fine, failing)]
    pids = [each.wait_running(1) for each in (fine, failing)]
    for index in (0, 1):
        cluster.kill_agent(index)
        cluster.start_agent(index, wait=False)
    for index in (0, 1):
        cluster.wait_connected(index)
    for each in (fine, failing):
        each.wait_counting_on(1)
    assert [cluster.gang_pids(job, len(its)) for job, its in zip(jobs, pids, strict=True)] == pids
    cluster.kill_agent(0)
    cluster.kill_agent(1)
    fine.stop()
    failing.stop()
    wait_until("all ranks are over", lambda: not any(map(is_alive, [*pids[0], *pids[1]])))
    for _ in range(3):  # each dies somewhere in its start, its hello, or while it tells of the end
        for index in (0, 1):
            cluster.start_agent(index, wait=False)
        time.sleep(luck.uniform(0.2, 1.5))  # the fault's own moment, not a wait
        for index in (0, 1):
            cluster.kill_agent(index)
    for index in (0, 1):
        cluster.start_agent(index, wait=False)
    assert fine.check(cluster, jobs[0]).exit_code == 0
    found = failing.check(cluster, jobs[1], state="FAILED")
    assert found.exit_code == 3
    assert "exited with code 3" in found.reason.text


def test_zygotes_killed(cluster: Cluster, tmp_path: Path) -> None:
    """What runs goes on; the next job finds another zygote."""
    before, after = Counting(tmp_path / "before"), Counting(tmp_path / "after", instances=2)
    first = cluster.submit_text(before.text)
    before.wait_running(1)
    for zygote in zygotes(cluster):
        process.send(zygote, signal.SIGKILL)
    second = cluster.submit_text(after.text)
    after.wait_running(1)
    before.wait_counting_on(1)
    before.stop()
    after.stop()
    before.check(cluster, first)
    after.check(cluster, second)


def test_ranks_and_shims_of_a_gang_killed(cluster: Cluster, tmp_path: Path) -> None:
    """One worker, all workers, a shim, a shim and its worker: each time the whole gang starts anew."""
    gang = Counting(tmp_path / "gang", instances=2, retry={"max_attempts": 10})
    job = cluster.submit_text(gang.text)
    first = gang.wait_running(1)
    kill(first[1])
    second = gang.wait_running(2)
    for pid in second:
        kill(pid)
    third = gang.wait_running(3)
    process.send(parent(third[0]), signal.SIGKILL)
    fourth = gang.wait_running(4)
    shim = parent(fourth[1])
    kill(fourth[1])
    process.send(shim, signal.SIGKILL)
    gang.wait_running(5)
    wait_until(
        "the older attempts are gone", lambda: not any(map(is_alive, [*first, *second, *third, *fourth]))
    )
    gang.stop()
    assert gang.check(cluster, job, attempts=5).exit_code == 0
    told = reasons(cluster, job)
    assert len(told) == 5
    for attempt, ranks in enumerate(("1", "01", "0", "1"), start=1):
        killed = rf"rank [{ranks}] on local-\d was killed by signal 9 \(SIGKILL\)"
        assert re.search(rf"attempt {attempt} ended \(signal, uses a retry\): {killed}", told[attempt - 1])


def test_retries_run_out(cluster: Cluster, tmp_path: Path) -> None:
    """A worker killed once too often: FAILED, as killed by a signal, after exactly the attempts allowed."""
    job_that_dies = Counting(tmp_path / "dies", retry={"max_attempts": 2})
    job = cluster.submit_text(job_that_dies.text)
    for attempt in (1, 2):
        kill(job_that_dies.wait_running(attempt)[0])
    found = job_that_dies.check(cluster, job, attempts=2, state="FAILED")
    assert found.exit_code == 128 + signal.SIGKILL


def is_alive(pid: int) -> bool:
    return kernel.start_time(pid) is not None


def kill(pid: int) -> None:
    found = process.identify(pid)
    assert found is not None
    process.send(found, signal.SIGKILL)
