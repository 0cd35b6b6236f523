"""Images of checkpoints in a real cluster: the next attempt on the node finds them; later nobody does."""

import json
import operator
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client import process
from paceline.proto.marks import agent_mark
from support.cluster import Cluster, wait_until
from support.rank_scripts import persisters_of

SCRIPT = Path(__file__).parents[1] / "support" / "saving_rank.py"
SHARED = Path("/dev/shm")
PATIENT = ("--missed-heartbeats", "60")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, agents=1, cpus=4, scheduler_args=PATIENT) as made:
        yield made
    assert not memory_of(made, 0).exists(), "an agent that stops leaves nothing"


def memory_of(cluster: Cluster, agent: int) -> Path:
    return SHARED / f"paceline-{agent_mark(cluster.agent_state(agent) / 'tasks')[1:]}"


def submit(cluster: Cluster, folder: Path, *, steps: int, save_every: int) -> int:
    folder.mkdir()
    return cluster.submit_text(
        json.dumps(
            {
                "command": f"{sys.executable} {SCRIPT} {folder} {steps} {save_every}",
                "distribution": {"type": "pytorch", "process_count_per_instance": 2},
                "resources": {"cpus": 1},
                "retry": {"max_attempts": 50},
            }
        )
    )


def losses(folder: Path) -> dict[tuple[int, int], dict[int, float]]:
    """(Attempt, rank) -> step -> loss."""
    found: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    for line in (folder / "losses").read_text().splitlines():
        attempt, rank, step, loss = line.split()
        found[int(attempt), int(rank)][int(step)] = float(loss)
    return found


def last_step(folder: Path, attempt: int) -> int:
    try:
        return max(losses(folder).get((attempt, 0), {0: 0.0}))
    except FileNotFoundError:
        return 0


def wait_trained_on(folder: Path, attempt: int) -> None:
    begun = last_step(folder, attempt)
    wait_until(f"attempt {attempt} trains and saves", lambda: last_step(folder, attempt) > begun + 12)


def restored(cluster: Cluster, job: int) -> list[dict[str, object]]:
    entries = cluster.client.timeline(job).entries
    return [json.loads(entry.body) for entry in entries if entry.kind == "CheckpointRestored"]


@pytest.mark.slow
def test_killed_at_random_moments_the_gang_goes_on_from_memory(cluster: Cluster, tmp_path: Path) -> None:
    """Ranks, persisters and the shim, in seeded order and moments; the losses are those of the run that was
    left alone, and every restore is of an accepted step, from memory: of the last that was accepted before
    the kill, or of a later one.
    """
    accepted = []
    dice = random.Random(11)
    alone, folder = tmp_path / "alone", tmp_path / "killed"
    job = submit(cluster, folder, steps=400, save_every=5)
    for attempt, victim in enumerate(["rank", "shim", "persister", "rank", "shim", "rank"], start=1):
        wait_trained_on(folder, attempt)
        time.sleep(dice.uniform(0, 0.05))  # the fault's own moment, not a wait
        if victim == "persister":  # costs one checkpoint, not the attempt
            kill(cluster, job, victim, dice)
            wait_trained_on(folder, attempt)
        accepted.append(newest_accepted(cluster, job))
        kill(cluster, job, "rank" if victim == "persister" else victim, dice)
        wait_until("the next attempt trains", lambda a=attempt: last_step(folder, a + 1) > 0)
    (folder / "enough").touch()
    cluster.wait_state(job, "SUCCEEDED", timeout_s=120)
    assert not (memory_of(cluster, 0) / str(job)).exists(), "the job is over"

    reference = submit(cluster, alone, steps=400, save_every=1000)
    (alone / "enough").touch()
    cluster.wait_state(reference, "SUCCEEDED", timeout_s=120)
    whole = losses(alone)
    for (attempt, rank), curve in losses(folder).items():
        for step, loss in curve.items():
            assert loss == pytest.approx(whole[1, rank][step], rel=1e-5), (attempt, rank, step)
    found = [one for one in restored(cluster, job) if one["step"] != -1]
    assert len(found) == 6
    assert all(one["step"] % 5 == 0 and one["rejected"] == [] for one in found)
    gone_on_from = [int(str(one["step"])) for one in found]
    assert all(map(operator.ge, gone_on_from, accepted)), (gone_on_from, accepted)
    assert [one["tier"] for one in found] == ["memory"] * 6
    assert "read from memory in" in " ".join(entry.text for entry in cluster.client.timeline(job).entries)


def newest_accepted(cluster: Cluster, job: int) -> int:
    return max((one.step for one in cluster.client.job(job).checkpoints), default=-1)


def kill(cluster: Cluster, job: int, victim: str, dice: random.Random) -> None:
    pids = cluster.task_pids(job)
    rank = process.identify(dice.choice(pids))
    assert rank is not None
    pid = rank.pid
    if victim == "shim":
        pid = process.parent_of(rank) or 0
    elif victim == "persister":
        [pid] = persisters_of(rank.pid)
    found = process.identify(pid)
    assert found is not None
    process.send(found, signal.SIGKILL)


def test_an_agent_that_dies_with_its_tasks_comes_back_to_their_memory(
    cluster: Cluster, tmp_path: Path
) -> None:
    """As where a service is killed with all that it has started."""
    job = submit(cluster, tmp_path / "job", steps=100_000, save_every=5)
    wait_until("a checkpoint is accepted", lambda: newest_accepted(cluster, job) > 0)
    cluster.kill_agent(0)
    kill(cluster, job, "shim", random.Random(3))
    cluster.start_agent(0)
    [found] = wait_until("it goes on", lambda: restored(cluster, job) or None)
    assert found["tier"] == "memory"
    cluster.client.cancel(job)
    cluster.wait_state(job, "CANCELLED")


def test_a_job_that_is_cancelled_or_an_agent_that_stops_leaves_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    jobs = [submit(cluster, tmp_path / name, steps=10, save_every=5) for name in ("a", "b")]
    folders = [memory_of(cluster, 0) / str(job) for job in jobs]
    wait_until("both have images", lambda: all(list(folder.glob("?/__1_0.distcp.of")) for folder in folders))
    for job in jobs:
        wait_until("a checkpoint is accepted", lambda j=job: bool(cluster.client.job(j).checkpoints))
    cluster.client.cancel(jobs[0])
    wait_until("the cancelled job's images are gone", lambda: not folders[0].exists())
    assert folders[1].exists()
    cluster.kill_agent(0)
    cluster.start_agent(0)
    assert folders[1].exists(), "its task runs on"
    (tmp_path / "b" / "enough").touch()
    cluster.wait_state(jobs[1], "SUCCEEDED")
    wait_until("the other's, too", lambda: not folders[1].exists())
