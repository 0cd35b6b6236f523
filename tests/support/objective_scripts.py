"""Objectives of sweeps by function: what their tests run."""

PARABOLA = """
def objective(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    trial.suggest_categorical("kind", ["a", None])
    return (x - 0.3) ** 2 + trial.suggest_int("n", 1, 3)
"""

HELD = """
import json, os, time
from itertools import count
from pathlib import Path

def objective(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    call = {"number": trial.number, "x": x, "pid": os.getpid()}
    call["admission"] = json.loads(os.environ["PACELINE_STUDY"])
    with open("calls", "a") as file:
        file.write(json.dumps(call) + "\\n")
    for step in count():
        if Path("gate").exists():
            Path("ended").touch()
            return x
        trial.report(x, step)
        time.sleep(0.02)
"""
"""Writes down each call, and runs until there is a file `gate`."""

ENDINGS = """
import optuna

def objective(trial):
    match trial.suggest_categorical("kind", ["raises", "nan", "text", "pruned", "two", "leaves", "fine"]):
        case "raises":
            raise KeyError("no such layer")
        case "nan":
            return float("nan")
        case "text":
            return "x"
        case "pruned":
            trial.report(0.5, 3)
            raise optuna.TrialPruned
        case "two":
            return 1.0, 2.0
        case "leaves":
            raise SystemExit
    return 1
"""

REPORTS = """
import optuna

def objective(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    for step in range(1, 4):
        trial.report(x, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x
"""

TWO_GOALS = """
def objective(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    return x if x < 0.5 else 0.1, x
"""
