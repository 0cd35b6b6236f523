"""A rank of a real gang that is slower than its peers, window after window: told, and its node drained where
the cluster's policy says so."""

import json
import sys
from pathlib import Path

import pytest
from support.cluster import Cluster, wait_until

SLOW_RANK = 1
LATE_S = 0.3
"""Far beyond what the ranks of a busy machine wait for its cores."""
SCRIPT = f"""
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
import paceline

dist.init_process_group("gloo")
run = paceline.init()
enough = Path(sys.argv[1])
step = 0
while True:
    if run.rank == {SLOW_RANK}:
        time.sleep({LATE_S})
    done = torch.tensor(float(enough.exists()))
    dist.all_reduce(done)
    step += 1
    run.report(step)
    if done:
        break
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_node_of_a_rank_that_stays_slow_gets_no_new_gang(tmp_path: Path) -> None:
    """Three windows of 30 s in a row, after the first, in which ranks start."""
    script, enough = tmp_path / "train.py", tmp_path / "enough"
    script.write_text(SCRIPT)
    document = {
        "command": f"{sys.executable} {script} {enough}",
        "distribution": {"type": "pytorch", "process_count_per_instance": 1},
        "resources": {"cpus": 1, "instance_count": 3},
    }
    with Cluster(tmp_path, agents=3, cpus=1, scheduler_args=("--drain-stragglers", "1")) as cluster:
        job = cluster.submit_text(json.dumps(document))

        def told() -> str | None:
            texts = (entry.text for entry in cluster.client.timeline(job).entries)
            return next((text for text in texts if " is slow: " in text), None)

        text = wait_until("it is told", told, timeout_s=300)
        slow = next(task.node for task in cluster.client.job(job).tasks if task.first_rank == SLOW_RANK)
        assert text.startswith(f"rank {SLOW_RANK} on {slow} is slow: "), text
        assert "in 3 windows in a row" in text
        shown = " ".join(cluster.pace("show", str(job)).stdout.split())
        assert f"rank {SLOW_RANK} on {slow} is slow: " in shown, shown
        [drained] = [node for node in cluster.client.nodes().nodes if node.reason is not None]
        assert drained.name == slow and drained.reason is not None
        assert "more: in report 1 on it, rank 1" in drained.reason.text
        assert cluster.client.job(job).attempt == 1, "what runs there goes on"

        enough.touch()
        cluster.wait_state(job, "SUCCEEDED")
        second = cluster.submit_text(json.dumps(document))
        assert f"{slow} is drained for" in cluster.client.why(second).reasons[0].text
        cluster.client.cancel(second)
        cluster.wait_state(second, "CANCELLED")
