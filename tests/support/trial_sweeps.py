"""Sweeps of the short trials in trial_scripts.py, on a real cluster."""

from pathlib import Path
from typing import Any

from paceline.client.sweep_views import Sweep, Trial

from . import trial_scripts
from .cluster import Cluster

SPACE = {"x": {"type": "uniform", "min_value": 0, "max_value": 1}}
LOSS = {"primary_metric": "loss", "goal": "minimize"}


def sweep_of(folder: Path, script: str, trials: int = 6, **changes: Any) -> dict[str, Any]:
    trial_scripts.write(folder, script)
    return {
        "type": "sweep",
        "name": "parabola",
        "trial": {"command": "python trial.py", "code": str(folder), "retry": {"max_attempts": 1}},
        "search_space": SPACE,
        "objective": LOSS,
        "sampling_algorithm": {"type": "random", "seed": 7},
        "limits": {"max_total_trials": trials, "max_concurrent_trials": 2},
        **changes,
    }


def ended(cluster: Cluster, number: int) -> Sweep:
    found = cluster.client.wait_sweep(number)
    assert found.is_over
    return found


def trials_of(cluster: Cluster, number: int) -> list[Trial]:
    return list(cluster.client.trials(number))
