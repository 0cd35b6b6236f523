"""Scripts of trials: what a sweep's tests run, without torch, so that each is over in no time."""

from pathlib import Path

PARABOLA = """
import sys
import paceline

run = paceline.init()
x = float(run.params["x"])
for step in range(1, 4):
    run.report(step, loss=(x - 0.3) ** 2 + 1 / step)
"""
"""Its least is at 0.3."""

HELD = """
import sys, time
from pathlib import Path
import paceline

run = paceline.init()
gate = Path("gate")
run.report(1, loss=float(run.params["x"]))
while not gate.exists() and not run.should_stop():
    time.sleep(0.02)
run.report(2, loss=float(run.params["x"]))
"""
"""Runs until there is a file `gate`."""

TWO_GOALS = """
import paceline

run = paceline.init()
x = float(run.params["x"])
run.report(1, accuracy=x, latency=x * x, size=x - 0.5)
"""

WITH_MLFLOW = """
import os
import mlflow

x = float(os.environ["PACELINE_PARAM_x"])
mlflow.set_experiment("parabola")
with mlflow.start_run():
    mlflow.log_param("x", x)
    for step in range(1, 4):
        mlflow.log_metric("loss", (x - 0.3) ** 2 + 1 / step, step=step)
        mlflow.log_metrics({"speed": 1.0, "self": 2.0}, step=step)
    mlflow.log_metric("accuracy", 0.5)
    mlflow.log_metrics({f"layer{n}": float(n) for n in range(101)}, step=3)
    mlflow.log_metric("before", 1.0, step=-1)
"""
"""As scripts for Azure ML are: nothing of ours is in it."""

SAVING = """
import sys
from pathlib import Path
import paceline

run = paceline.init()
x = float(run.params["x"])
for step in range(1, 3):
    run.save(step, progress={"x": x, "step": step})
Path(sys.argv[1], "model.txt").write_text(str(x))
run.report(2, loss=(x - 0.3) ** 2)
"""
"""Leaves a checkpoint, and a file in the folder that it is given."""

PREEMPTED = """
import time
import paceline

run = paceline.init()
x = float(run.params["x"])
restored = run.restore()
if restored is None:
    run.save(1, x=x)
    run.flush()
    run.report(1, loss=x)
    while not run.should_stop():
        time.sleep(0.02)
else:
    run.report(2, loss=10 * restored["x"])
"""
"""Comes to its end in its second attempt, with what the first has saved."""

SILENT = """
import paceline

paceline.init().report(1, other=1.0)
"""

NOT_A_NUMBER = """
import paceline

run = paceline.init()
run.report(1, loss=1.0)
run.report(2, loss=float("nan"))
"""

POPULATION = """
import time
from pathlib import Path
import paceline

STEPS, EVERY = 8, 2
run = paceline.init()
x = float(run.params["x"])
restored = run.restore()
total = restored["total"] if restored else 0.0
done = restored.step if restored else 0
Path(f"forked-{done}").touch()
for step in range(done + 1, STEPS + 1):
    total += x
    if step % EVERY == 0:
        run.save(step, total=total)
        run.flush()
    run.report(step, total=total)
    while step % EVERY == 0 and step < STEPS and not Path(f"forked-{step}").exists():
        if run.should_stop():
            raise SystemExit
        time.sleep(0.02)
"""
"""Gains x with each step. After each EVERY steps it waits until another trial has gone on from there."""


def write(folder: Path, script: str) -> Path:
    """The script as trial.py there."""
    path = folder / "trial.py"
    path.write_text(script)
    return path
