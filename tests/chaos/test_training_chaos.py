"""Chaos in training: whatever falls, each step has the loss of the run that nobody disturbed.

`make chaos` runs 100 rounds, `pytest tests/chaos --seed S` replays the choices of one.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.training_chaos import COURSES, Batches, Course, Losses, TrainingRound

Undisturbed = tuple[Losses, Batches]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    seed, rounds = metafunc.config.getoption("--seed"), metafunc.config.getoption("--rounds")
    seeds = range(1, max(rounds, len(COURSES)) + 1) if seed is None else [seed]
    metafunc.parametrize("seed", seeds, ids=lambda value: f"seed{value}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(
        tmp_path_factory.mktemp("chaos"), agents=2, cpus=1, scheduler_args=("--heartbeat", "0.5")
    ) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> Callable[[Course], Undisturbed]:
    @functools.cache
    def told(course: Course) -> Undisturbed:
        folder = cluster.folder / course.name
        job = course.submit(cluster, folder)
        course.ride(cluster, job, folder, to=2 * course.steps)
        (folder / "enough").touch()
        course.ride(cluster, job, folder)
        cluster.wait_state(job, "SUCCEEDED")
        return course.read(folder), course.batches(folder)

    return told


@pytest.mark.slow
@pytest.mark.timeout(3600)  # each wait has a bound of its own
def test_round_of_training(
    cluster: Cluster, undisturbed: Callable[[Course], Undisturbed], tmp_path: Path, seed: int
) -> None:
    course = COURSES[seed % len(COURSES)]
    losses, batches = undisturbed(course)
    TrainingRound(cluster, course, tmp_path / "disturbed", seed).run(losses, batches)
