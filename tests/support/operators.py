"""DeepSpeed's operators for tests: the minute of their build is paid once, and kept in pytest's cache."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (make test-launchers)"
)


def prepare_command() -> list[str]:
    return [sys.executable, "-P", "-m", "paceline.training.deepspeed_ops"]


def prepare_environment(ops: Path, task: str) -> dict[str, str]:
    """As a rank has it: the interpreter's own programs, ninja among them, come first."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "TORCH_EXTENSIONS_DIR": str(ops / "tasks" / task),
    }


def build_operators(ops: Path) -> Path:
    """Build what is not there; `ops` again."""
    done = subprocess.run(
        prepare_command(), env=prepare_environment(ops, "0.0.0"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ops


def give_operators(ops: Path, agent_state: Path) -> None:
    """As if that node had built them."""
    shutil.copytree(ops / "built", agent_state / "ops" / "built")
