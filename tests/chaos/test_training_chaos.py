"""Chaos in training: whatever falls, each step has the loss of the run that nobody disturbed.

`make chaos` runs 100 rounds, `pytest tests/chaos --seed S` replays the choices of one.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.training_chaos import Losses, TrainingRound, read_losses, submit


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    seed, rounds = metafunc.config.getoption("--seed"), metafunc.config.getoption("--rounds")
    seeds = range(1, rounds + 1) if seed is None else [seed]
    metafunc.parametrize("seed", seeds, ids=lambda value: f"seed{value}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(
        tmp_path_factory.mktemp("chaos"), agents=2, cpus=1, scheduler_args=("--heartbeat", "0.5")
    ) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> Losses:
    folder = cluster.folder / "undisturbed"
    job = submit(cluster, folder)
    (folder / "enough").touch()
    cluster.wait_state(job, "SUCCEEDED", timeout_s=120)
    return read_losses(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_round_of_training(cluster: Cluster, undisturbed: Losses, tmp_path: Path, seed: int) -> None:
    TrainingRound(cluster, tmp_path / "disturbed", seed).run(undisturbed)
