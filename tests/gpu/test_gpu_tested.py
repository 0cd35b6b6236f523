"""The test of a GPU on a real one; and by an agent that has it out of service, which then offers it again."""

import json
import subprocess
import sys
from pathlib import Path

from paceline.spec.gpu_health import GpuState
from support.cluster import Cluster, wait_until
from support.gpu_driver import smi


def test_a_good_gpu_passes() -> None:
    tested = subprocess.run(
        [sys.executable, "-P", "-m", "paceline.training.gpu_test"], capture_output=True, text=True
    )
    assert (tested.returncode, tested.stdout) == (0, ""), tested.stderr


def test_one_that_is_out_of_service_is_tested_and_comes_back(tmp_path: Path) -> None:
    [uuid] = smi("uuid")
    outage = {"state": "quarantined", "why": "the test says so", "since_us": 1}
    with Cluster(tmp_path, agents=0, agent_args=["--cold", "--gpu-test-after", "2"]) as cluster:
        cluster.agent_state(0).mkdir(mode=0o700, parents=True)
        known = {uuid: {"index": 0, "outages": 1, "outage": outage}}
        (cluster.agent_state(0) / "gpus.json").write_text(json.dumps(known))
        cluster.start_agent()
        gpu = cluster.client.nodes().nodes[0].gpus[0]
        assert (gpu.state, gpu.quarantines) == (GpuState.QUARANTINED, 1)
        assert "the test says so" in gpu.health

        def back() -> bool:
            gpu = cluster.client.nodes().nodes[0].gpus[0]
            assert "failed its test" not in gpu.health, gpu.health
            return gpu.state is GpuState.OK

        wait_until("the GPU is offered again", back)
        assert "GPU 0: did well in its test" in cluster.agents[0].log_text()
        job = cluster.submit_text("command: echo here\nresources: {gpus: 1}\n")
        cluster.wait_state(job, "SUCCEEDED")
