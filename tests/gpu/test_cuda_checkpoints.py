"""A run on the GPU that was killed goes on as if it had not been: the same losses, to the bit."""

import json
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from paceline.client import process, views
from paceline.proto.marks import agent_mark
from support.cluster import Cluster, wait_until

SCRIPT = Path(__file__).parents[1] / "support" / "cuda_rank.py"
STEPS, SAVE_EVERY, KILL_AFTER = 40, 5, 13
RANKS = {"plain": 1, "ddp": 1, "fsdp": 1, "loop": 1, "gloo": 2}


def submit(cluster: Cluster, folder: Path, kind: str, **more: object) -> int:
    folder.mkdir(exist_ok=True)
    document = {
        "command": f"{sys.executable} {SCRIPT} {folder} {STEPS} {SAVE_EVERY} {kind}",
        "distribution": {"type": "pytorch", "process_count_per_instance": RANKS[kind]},
        "resources": {"gpus": 0.5, "cpus": 2},
        "retry": {"max_attempts": 2},
        **more,
    }
    return cluster.submit_text(json.dumps(document))


def losses(folder: Path) -> dict[int, dict[tuple[int, int], str]]:
    """Attempt -> (rank, step) -> loss, as it was written."""
    found: dict[int, dict[tuple[int, int], str]] = defaultdict(dict)
    if (folder / "losses").exists():
        for line in (folder / "losses").read_text().splitlines():
            attempt, rank, step, loss = line.split()
            found[int(attempt)][int(rank), int(step)] = loss
    return found


def undisturbed(cluster: Cluster, folder: Path, kind: str) -> dict[tuple[int, int], str]:
    folder.mkdir()
    (folder / "enough").touch()
    cluster.wait_state(submit(cluster, folder, kind), "SUCCEEDED")
    return losses(folder)[1]


def kill_in_between(
    cluster: Cluster,
    folder: Path,
    kind: str,
    lose: Callable[[views.Job], None] = lambda _: None,
    **more: object,
) -> int:
    """SIGKILL to the last rank once it has saved; the job, when it is over. `lose`: before that."""
    job = submit(cluster, folder, kind, **more)
    last = RANKS[kind] - 1

    def trained() -> bool:
        assert not cluster.client.job(job).is_over, cluster.story(job, "ended too early")
        return (last, KILL_AFTER) in losses(folder)[1]

    wait_until(f"{KILL_AFTER} steps are made", trained)
    wait_until("a checkpoint is accepted", lambda: cluster.client.job(job).checkpoints)
    victim = process.identify(cluster.gang_pids(job, RANKS[kind])[last])
    assert victim is not None
    process.send(victim, signal.SIGSTOP)
    lose(cluster.client.job(job))
    process.send(victim, signal.SIGKILL)
    (folder / "enough").touch()
    cluster.wait_state(job, "SUCCEEDED")
    return job


def check_resumed(folder: Path, whole: dict[tuple[int, int], str]) -> None:
    before, after = losses(folder)[1], losses(folder)[2]
    assert len(whole) >= STEPS
    assert {**before, **after}.keys() == whole.keys()
    assert min(step for _, step in after) > SAVE_EVERY, "it went on from a checkpoint"
    for attempt in (before, after):
        assert attempt == {at: whole[at] for at in attempt}


def restored(cluster: Cluster, job: int) -> dict[str, object]:
    entries = cluster.client.timeline(job).entries
    [told] = [json.loads(entry.body) for entry in entries if entry.kind == "CheckpointRestored"]
    return told


@pytest.mark.parametrize("kind", RANKS)
def test_a_killed_run_goes_on_from_memory_with_the_same_losses(
    cluster: Cluster, tmp_path: Path, kind: str
) -> None:
    whole = undisturbed(cluster, tmp_path / "alone", kind)
    job = kill_in_between(cluster, tmp_path / "killed", kind)
    check_resumed(tmp_path / "killed", whole)
    told = restored(cluster, job)
    print(told)
    assert told["tier"] == "memory"
    assert told["rejected"] == []
    assert all(task.start_mode.startswith("warm") for task in cluster.client.job(job).tasks)


@pytest.mark.parametrize("lost", ["memory", "memory and folder"])
def test_farther_tiers_give_back_the_same(cluster: Cluster, tmp_path: Path, lost: str) -> None:
    """What was in the node's memory, and what was in the job's folder, is gone before the run is killed."""
    whole = undisturbed(cluster, tmp_path / "alone", "plain")
    uploads = tmp_path / "uploads"
    uploads.mkdir()

    def lose(job: views.Job) -> None:
        mark = agent_mark(cluster.agent_state(0) / "tasks")[1:]
        if lost == "memory and folder":
            wait_until(
                "one is uploaded", lambda: any(one.url for one in cluster.client.job(job.job).checkpoints)
            )
            for one in cluster.client.job(job.job).checkpoints:
                shutil.rmtree(one.path, ignore_errors=True)
        shutil.rmtree(Path("/dev/shm") / f"paceline-{mark}" / str(job.job))

    where = {"storage": f"file://{uploads}"} if lost == "memory and folder" else {}
    job = kill_in_between(cluster, tmp_path / "killed", "plain", lose, checkpoint=where)
    check_resumed(tmp_path / "killed", whole)
    tier = str(restored(cluster, job)["tier"])
    assert tier.startswith("storage" if lost == "memory" else f"file://{uploads}"), tier
