"""What a job sees of the node's GPUs: those that it was given, also in a rank that was forked warm."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster
from support.gpu_driver import smi

LOOK = """
import json, os, torch
found = {"visible": os.environ["CUDA_VISIBLE_DEVICES"], "available": torch.cuda.is_available()}
found["count"] = torch.cuda.device_count()
if found["available"]:
    ones = torch.ones(1000, 1000, device="cuda")
    found["sum"] = (ones @ ones).sum().item()
    found["uuid"] = str(torch.cuda.get_device_properties(0).uuid)
    found["name"] = torch.cuda.get_device_name()
print(json.dumps(found))
"""


def look(cluster: Cluster, script: Path, resources: dict[str, float]) -> tuple[dict[str, Any], str]:
    """What the script saw, and how it was started."""
    job = cluster.submit_text(json.dumps({"command": f"{sys.executable} {script}", "resources": resources}))
    [task] = cluster.wait_state(job, "SUCCEEDED").tasks
    return json.loads(cluster.output(job)), task.start_mode


def test_a_job_with_a_gpu_sees_that_one_from_a_warm_start(
    cluster: Cluster, script: Callable[[str], Path]
) -> None:
    uuid, name = smi("uuid", "name")
    found, start_mode = look(cluster, script(LOOK), {"gpus": 1})
    assert (found["visible"], found["available"], found["count"]) == ("0", True, 1)
    assert (found["uuid"].removeprefix("GPU-"), found["name"]) == (uuid.removeprefix("GPU-"), name)
    assert found["sum"] == 1e9
    assert start_mode.startswith("warm"), start_mode


def test_a_job_without_sees_none(cluster: Cluster, script: Callable[[str], Path]) -> None:
    found, start_mode = look(cluster, script(LOOK), {"cpus": 1})
    assert found == {"visible": "", "available": False, "count": 0}
    assert start_mode.startswith("warm"), start_mode


def test_what_it_ran_with_names_the_driver_and_the_gpu(cluster: Cluster) -> None:
    uuid, name, serial, driver = smi("uuid", "name", "serial", "driver_version")
    job = cluster.submit_text("command: echo here\nresources: {gpus: 1}\n")
    cluster.wait_state(job, "SUCCEEDED")
    told = cluster.pace("environment", str(job), "-o", "json")
    assert told.returncode == 0, told.stderr
    [ran] = json.loads(told.stdout)["ran_with"]
    [gpu] = ran["gpus"]
    assert (ran["driver"], gpu["uuid"], gpu["name"]) == (driver, uuid, name)
    assert gpu["serial"] == (serial if serial.isdigit() else "")
    assert "torch" in {package["name"] for package in ran["packages"]}


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_loader_workers_feed_a_gpu(cluster: Cluster, script: Callable[[str], Path], how: str) -> None:
    """Pinned by the loader's own thread; the workers are started once CUDA is up."""
    feed = f"""
import torch
from torch.utils.data import DataLoader, TensorDataset
if __name__ == "__main__":
    total = torch.zeros((), device="cuda")
    data = TensorDataset(torch.arange(64.0))
    for [batch] in DataLoader(data, 8, num_workers=2, pin_memory=True, multiprocessing_context="{how}"):
        assert batch.is_pinned()
        total += batch.to("cuda", non_blocking=True).sum()
    print(total.item())
"""
    job = cluster.submit_text(
        json.dumps({"command": f"{sys.executable} {script(feed)}", "resources": {"gpus": 1}})
    )
    cluster.wait_state(job, "SUCCEEDED")
    assert cluster.output(job) == b"2016.0\n"
