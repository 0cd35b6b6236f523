"""Ranks in the step loop that lose a peer stay up, in a real cluster: same processes, no step made twice, and
the losses of the run that was left alone."""

import json
import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import paceline
import pytest
from paceline.client import process
from support.cluster import Cluster, wait_until
from support.nvml_node import build_stub, h100, nvml_environment

SCRIPT = Path(__file__).parents[1] / "support" / "looping_rank.py"
EXAMPLE = Path(paceline.__file__).parent / "examples" / "digits" / "loop.yaml"
PATIENT = ("--missed-heartbeats", "60")


class Made(NamedTuple):
    """One step of one rank."""

    attempt: int
    rank: int
    step: int
    pid: int
    loss: float


def submit(
    cluster: Cluster,
    folder: Path,
    *,
    steps: int,
    save_every: int,
    nodes: int = 1,
    ranks: int = 2,
    gpus: int = 0,
) -> int:
    folder.mkdir()
    return cluster.submit_text(
        json.dumps(
            {
                "command": f"{sys.executable} {SCRIPT} {folder} {steps} {save_every}",
                "distribution": {"type": "pytorch", "process_count_per_instance": ranks},
                "resources": {"cpus": 1, "gpus": gpus, "instance_count": nodes},
                "retry": {"max_attempts": 50, "backoff": {"start_s": 0.01, "max_s": 0.01}},
            }
        )
    )


def steps_of(folder: Path) -> list[Made]:
    try:
        lines = (folder / "steps").read_text().splitlines()
    except FileNotFoundError:
        return []
    split = [line.split() for line in lines]
    return [Made(int(a), int(r), int(s), int(p), float(loss)) for a, r, s, p, loss in split]


def last_step(folder: Path, attempt: int) -> int:
    return max((made.step for made in steps_of(folder) if made.attempt == attempt), default=0)


def wait_trained_on(folder: Path, attempt: int, steps: int = 12) -> None:
    begun = last_step(folder, attempt)
    wait_until(f"attempt {attempt} trains", lambda: last_step(folder, attempt) > begun + steps)


def kill(pid: int) -> None:
    found = process.identify(pid)
    assert found is not None
    process.send(found, signal.SIGKILL)


def bodies(cluster: Cluster, job: int, kind: str) -> list[dict[str, object]]:
    entries = cluster.client.timeline(job).entries
    return [json.loads(entry.body) for entry in entries if entry.kind == kind]


def check_curve(cluster: Cluster, folder: Path, alone: Path, *, nodes: int = 1, ranks: int = 2) -> None:
    """Every step of every rank has the loss that it has in a run that nothing happens to."""
    made = steps_of(folder)
    most = max(one.step for one in made)
    alone.mkdir(exist_ok=True)
    alone.rmdir()
    reference = submit(cluster, alone, steps=most, save_every=10_000, nodes=nodes, ranks=ranks)
    (alone / "enough").touch()
    cluster.wait_state(reference, "SUCCEEDED", timeout_s=120)
    whole = {(one.rank, one.step): one.loss for one in steps_of(alone)}
    for one in made:
        assert one.loss == pytest.approx(whole[one.rank, one.step], rel=1e-5), one


def check_each_step_once(folder: Path, *, ranks: int) -> None:
    """No process makes a step twice, and one that takes a killed rank's place goes on after its last. Only
    that one may be made again: it is lost with a rank that had its gradients before its peers had them."""
    for rank in range(ranks):
        by_process: dict[int, list[int]] = defaultdict(list)
        for one in steps_of(folder):
            if one.rank == rank:
                by_process[one.pid].append(one.step)
        last = 0
        for pid, steps in by_process.items():
            assert steps == list(range(steps[0], steps[0] + len(steps))), f"process {pid} of rank {rank}"
            assert steps[0] in (last, last + 1, last + 2), f"rank {rank} goes on at {steps[0]} after {last}"
            last = steps[-1]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, agents=1, cpus=4, scheduler_args=PATIENT) as made:
        yield made


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Cluster]:
    """Three, of which a gang of two nodes takes two."""
    with Cluster(tmp_path, agents=3, cpus=1) as made:
        yield made


def finish(cluster: Cluster, folder: Path, job: int) -> None:
    (folder / "enough").touch()
    cluster.wait_state(job, "SUCCEEDED", timeout_s=120)


def test_a_killed_rank_is_replaced_and_the_other_stays_up(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    job = submit(cluster, folder, steps=400, save_every=1000)
    wait_trained_on(folder, 1)
    stays, falls = cluster.gang_pids(job, 2)
    kill(falls)
    wait_until("the next attempt trains", lambda: last_step(folder, 2) > 0)
    finish(cluster, folder, job)
    [reformed] = bodies(cluster, job, "GangReformed")
    assert reformed["replaced"] == [1]
    texts = [entry.text for entry in cluster.client.timeline(job).entries]
    assert any("rank 0 of 2 stayed up, rank 1 new, in" in text for text in texts), texts
    assert any("kept 1 of 2 ranks up" in text for text in texts), texts
    made = steps_of(folder)
    assert {one.pid for one in made if one.rank == 0} == {stays}
    assert len({one.pid for one in made if one.rank == 1}) == 2
    check_each_step_once(folder, ranks=2)
    check_curve(cluster, folder, tmp_path / "alone")
    assert b"attempt 2" in cluster.output(job, rank=0, attempt=2), "its output goes on in the new attempt's"
    ledger = cluster.client.timeline(job).ledger
    assert ledger.lost_us == 0, "what the survivor knew was kept"


@pytest.mark.slow
def test_killed_at_random_moments_also_in_saves(cluster: Cluster, tmp_path: Path) -> None:
    """Either rank of two, at seeded moments, while every third step is saved."""
    dice = random.Random(5)
    folder = tmp_path / "job"
    job = submit(cluster, folder, steps=1500, save_every=3)
    for attempt in range(1, 7):
        wait_trained_on(folder, attempt)
        time.sleep(dice.uniform(0, 0.04))  # the fault's own moment, not a wait
        kill(dice.choice(cluster.gang_pids(job, 2)))
        wait_until("the next attempt trains", lambda a=attempt: last_step(folder, a + 1) > 0)
    finish(cluster, folder, job)
    assert len(bodies(cluster, job, "GangReformed")) == 6, cluster.story(job, "not always re-formed")
    check_each_step_once(folder, ranks=2)
    check_curve(cluster, folder, tmp_path / "alone")
    accepted = cluster.client.job(job).checkpoints
    assert {one.attempt for one in accepted} >= {7}, "the last attempt saves as the first did"


def test_a_second_fault_while_the_gang_re_forms(cluster: Cluster, tmp_path: Path) -> None:
    """The replacement is killed as soon as it is there: nobody has agreed by then, so all start anew."""
    folder = tmp_path / "job"
    job = submit(cluster, folder, steps=300, save_every=5)
    wait_trained_on(folder, 1)
    wait_until("a checkpoint is accepted", lambda: bool(cluster.client.job(job).checkpoints))
    kill(cluster.gang_pids(job, 2)[1])

    def replacement() -> int | None:
        found = cluster.client.job(job)
        pids = cluster.task_pids(job)
        return pids[1] if found.attempt == 2 and len(pids) == 2 else None

    second = wait_until("the replacement is there", replacement)
    kill(second)
    wait_until("a third attempt trains", lambda: last_step(folder, 3) > 0)
    finish(cluster, folder, job)
    check_curve(cluster, folder, tmp_path / "alone")


def test_a_survivor_that_does_not_move_is_restarted(cluster: Cluster, tmp_path: Path) -> None:
    """Stopped by a signal, it cannot arrive: after the re-form's time all start from the checkpoint."""
    folder = tmp_path / "job"
    job = submit(cluster, folder, steps=300, save_every=5)
    wait_trained_on(folder, 1)
    wait_until("a checkpoint is accepted", lambda: bool(cluster.client.job(job).checkpoints))
    stays, falls = cluster.gang_pids(job, 2)
    os.kill(stays, signal.SIGSTOP)
    kill(falls)
    wait_until("the next attempt trains", lambda: last_step(folder, 2) > 0)
    assert stays not in cluster.task_pids(job)
    finish(cluster, folder, job)
    assert bodies(cluster, job, "GangReformed") == []
    [mode] = [str(body["start_mode"]) for body in bodies(cluster, job, "TaskStarted")][1:]
    assert "; rank 0 did not leave the gang within 10 s, stopped by a signal" in mode
    assert b"paceline: told to leave the gang; where rank 0 is, by " in cluster.output(job, rank=0, attempt=1)
    [restored] = [body for body in bodies(cluster, job, "CheckpointRestored") if body["step"] != -1]
    assert restored["step"] in {one.step for one in steps_of(folder) if one.attempt == 1}
    check_curve(cluster, folder, tmp_path / "alone")


def test_the_rank_on_the_other_node_stays_up(nodes: Cluster, tmp_path: Path) -> None:
    """Either of them; also the one whose node keeps the rendezvous."""
    folder = tmp_path / "job"
    job = submit(nodes, folder, steps=600, save_every=1000, nodes=2, ranks=1)
    for attempt, victim in ((1, 1), (2, 0)):
        wait_trained_on(folder, attempt)
        pids = nodes.gang_pids(job, 2)
        kill(pids[victim])
        wait_until("the next attempt trains", lambda a=attempt: last_step(folder, a + 1) > 0)
    finish(nodes, folder, job)
    replaced = [body["replaced"] for body in bodies(nodes, job, "GangReformed")]
    assert replaced == [[1], [0]], nodes.story(job, "not the ranks that fell")
    check_each_step_once(folder, ranks=2)
    check_curve(nodes, folder, tmp_path / "alone", nodes=2, ranks=1)


def test_a_lost_node_is_replaced_and_the_other_stays_up(nodes: Cluster, tmp_path: Path) -> None:
    """Its agent, shim and rank are stopped: nothing closes, nobody says anything. The survivor waits in a
    collective for a peer that is silent, until its shim tells it to leave."""
    folder = tmp_path / "job"
    job = submit(nodes, folder, steps=400, save_every=1000, nodes=2, ranks=1)
    wait_trained_on(folder, 1)
    stays, silent = nodes.gang_pids(job, 2)
    name = next(task.node for task in nodes.client.job(job).tasks if task.first_rank == 1)
    rank = process.identify(silent)
    assert rank is not None
    shim = process.identify(process.parent_of(rank) or 0)
    assert shim is not None
    stopped = [nodes.agents[int(name.rpartition("-")[2])].identity, shim, rank]
    for each in stopped:
        process.send(each, signal.SIGSTOP)
    try:
        wait_until("the next attempt trains", lambda: last_step(folder, 2) > 0)
        assert nodes.gang_pids(job, 2)[0] == stays
    finally:
        for each in stopped:
            process.send(each, signal.SIGCONT)
    finish(nodes, folder, job)
    [reformed] = bodies(nodes, job, "GangReformed")
    assert reformed["replaced"] == [1]
    check_each_step_once(folder, ranks=2)
    check_curve(nodes, folder, tmp_path / "alone", nodes=2, ranks=1)


def test_ranks_on_other_gpus_than_the_next_attempt_is_given_start_anew(tmp_path: Path) -> None:
    """Lower ones have become free meanwhile: those that are held by now may be another job's next."""
    script = tmp_path / "nvml"
    script.write_text("\n".join(["driver 570.86.15", h100(0), h100(1)]) + "\n")
    environment = nvml_environment(build_stub(tmp_path / "stub"), script)
    with Cluster(tmp_path, cpus=4, agent_args=["--cold"], environment=environment) as cluster:
        holds = cluster.submit_text("command: sleep 600\nresources: {gpus: 1, cpus: 1}\n")
        cluster.wait_state(holds, "RUNNING")
        folder = tmp_path / "job"
        job = submit(cluster, folder, steps=400, save_every=5, gpus=1)
        wait_trained_on(folder, 1)
        cluster.client.cancel(holds)
        cluster.wait_state(holds, "CANCELLED")
        before = cluster.gang_pids(job, 2)
        kill(before[1])
        wait_until("the next attempt trains", lambda: last_step(folder, 2) > 0)
        [task] = cluster.client.job(job).tasks
        assert list(task.gpu_indices) == [0]
        assert not set(before) & set(cluster.task_pids(job))
        finish(cluster, folder, job)


@pytest.mark.slow
def test_the_example_goes_on_when_a_rank_is_killed(cluster: Cluster) -> None:
    job = cluster.client.submit(EXAMPLE, overrides=["inputs.epochs=60"])
    wait_until("it trains", lambda: (cluster.client.job(job).step or 0) > 50)
    kill(cluster.task_pids(job)[0])
    cluster.wait_state(job, "SUCCEEDED", timeout_s=120)
    assert [body["replaced"] for body in bodies(cluster, job, "GangReformed")] == [[0]]
    output = cluster.output(job, rank=0, attempt=2).decode()
    assert float(output.partition("test accuracy ")[2].partition("%")[0]) >= 97
