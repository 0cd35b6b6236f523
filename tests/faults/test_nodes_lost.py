"""A node dies wholly, with all that ran on it; most nodes fall silent at once, which is no node's death."""

import signal
from pathlib import Path

from paceline.client import process
from support.cluster import Cluster, wait_until
from support.counting import Counting

QUICK = ("--heartbeat", "0.5")


def processes_of(cluster: Cluster, index: int) -> list[process.Identity]:
    """All of a node: its agent and zygotes, and the shims and ranks of its tasks."""
    agent = cluster.agents[index].identity
    below = {found.pid: found for found in process.descendants(agent)}
    tasks = str(cluster.agent_state(index) / "tasks")
    marked = process.with_environment("PACELINE_TASK_FOLDER", lambda value: value.startswith(tasks))
    return [agent, *below.values(), *(found for found in marked if found.pid not in below)]


def test_a_node_dies_wholly(tmp_path: Path) -> None:
    """The gang and the small jobs on it start anew on what is left; the others do not notice."""
    with Cluster(tmp_path, agents=3, cpus=3, scheduler_args=QUICK, agent_args=["--cold"]) as cluster:
        small = [Counting(tmp_path / f"small-{index}") for index in range(3)]
        gang = Counting(tmp_path / "gang", instances=2)
        jobs = [cluster.submit_text(each.text) for each in (*small, gang)]
        for each in (*small, gang):
            each.wait_running(1)
        nodes = {task.node for task in cluster.client.job(jobs[3]).tasks}
        names = {f"local-{index}": index for index in range(3)}
        victim = names[min(nodes)]
        hit = [any(names[task.node] == victim for task in cluster.client.job(job).tasks) for job in jobs]
        for found in processes_of(cluster, victim):
            process.send(found, signal.SIGKILL)
        for each, was_hit in zip((*small, gang), hit, strict=True):
            each.wait_running(2 if was_hit else 1)
        for each, was_hit in zip((*small, gang), hit, strict=True):
            each.wait_counting_on(2 if was_hit else 1)
            each.stop()
        assert hit[3]
        # The machine comes back: its agent tells what it still has of the dead attempts, and clears it away.
        cluster.start_agent(victim)
        for job, each, was_hit in zip(jobs, (*small, gang), hit, strict=True):
            each.check(cluster, job, attempts=2 if was_hit else 1)
            if was_hit:
                (lost,) = [e.text for e in cluster.client.timeline(job).entries if e.kind == "AttemptEnded"][
                    :-1
                ]
                assert f"local-{victim} has not been heard of for" in lost
        wait_until(
            "old folders are gone", lambda: not list((cluster.agent_state(victim) / "tasks").iterdir())
        )


def test_most_nodes_silent_at_once_are_not_lost(tmp_path: Path) -> None:
    """Three of four agents stopped: the scheduler suspects itself and replaces nothing; then all goes on."""
    with Cluster(tmp_path, agents=4, cpus=1, scheduler_args=QUICK, agent_args=["--cold"]) as cluster:
        gang = Counting(tmp_path / "gang", instances=4)
        job = cluster.submit_text(gang.text)
        pids = gang.wait_running(1)
        for index in range(3):
            cluster.agents[index].send(signal.SIGSTOP)
        wait_until("the cluster is suspected", lambda: cluster.client.nodes().suspected)
        gang.wait_counting_on(1)
        waiting = Counting(tmp_path / "waiting")
        second = cluster.submit_text(waiting.text)
        assert cluster.client.job(second).state == "QUEUED"
        assert any(
            "suspect" in reason.text or "silent" in reason.text
            for reason in cluster.client.why(second).reasons
        ), cluster.client.why(second)
        for index in range(3):
            cluster.agents[index].send(signal.SIGCONT)
        for index in range(4):
            cluster.wait_connected(index)
        wait_until("the cluster is trusted", lambda: not cluster.client.nodes().suspected)
        assert gang.pids(1) == pids == cluster.gang_pids(job, len(pids))
        gang.stop()
        gang.check(cluster, job, alone=True)
        waiting.wait_running(1)
        waiting.stop()
        waiting.check(cluster, second)
