"""Chaos in training: whatever falls, each step has the loss of the run that nobody disturbed.

`make chaos` runs 100 rounds, `pytest tests/chaos --seed S` replays the choices of one.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.training_chaos import TrainingRound, course_of
from support.training_cluster import TrainingCluster, training_cluster
from support.training_courses import COURSES, Batches, Course, Losses

Undisturbed = tuple[Losses, Batches]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    seed, rounds = metafunc.config.getoption("--seed"), metafunc.config.getoption("--rounds")
    seeds = range(1, max(rounds, len(COURSES)) + 1) if seed is None else [seed]
    metafunc.parametrize("seed", seeds, ids=lambda value: f"seed{value}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingCluster]:
    with training_cluster(tmp_path_factory.mktemp("chaos")) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster: TrainingCluster) -> Callable[[Course], Undisturbed]:
    @functools.cache
    def told(course: Course) -> Undisturbed:
        return course.undisturbed(cluster, cluster.folder / course.name)

    return told


@pytest.mark.slow
@pytest.mark.timeout(3600)  # each wait has a bound of its own
def test_round_of_training(
    cluster: TrainingCluster, undisturbed: Callable[[Course], Undisturbed], tmp_path: Path, seed: int
) -> None:
    losses, batches = undisturbed(course_of(seed))
    TrainingRound(cluster, tmp_path / "disturbed", seed).run(losses, batches)
