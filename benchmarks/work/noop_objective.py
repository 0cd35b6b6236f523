"""A trial that costs nothing but its bookkeeping."""

from typing import Any


def objective(trial: Any) -> float:
    x: float = trial.suggest_float("x", 0.0, 1.0)
    lr: float = trial.suggest_float("lr", 1e-5, 1.0, log=True)
    kind: str = trial.suggest_categorical("kind", ("sgd", "adam", "lion"))
    return x + lr + len(kind)
