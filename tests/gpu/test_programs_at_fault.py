"""What a program did wrong on the GPU is the program's failure, and the GPU stays in service."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from paceline.client import views
from paceline.spec.failures import FailureClass
from paceline.spec.gpu_health import GpuState
from paceline.spec.xids import Blame, xid_of
from support.cluster import Cluster

TOO_LARGE = 'import torch; torch.empty(1 << 45, dtype=torch.uint8, device="cuda")'
OUT_OF_RANGE = """
import torch
table = torch.nn.Embedding(10, 4).to("cuda")
print(table(torch.tensor([11], device="cuda")).sum().item())
"""
ILLEGAL_ADDRESS = """
import torch
here = torch.ones(1, dtype=torch.uint8, device="cuda")
nowhere = torch._C._construct_storage_from_data_pointer(4096, here.device, 1 << 20)
here.set_(nowhere, 0, (1 << 20,)).fill_(1)
torch.cuda.synchronize()
"""


def failed(cluster: Cluster, script: Path) -> views.Job:
    document = {"command": f"{sys.executable} {script}", "resources": {"gpus": 1}}
    job = cluster.submit_text(json.dumps({**document, "retry": {"max_attempts": 1}}))
    ended = cluster.wait_state(job)
    assert ended.state == "FAILED", cluster.story(job, "it did not fail")
    print(ended.failure)
    return ended


def test_a_gpu_whose_memory_is_full(cluster: Cluster, script: Callable[[str], Path]) -> None:
    failure = failed(cluster, script(TOO_LARGE)).failure
    assert failure is not None
    assert failure.kind is FailureClass.OUT_OF_MEMORY
    assert failure.error_type.rpartition(".")[2] == "OutOfMemoryError"
    total = cluster.client.nodes().nodes[0].gpus[0].memory_total_bytes / 2**30
    assert "the GPU's memory is full: lower the batch size or ask for a GPU with more than" in failure.hint
    asked = float(failure.hint.rpartition("more than ")[2].split()[0])
    assert 0.9 * total < asked <= total


@pytest.mark.parametrize("text", [OUT_OF_RANGE, ILLEGAL_ADDRESS], ids=["assert", "address"])
def test_a_fault_of_the_program(cluster: Cluster, script: Callable[[str], Path], text: str) -> None:
    ended = failed(cluster, script(text))
    assert ended.failure is not None
    assert ended.failure.kind is FailureClass.EXCEPTION
    assert "CUDA error" in ended.failure.message
    gpu = cluster.client.nodes().nodes[0].gpus[0]
    print(gpu)
    assert (gpu.state, gpu.health, gpu.quarantines) == (GpuState.OK, "ok", 0)
    if gpu.last_xid is not None:
        assert xid_of(gpu.last_xid).blame is Blame.PROGRAM
    works = script('import torch; print(torch.ones(2, device="cuda").sum().item())')
    document = {"command": f"{sys.executable} {works}", "resources": {"gpus": 1}}
    again = cluster.submit_text(json.dumps(document))
    cluster.wait_state(again, "SUCCEEDED")
    assert cluster.output(again) == b"2.0\n"


def test_an_illegal_address_is_told_by_its_number(cluster: Cluster, script: Callable[[str], Path]) -> None:
    ended = failed(cluster, script(ILLEGAL_ADDRESS))
    assert ended.failure is not None
    assert "XID 31: MMU fault: an illegal address in the program" in ended.failure.hint
