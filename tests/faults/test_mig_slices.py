"""MIG slices from end to end: real agent and scheduler, NVML's stub with a GPU in MIG mode.

What is not real is the device: CUDA has not been asked what it makes of CUDA_VISIBLE_DEVICES.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client import views
from paceline.spec.gpu_health import GpuState
from paceline.spec.slices import slice_index
from support.cluster import Cluster, wait_until
from support.nvml_node import Driver, build_stub, mig_slice, nvml_environment

SMALL = (mig_slice(1, 0, "1g.10gb", gi=7), mig_slice(1, 1, "1g.10gb", gi=8))
FIRST, SECOND = slice_index(1, 7, 0), slice_index(1, 8, 0)
PAIR = """
command: echo $OMPI_COMM_WORLD_RANK $CUDA_VISIBLE_DEVICES >> {file}; sleep 600
distribution: {{type: mpi, process_count_per_instance: 2}}
resources: {{cpus: 1, gpus: {{count: 2, model: 1g.10gb, memory: 9GB}}}}
"""
WHOLE = "command: sleep 600\nresources: {cpus: 1, gpus: 1}\n"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[Cluster, Driver]]:
    """A whole GPU 0, and GPU 1 in two slices. A GPU's test writes down what it was run on."""
    script = tmp_path / "nvml"
    driver = Driver(script, 2)
    driver.divide(1, *SMALL)
    test = f"sh -c 'echo $CUDA_VISIBLE_DEVICES >> {tmp_path}/tested'"
    args = ["--cold", "--gpu-test", test, "--gpu-test-after", "0.1"]
    stub = build_stub(tmp_path / "library")
    with Cluster(tmp_path, cpus=8, agent_args=args, environment=nvml_environment(stub, script)) as cluster:
        yield cluster, driver


def lines(file: Path) -> list[str]:
    return sorted(file.read_text().split("\n")[:-1]) if file.exists() else []


def running(cluster: Cluster, job: int, attempt: int = 1) -> views.Job:
    def there() -> views.Job | None:
        found = cluster.client.job(job)
        return found if (found.attempt, found.state) == (attempt, "RUNNING") else None

    return wait_until(f"attempt {attempt} of job {job} runs", there)


def test_slices_are_placed_seen_quarantined_tested_and_laid_out_anew(
    node: tuple[Cluster, Driver], tmp_path: Path
) -> None:
    cluster, driver = node
    [seen] = cluster.client.nodes().nodes
    assert (seen.capacity.gpus, seen.free.gpus, len(seen.gpus)) == (3, 3, 2)
    assert [(one.index, one.uuid) for one in seen.gpus[1].slices] == [
        (FIRST, "MIG-1-7-0"),
        (SECOND, "MIG-1-8-0"),
    ]
    shown = " ".join(cluster.pace("nodes", "-o", "json").stdout.split())
    assert f'"index": {FIRST}' in shown and "MIG 1g.10gb" in shown

    whole = cluster.submit_text(WHOLE)
    assert running(cluster, whole).tasks[0].gpu_indices == (0,)
    waits = cluster.submit_text(WHOLE)
    told = cluster.pace("why", str(waits)).stdout
    assert "2 MIG slices 1g.10gb are free, but it asks for whole GPUs" in " ".join(told.split())

    ranks = tmp_path / "ranks"
    pair = cluster.submit_text(PAIR.format(file=ranks))
    assert running(cluster, pair).tasks[0].gpu_indices == (FIRST, SECOND)
    wait_until("each rank has told", lambda: lines(ranks) == ["0 MIG-1-7-0", "1 MIG-1-8-0"])
    show = " ".join(cluster.pace("show", str(pair)).stdout.split())
    assert "2 GPUs (1g.10gb, 8.4 GiB or more)" in show and "1/7/0 1/8/0" in show

    driver.tell(1, 48)
    again = running(cluster, pair, 2)
    assert again.tasks[0].gpu_indices == (FIRST, SECOND), "after the test of both"
    assert lines(tmp_path / "tested") == ["MIG-1-7-0", "MIG-1-8-0"]
    story = "\n".join(entry.text for entry in cluster.client.timeline(pair).entries)
    assert "attempt 1 ended (node-lost, uses no retry): GPU 1/7/0 of local-0 is quarantined: XID 48" in story
    assert cluster.client.job(whole).attempt == 1, "its GPU is another"
    assert cluster.client.nodes().nodes[0].gpus[1].state is GpuState.OK

    cluster.client.cancel(pair)
    cluster.wait_state(pair, "CANCELLED")
    driver.divide(1, mig_slice(1, 0, "3g.40gb", gi=2))
    large = cluster.submit_text("command: sleep 600\nresources: {gpus: {count: 1, model: 3g.40gb}}\n")
    assert running(cluster, large).tasks[0].gpu_indices == (slice_index(1, 2, 0),)
    assert cluster.client.nodes().nodes[0].capacity.gpus == 2
