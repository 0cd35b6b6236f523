"""Sweeps of the short trials in trial_scripts.py, on a real cluster."""

from pathlib import Path
from typing import Any

from paceline.client.sweep_views import Sweep, Trial

from . import trial_scripts
from .cluster import Cluster

SPACE = {"x": {"type": "uniform", "min_value": 0, "max_value": 1}}
LOSS = {"primary_metric": "loss", "goal": "minimize"}


def sweep_of(folder: Path, script: str, trials: int = 6, **changes: Any) -> dict[str, Any]:
    """Trials run in `folder` itself: some of them talk through files there."""
    trial_scripts.write(folder, script)
    work = {"command": "python trial.py", "code": str(folder), "code_in_place": True}
    return {
        "type": "sweep",
        "name": "parabola",
        "trial": {**work, "retry": {"max_attempts": 1}},
        "search_space": SPACE,
        "objective": LOSS,
        "sampling_algorithm": {"type": "random", "seed": 7},
        "limits": {"max_total_trials": trials, "max_concurrent_trials": 2},
        **changes,
    }


def population_of(folder: Path) -> dict[str, Any]:
    """Four members, each generation from the best of the one before. Of one folder only one sweep."""
    return sweep_of(
        folder,
        trial_scripts.POPULATION,
        objective={"primary_metric": "total", "goal": "maximize"},
        sampling_algorithm={"type": "pbt", "population_size": 4, "perturbation_interval": 2, "seed": 5},
        enqueue=[{"x": 0.2}, {"x": 0.5}, {"x": 0.4}, {"x": 0.3}],
        limits={"max_total_trials": 7},
    )


def ended(cluster: Cluster, number: int) -> Sweep:
    found = cluster.client.wait_sweep(number)
    assert found.is_over
    return found


def trials_of(cluster: Cluster, number: int) -> list[Trial]:
    return list(cluster.client.trials(number))
