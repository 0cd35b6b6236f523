"""The real thing: two ranks train digits with DDP, one is killed after a checkpoint, the gang rides on."""

import json
import re
import signal
from pathlib import Path

import pytest
from paceline.client import process
from support.cluster import Cluster, wait_until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"


@pytest.mark.slow
def test_a_worker_of_a_training_gang_is_killed(tmp_path: Path) -> None:
    """Attempt 2 goes on from the accepted checkpoint, and the model is there in the end."""
    with Cluster(tmp_path, agents=2, cpus=1) as cluster:
        job = cluster.client.submit(
            EXAMPLE / "job.yaml", overrides=["inputs.epochs=12", "inputs.save_every=10"]
        )
        wait_until("a checkpoint is accepted", lambda: bool(cluster.client.job(job).checkpoints), 120)
        victim = process.identify(cluster.gang_pids(job, 2)[1])
        assert victim is not None
        process.send(victim, signal.SIGKILL)
        found = cluster.wait_state(job, "SUCCEEDED", timeout_s=120)
        assert (found.attempt, found.exit_code) == (2, 0)
        entries = cluster.client.timeline(job).entries
        (first,) = [e for e in entries if e.kind == "AttemptEnded" and e.attempt == 1 and "SIGKILL" in e.text]
        again = [json.loads(e.body) for e in entries if e.kind == "TaskStarted" and e.attempt == 2]
        assert [each["start_mode"].partition(":")[0] for each in again] == ["warm", "warm"], again
        assert re.search(r"rank 1 on local-\d was killed by signal 9", first.text)
        restored = [json.loads(e.body) for e in entries if e.kind == "CheckpointRestored" and e.attempt == 2]
        assert any(each["step"] >= 10 for each in restored), restored
        outputs = cluster.state / "storage" / str(job) / "outputs" / "2" / "model"
        assert any(path.stat().st_size > 10_000 for path in outputs.iterdir())
