"""Runs ray_engine_inside.py in a namespace that has loopback only, as tests/launchers/test_ray.py does. Ray
ends with the namespace.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.serial, pytest.mark.timeout(900)]


@pytest.mark.skipif(
    bool(os.geteuid()) or not shutil.which("unshare") or not shutil.which("ip"),
    reason="Ray runs here in a network namespace only, which wants root, unshare and ip",
)
def test_the_ray_engine_in_a_network_namespace() -> None:
    pytest.importorskip("ray.serve", exc_type=ImportError)
    space = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    shell = ["bash", "-c", 'ip link set lo up && "$@"; exit $?', "bash"]  # which reaps what others leave
    inside = "tests/serving/ray_engine_inside.py"
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", inside]
    done = subprocess.run(
        [*space, *shell, *tests], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
