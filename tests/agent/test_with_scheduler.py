"""Agents with the real scheduler: whoever is killed while output is under way, it arrives once and whole."""

from pathlib import Path

import pytest
from support.cluster import Cluster, wait_until
from support.nvml_node import build_stub, h100, nvml_environment
from support.proxy import Proxy


class Counting:
    """A job that counts aloud until it is told to stop: whole output has every number once, in order."""

    def __init__(self, folder: Path) -> None:
        self._enough = folder / "enough"
        count = "i=$((i+1)); echo line $i; sleep 0.005"
        self.text = f'command: "i=0; until [ -e {self._enough} ]; do {count}; done; echo over"\n'

    def stop(self) -> None:
        self._enough.touch()

    def is_whole(self, output: bytes) -> bool:
        lines = output.splitlines()
        return lines == [b"line %d" % number for number in range(1, len(lines))] + [b"over"]


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


def sizes(cluster: Cluster, job: int) -> int:
    return len(cluster.output(job))


def followed(cluster: Cluster, job: int) -> bytes:
    """All of it, also what is still on its way when the job is over."""
    return b"".join(chunk.data for chunk in cluster.client.logs(job, follow=True))


@pytest.mark.parametrize("victim", ["agent", "scheduler", "both"])
def test_output_survives_a_kill(tmp_path: Path, victim: str, counting: Counting) -> None:
    patient = ("--missed-heartbeats", "60")  # on a busy machine a start may take long
    with Cluster(tmp_path, agent_args=["--cold"], scheduler_args=patient) as cluster:
        job = cluster.submit_text(counting.text)
        for _ in range(2):
            before = sizes(cluster, job)
            wait_until("output grows", lambda before=before: sizes(cluster, job) > before)
            if victim != "agent":
                cluster.kill_scheduler()
            if victim != "scheduler":
                cluster.kill_agent()
                cluster.start_agent(wait=False)
            if victim != "agent":
                cluster.start_scheduler()
        counting.stop()
        assert cluster.wait_state(job, "SUCCEEDED").attempt == 1
        assert counting.is_whole(followed(cluster, job))
        wait_until("the folder is dropped", lambda: not list((cluster.agent_state() / "tasks").iterdir()))


def streams_broken(cluster: Cluster) -> int:
    return cluster.agents[0].log_text().count("trying again in")


def test_output_survives_cut_connections(tmp_path: Path, counting: Counting) -> None:
    with Cluster(tmp_path, agents=0) as cluster:
        host, _, port = cluster.address.rpartition(":")
        with Proxy((host, int(port))) as proxy:
            cluster.start_agent(0, "--cold", address=f"127.0.0.1:{proxy.port}")
            job = cluster.submit_text(counting.text)
            for size in (100, 3000, 9000):
                before = sizes(cluster, job)
                wait_until("output grows", lambda before=before: sizes(cluster, job) > before)
                broken = streams_broken(cluster)
                proxy.cut_after(size)  # too little for a new connection to bring anything through
                wait_until("it was cut", lambda broken=broken: streams_broken(cluster) > broken)
                proxy.cut_after(None)
            counting.stop()
            assert cluster.wait_state(job, "SUCCEEDED").attempt == 1
            assert counting.is_whole(followed(cluster, job))
            cluster.stop_agent(0)


def test_gpus_are_placed_by_what_nvml_says(tmp_path: Path) -> None:
    script = tmp_path / "nvml"
    script.write_text(h100(0) + "\n" + h100(1, name="NVIDIA_A100") + "\n" + h100(2) + "\nfault 2 * 15\n")
    environment = nvml_environment(build_stub(tmp_path / "stub"), script)
    with Cluster(tmp_path, agent_args=["--cold"], environment=environment) as cluster:
        job = cluster.submit_text(
            "command: echo $CUDA_VISIBLE_DEVICES\nresources:\n  gpus: {count: 1, model: H100}\n"
        )
        cluster.wait_state(job, "SUCCEEDED")
        assert followed(cluster, job).strip() in (b"0", b"GPU-0000")
        node = cluster.client.nodes().nodes[0]
        healths = {gpu.index: gpu.health for gpu in node.gpus}
        assert healths[0] == healths[1] == "ok" and "bus" in healths[2]
