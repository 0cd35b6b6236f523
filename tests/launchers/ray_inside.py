"""The Ray launcher against the conformance class. Run by test_ray.py, in a network namespace of its own."""

import os
import re
from pathlib import Path

import pytest
from conformance.launcher import LauncherConformance
from support.cluster import Cluster

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
    """A stock TorchTrainer, one worker on each instance; no file of Ray's is left."""
    with Cluster(tmp_path, agents=2, cpus=1) as cluster:
        job = cluster.client.submit(EXAMPLE)
        cluster.wait_state(job, "SUCCEEDED", timeout_s=200)
        [loss] = re.findall(r"2 workers, loss (\d+\.\d+)", cluster.output(job).decode())
        assert float(loss) < 4.85 - 1.5
    assert not list(Path(f"/tmp/pace-ray-{os.getuid()}").iterdir()), "Ray's files are gone"
