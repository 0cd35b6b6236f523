"""Runs ray_inside.py in a namespace that has loopback only: outside of one, Ray binds and probes outside
addresses. It ends with the namespace.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.serial, pytest.mark.timeout(900)]


def missing() -> str:
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed (make test-launchers)"
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("ip"):
        return "Ray runs here in a network namespace only, which wants root, unshare and ip"
    return ""


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_ray_launcher_in_a_network_namespace() -> None:
    space = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    shell = ["bash", "-c", 'ip link set lo up && "$@"; exit $?', "bash"]  # which reaps what others leave
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/launchers/ray_inside.py"]
    done = subprocess.run(
        [*space, *shell, *tests], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
