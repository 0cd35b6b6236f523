"""The Ray launcher against the conformance class. Run by test_ray.py, in a network namespace of its own."""

import os
import re
from pathlib import Path

import psutil
import pytest
from conformance.launcher import LauncherConformance
from support.cluster import Cluster, wait_until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "chargpt" / "ray.yaml"

_RAY = """
def loop(main):
    import ray.train
    it = ray.train.get_context()
    main(it.get_world_rank(), it.get_world_size(), it.get_local_rank(), it.get_local_world_size())

def ride(main):
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    assert "RAY_ADDRESS" in os.environ
    trainer = TorchTrainer(
        lambda: loop(main),
        scaling_config=ScalingConfig(num_workers=4),
        torch_config=TorchConfig(backend="gloo"),
    )
    trainer.fit()
"""


class TestRay(LauncherConformance):
    """A rank that fails is Ray's: the trainer raises, and the command ends with 1."""

    distribution = "{type: ray}"
    RIDE = _RAY
    failed_rank_code = 1
    killed_rank_code = 1

    def who(self, rank: int) -> list[int]:
        """Ray Train takes nodes of one address for one node."""
        return [rank, 4, rank, 4]


@pytest.mark.timeout(400)
def test_the_example(tmp_path: Path) -> None:
    """A stock TorchTrainer, one worker on each instance; two such jobs at once on the same two agents."""
    with Cluster(tmp_path, agents=2, cpus=2) as cluster:
        jobs = [cluster.client.submit(EXAMPLE) for _ in range(2)]
        wait_until("both run at once", lambda: {cluster.client.job(job).state for job in jobs} == {"RUNNING"})
        folders = wait_until("each node has its folder", lambda: len(found := ray_folders()) == 4 and found)
        for job in jobs:
            cluster.wait_state(job, "SUCCEEDED", timeout_s=200)
            [loss] = re.findall(r"2 workers, loss (\d+\.\d+)", cluster.output(job).decode())
            assert float(loss) < 4.85 - 1.5
    assert not ray_folders() & folders


@pytest.mark.timeout(400)
def test_a_node_of_ray_that_dies_ends_the_attempt_and_what_it_left_goes(tmp_path: Path) -> None:
    text = "command: sleep 600\ndistribution: {type: ray}\nresources: {instance_count: 2, cpus: 1}\n"
    with Cluster(tmp_path, agents=2, cpus=1) as cluster:
        job = cluster.submit_text(text + "retry: {max_attempts: 2}\ngrace_s: 1\n")
        wait_until("the command runs", lambda: running("sleep", "600"), 200)
        left = ray_folders()
        [victim, _] = named("raylet")
        victim.kill()
        wait_until("a second attempt runs", lambda: cluster.client.job(job).attempt == 2, 60)
        assert b"this node's Ray ended with 1" in b"".join(
            cluster.output(job, rank=rank, attempt=1) for rank in range(2)
        )
        wait_until("its command, too", lambda: running("sleep", "600"), 200)
        assert not ray_folders() & left
        cluster.client.cancel(job)
        cluster.wait_state(job, "CANCELLED")
    assert not named("raylet")


def ray_folders() -> set[Path]:
    return set(Path(f"/tmp/pace-ray-{os.getuid()}").glob("*"))


def running(*command: str) -> bool:
    """That very command is there. One that ends meanwhile, or is a zombie, hides no other."""
    return any(each.info["cmdline"] == list(command) for each in psutil.process_iter(["cmdline"]))


def named(name: str) -> list[psutil.Process]:
    """Of this namespace."""
    found = psutil.process_iter(["name", "status"])
    return [each for each in found if each.info["name"] == name and each.info["status"] != "zombie"]
