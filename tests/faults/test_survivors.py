"""Ranks in the step loop that lose a peer stay up, in a real cluster: same processes, no step made twice, and
the losses of the run that was left alone."""

import json
import os
import random
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from paceline.client import process
from support.cluster import Cluster, wait_until

SCRIPT = Path(__file__).parents[1] / "support" / "looping_rank.py"
PATIENT = ("--missed-heartbeats", "60")


class Made(NamedTuple):
    """One step of one rank."""

    attempt: int
    rank: int
    step: int
    pid: int
    loss: float


def submit(
    cluster: Cluster, folder: Path, *, steps: int, save_every: int, nodes: int = 1, ranks: int = 2
) -> int:
    folder.mkdir()
    return cluster.submit_text(
        json.dumps(
            {
                "command": f"{sys.executable} {SCRIPT} {folder} {steps} {save_every}",
                "distribution": {"type": "pytorch", "process_count_per_instance": ranks},
                "resources": {"cpus": 1, "instance_count": nodes},
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
    """Over all attempts: no step lost, and none made twice, except by a rank that died before it said so."""
    steps: dict[int, list[int]] = defaultdict(list)
    for one in steps_of(folder):
        steps[one.rank].append(one.step)
    for rank in range(ranks):
        assert len(steps[rank]) == len(set(steps[rank])), f"rank {rank} made a step twice"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, agents=1, cpus=4, scheduler_args=PATIENT) as made:
        yield made


@pytest.mark.timeout(120)
def test_a_killed_rank_is_replaced_and_the_other_stays_up(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    job = submit(cluster, folder, steps=400, save_every=1000)
    wait_trained_on(folder, 1)
    stays, falls = cluster.task_pids(job)
    kill(falls)
    wait_until("the next attempt trains", lambda: last_step(folder, 2) > 0)
    try:
        wait_until("the new pids are known", lambda: cluster.task_pids(job)[0] == stays, 5)
    except AssertionError as e:
        raise AssertionError(cluster.story(job, str(e)))
    assert cluster.task_pids(job)[1] not in (0, falls)
    (folder / "enough").touch()
    cluster.wait_state(job, "SUCCEEDED")
    print("\n".join(entry.text for entry in cluster.client.timeline(job).entries))
    [reformed] = bodies(cluster, job, "GangReformed")
    assert reformed["replaced"] == [1]
    assert {one.pid for one in steps_of(folder) if one.rank == 0} == {stays}
    check_each_step_once(folder, ranks=2)
    check_curve(cluster, folder, tmp_path / "alone")
    assert b"attempt 2" in cluster.output(job, rank=0, attempt=2)
