"""Sweeps by function, for real: worker jobs that call an objective for one trial after the other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paceline.client.sweep_views import Sweep, Trial
from support.cluster import Cluster

PARABOLA = """
def objective(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    n = trial.suggest_int("n", 1, 3)
    return (x - 0.3) ** 2
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("objectives"), agents=1, cpus=2) as made:
        yield made


def sweep_of(folder: Path, script: str, trials: int = 6, **changes: Any) -> dict[str, Any]:
    (folder / "objective.py").write_text(script)
    return {
        "type": "sweep",
        "name": "parabola",
        "trial": {"objective": "objective.py:objective", "code": str(folder)},
        "objective": {"goal": "minimize"},
        "sampling_algorithm": {"type": "random", "seed": 7},
        "limits": {"max_total_trials": trials, "max_concurrent_trials": 1},
        **changes,
    }


def ended(cluster: Cluster, number: int) -> Sweep:
    found = cluster.client.wait_sweep(number)
    assert found.is_over
    return found


def trials_of(cluster: Cluster, number: int) -> list[Trial]:
    return list(cluster.client.trials(number))


def test_one_worker_to_the_best_trial(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.client.submit_sweep(sweep_of(tmp_path, PARABOLA))
    found = ended(cluster, number)
    assert (found.state, found.complete, found.failed, found.running) == ("SUCCEEDED", 6, 0, 0), found
    trials = trials_of(cluster, number)
    assert len({one.job for one in trials}) == 1
    assert all(one.values == (pytest.approx((one.params["x"] - 0.3) ** 2),) for one in trials)
    assert {one.params["kind"] for one in trials} <= {"a", "b"}
    assert found.best[0].number == min(trials, key=lambda one: one.values).number
