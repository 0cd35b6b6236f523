"""Two jobs on one GPU; each keeps to its share of the memory where its torch can be asked to."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from paceline.spec.failures import FailureClass
from support.cluster import Cluster

HOLD = """
import json, os, sys, time, torch
from pathlib import Path
total = torch.cuda.mem_get_info()[1]
held = torch.ones(total // 10, dtype=torch.uint8, device="cuda")
names = ("PACELINE_GPU_SHARE", "PYTORCH_ALLOC_CONF", "CUDA_VISIBLE_DEVICES")
print(json.dumps({name: os.environ.get(name, "") for name in names}), flush=True)
Path(sys.argv[1]).touch()
while not Path(sys.argv[2]).exists():
    time.sleep(0.02)
print(int(held[-1]))
"""
TAKE = """
import torch
total = torch.cuda.mem_get_info()[1]
torch.ones(total // 5, dtype=torch.uint8, device="cuda")
torch.ones(total // 10 * 3, dtype=torch.uint8, device="cuda")
"""
FRACTION = "per_process_memory_fraction"


def can_be_asked() -> bool:
    """An older torch stops at an option that it does not know."""
    return (
        subprocess.run(
            [sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')"],
            env={**os.environ, "PYTORCH_ALLOC_CONF": f"{FRACTION}:0.5"},
            capture_output=True,
        ).returncode
        == 0
    )


def submit(cluster: Cluster, command: str, share: float) -> int:
    document = {"command": f"{sys.executable} {command}", "resources": {"gpus": share}}
    return cluster.submit_text(json.dumps({**document, "retry": {"max_attempts": 1}}))


def test_two_jobs_share_a_gpu(cluster: Cluster, script: Callable[[str], Path], tmp_path: Path) -> None:
    path, other = script(HOLD), tmp_path / "one"
    first = submit(cluster, f"{path} {tmp_path / 'one'} {tmp_path / 'two'}", 0.5)
    second = submit(cluster, f"{path} {tmp_path / 'two'} {other}", 0.5)
    said = []
    for job in (first, second):  # each ends when the other has some of the GPU, too
        cluster.wait_state(job, "SUCCEEDED")
        told, held = cluster.output(job).decode().splitlines()
        said.append(json.loads(told))
        assert held == "1"
        assert cluster.client.job(job).tasks[0].gpu_indices == (0,)
    assert said[0] == said[1]
    assert said[0]["PACELINE_GPU_SHARE"] == "0.5"
    assert said[0]["PYTORCH_ALLOC_CONF"] == (f"{FRACTION}:0.5" if can_be_asked() else "")


def test_more_than_its_share_is_out_of_memory(cluster: Cluster, script: Callable[[str], Path]) -> None:
    """A fifth of the GPU fits in a quarter of it, three tenths do not."""
    job = submit(cluster, str(script(TAKE)), 0.25)
    ended = cluster.wait_state(job)
    if not can_be_asked():
        assert ended.state == "SUCCEEDED", cluster.story(job, "torch was not asked, and yet")
        return
    assert ended.state == "FAILED"
    assert ended.failure is not None
    print(ended.failure)
    assert ended.failure.kind is FailureClass.OUT_OF_MEMORY
    assert "line 5" in ended.failure.traceback
    assert "share" in ended.failure.hint
