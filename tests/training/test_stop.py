"""should_stop: every rank gets the same answer at the same call, whoever hears first, however they drift. It
does so outside Paceline, too.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import rank_scripts
from support.fake_shim import FakeTask, wait_until
from support.ranks import RankPool, RunningGang


def start(
    ranks: RankPool, tmp_path: Path, *, step_s: float, sync: bool
) -> tuple[RunningGang, list[FakeTask], list[Path]]:
    tasks = [FakeTask(tmp_path / f"node-{rank}", task=rank) for rank in (0, 1)]
    ready = [tmp_path / f"ready.{rank}" for rank in (0, 1)]
    variables = [task.variables() | {"READY": str(path)} for task, path in zip(tasks, ready, strict=True)]
    gang = ranks.start(
        rank_scripts.step_until_stop, step_s, 200_000, sync, folder=tmp_path, variables=variables
    )
    wait_until(lambda: all(path.exists() for path in ready), "both ranks have taken a step")
    return gang, tasks, ready


@pytest.mark.parametrize("hearer", [0, 1])
@pytest.mark.parametrize("step_s", [0.0, 0.004])
def test_notice_at_one_node_stops_all_at_the_same_step(
    ranks: RankPool, tmp_path: Path, hearer: int, step_s: float
) -> None:
    gang, tasks, _ = start(ranks, tmp_path, step_s=step_s, sync=False)
    tasks[hearer].give_notice()
    (first, *_), (second, *_) = gang.results()
    assert first == second
    assert first >= 0


def test_sigterm_to_one_rank_only_asks_and_stops_all_at_the_same_step(
    ranks: RankPool, tmp_path: Path
) -> None:
    gang, _, _ = start(ranks, tmp_path, step_s=0.002, sync=True)
    gang.kill(1, signal.SIGTERM)
    (first, *_), (second, *_) = gang.results()
    assert first == second
    assert first >= 0


def test_agreeing_costs_little_where_steps_are_short(ranks: RankPool, tmp_path: Path) -> None:
    gang, tasks, _ = start(ranks, tmp_path, step_s=0.002, sync=False)
    gang.processes[0].join(0.5)
    tasks[0].give_notice()
    (steps, agreements, seconds), _ = gang.results()
    assert steps > agreements
    assert agreements <= 5 + seconds / 0.02, "agreed at nearly every call"


UNTIL_TOLD = """
import paceline, torch
from torch import distributed

run = paceline.init()
if run.world_size > 1:
    distributed.init_process_group("gloo")
model = torch.nn.Linear(4, 1)
restored = run.restore(model=model)
first = done = restored.step if restored else 0
stop = False
while not stop:
    if run.world_size > 1:
        distributed.all_reduce(torch.zeros(1))
    done += 1
    stop = run.should_stop()
    if done == first + 1:
        print(f"rank {run.rank} goes on after {first}\\n", end="", flush=True)
run.save(done, model=model)
if run.world_size > 1:
    distributed.barrier()
    distributed.destroy_process_group()
print(f"rank {run.rank} ends after {done}\\n", end="", flush=True)
"""


START_S = 200.0
"""torchrun and its workers import torch one after the other."""


def run_until_told(folder: Path, ranks: int, after: int) -> int:
    """Start it, and send SIGTERM when all ranks have made a step; the step after which all have ended."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(launcher if ranks > 1 else []), "train.py"]
    output = folder / f"output-{after}"
    with output.open("w") as file:
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=file, stderr=file)
    try:
        began = f"goes on after {after}\n"
        wait_until(lambda: output.read_text().count(began) == ranks, "all ranks have made a step", START_S)
    finally:
        process.terminate()
    code = process.wait(START_S)
    told = output.read_text()
    assert code == (1 if ranks > 1 else 0), told  # torchrun's own end is an error
    steps = re.findall(r"rank \d+ ends after (\d+)", told)
    assert steps == [steps[0]] * ranks, told
    return int(steps[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", [1, 2], ids=["python", "torchrun"])
def test_outside_sigterm_is_the_notice_and_what_is_saved_then_is_restored(tmp_path: Path, ranks: int) -> None:
    (tmp_path / "train.py").write_text(UNTIL_TOLD)
    first = run_until_told(tmp_path, ranks, 0)
    assert run_until_told(tmp_path, ranks, first) > first > 0
