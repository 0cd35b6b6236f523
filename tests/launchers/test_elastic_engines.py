"""An elastic gang with a ZeRO engine loses a node: its checkpoint has been converted for another number of
ranks by then, and its losses are those of a gang that lost nothing."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client import process
from support.cluster import Cluster, wait_until
from support.elastic_engine_rank import SAVE_AT
from support.operators import give_operators, needs_deepspeed

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "elastic_engine_rank.py"
STEPS = 400

pytestmark = [needs_deepspeed, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def cluster(tmp_path: Path, built_ops: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, agents=2, cpus=1) as made:
        for agent in made.agents:
            give_operators(built_ops, made.agent_state(agent))
        yield made


def submit(cluster: Cluster, folder: Path, stage: int, **resources: int) -> int:
    folder.mkdir()
    document = {
        "command": f"{sys.executable} {SCRIPT} {folder} {stage} {STEPS}",
        "distribution": {"type": "deepspeed"},
        "environment_variables": {"PYTHONPATH": str(SCRIPT.parents[1])},
        "resources": {"instance_count": 2, "cpus": 1, **resources},
    }
    return cluster.submit_text(json.dumps(document))


def buffers() -> set[Path]:
    """What DeepSpeed reduces through on CPUs."""
    return set(Path("/dev/shm").glob("deepspeed_*"))


def losses(folder: Path, attempt: int) -> dict[int, float]:
    """Of rank 0."""
    path = folder / "losses"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return {int(step): float(loss) for at, rank, step, loss in lines if (int(at), rank) == (attempt, "0")}


@pytest.mark.parametrize("stage", [2, 3])
def test_its_checkpoint_is_converted_before_anybody_waits_for_it(
    cluster: Cluster, tmp_path: Path, stage: int
) -> None:
    folder, alone = tmp_path / "job", tmp_path / "alone"
    before = buffers()
    job = submit(cluster, folder, stage, min_instance_count=1)
    checkpoint = cluster.state / "storage" / str(job) / "checkpoints" / f"step-{SAVE_AT:08}.a1"
    converted = checkpoint / "universal" / "converted.json"
    wait_until(
        "it is converted", lambda: converted.exists() and not list(checkpoint.glob(".universal-*")), 200
    )
    made_at = converted.stat().st_mtime_ns
    task = next(task for task in cluster.client.job(job).tasks if task.first_rank == 1)
    for found in cluster.node_processes(int(task.node.rpartition("-")[2])):
        process.send(found, signal.SIGKILL)
    wait_until("one goes on", lambda: losses(folder, 2), 120)
    assert converted.stat().st_mtime_ns == made_at
    (folder / "enough").touch()
    cluster.wait_state(job, "SUCCEEDED", timeout_s=120)
    cluster.start_agent(1 if task.node == "local-1" else 0)

    whole = submit(cluster, alone, stage)
    (alone / "enough").touch()
    cluster.wait_state(whole, "SUCCEEDED", timeout_s=120)
    assert not list((cluster.state / "storage" / str(whole)).rglob("universal")), "it keeps its size"
    first, second, expected = losses(folder, 1), losses(folder, 2), losses(alone, 1)
    assert min(second) == SAVE_AT + 1 and max(second) == STEPS
    for found in (first, second):
        assert list(found.values()) == pytest.approx([expected[step] for step in found], rel=1e-4)
    assert not buffers() - before, "of ranks that were killed, and of those that ended"
