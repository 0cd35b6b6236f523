"""examples/digits as a user runs it: alone, and under torchrun. Under Paceline it is run by the
end-to-end tests.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import paceline
import pytest
import torch

DIGITS = Path(paceline.__file__).parent / "examples" / "digits"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_train", DIGITS / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(folder: Path, *command: str) -> str:
    return run_command(folder, [*command, str(DIGITS / "train.py"), "--out", str(folder / "model")])


def run_command(folder: Path, command: list[str], epochs: int = 12) -> str:
    done = subprocess.run(
        [*command, "--epochs", str(epochs)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads that spin crawl where others want the cores
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def accuracy_in(output: str) -> float:
    [line] = [line for line in output.splitlines() if line.startswith("test accuracy ")]
    return float(line.split()[2].rstrip("%"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_alone_with_plain_python(tmp_path: Path) -> None:
    output = run_script(tmp_path, sys.executable)
    assert accuracy_in(output) >= 97
    assert "1 processes on" in output
    model = torch.export.load(tmp_path / "model" / "model.pt2").module()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3

    again = run_script(tmp_path, sys.executable)
    assert "276 steps, 260 of them done" in again, "it goes on from its checkpoint"
    assert accuracy_in(again) == accuracy_in(output)


@pytest.mark.slow
def test_it_goes_on_from_the_end_of_an_epoch(tmp_path: Path) -> None:
    """Nothing is left of that epoch: no step comes before it is over."""
    command = [
        sys.executable,
        str(DIGITS / "train.py"),
        "--out",
        str(tmp_path / "model"),
        "--save-every",
        "23",
    ]
    assert "epoch 1: loss " in run_command(tmp_path, command, epochs=1)
    again = run_command(tmp_path, command, epochs=2)
    assert "46 steps, 23 of them done" in again
    assert "epoch 2: loss " in again


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_under_torchrun(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output = run_script(tmp_path, *torchrun)
    assert accuracy_in(output) >= 97
    assert "2 processes on" in output

    again = run_script(tmp_path, *torchrun)
    assert "2 processes on cpu, 276 steps, 260 of them done" in again, "it goes on from its checkpoint"
    assert accuracy_in(again) == accuracy_in(output)


def test_the_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    script: Any = load_script()
    images, labels = script.load_digits()
    theirs = load_digits()
    order = torch.randperm(len(theirs.target), generator=torch.Generator().manual_seed(0))
    assert torch.equal(images.squeeze(1) * 16, torch.from_numpy(theirs.images).float()[order])
    assert torch.equal(labels, torch.from_numpy(theirs.target)[order])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--nproc-per-node", "2"]])
def test_in_the_step_loop_outside_paceline(tmp_path: Path, launcher: list[str]) -> None:
    output = run_command(tmp_path, [sys.executable, *launcher, str(DIGITS / "train_loop.py")])
    assert accuracy_in(output) >= 97
