"""Ray on one host: in a network namespace that has loopback only, with its own pid namespace.

Outside of one it binds and probes outside addresses. It ends with the namespace, by pid. It runs at the
shortest checks that told nothing false here (FASTEST).
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from . import cache
from .processes import run
from .work.driver import Driver

NAME = "Ray Train"
PACKAGES = ("ray[train]==2.60.0", "torch")
FASTEST = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "100",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
}
"""Where nothing listens any more, a node is dead after three checks; one that is only slow has three seconds
for each. And the controller looks at its workers ten times a second, not every two seconds.
"""
SERVER = Path(__file__).parent / "work" / "ray_server.py"


def missing() -> str:
    if importlib.util.find_spec("ray") is None and not cache.interpreter("ray").exists():
        return "Ray: not installed (python -m benchmarks.peers.ray_train setup)"
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("ip"):
        return "Ray: runs here in a network namespace only, which wants root, unshare and ip"
    return ""


def interpreter() -> str:
    """The one that runs us when it has Ray (the `ray` extra), else that of the cache folder."""
    return sys.executable if importlib.util.find_spec("ray") else str(cache.interpreter("ray"))


def version() -> str:
    return run([interpreter(), "-c", "from importlib.metadata import version; print(version('ray'))"]).strip()


def setup() -> None:
    cache.install("ray", *PACKAGES)


def start(folder: Path, *, cpus: int = 4) -> Driver:
    """Operations: see work/ray_server.py."""
    prelude = 'ip link set lo up && "$@" & wait "$!"'
    # Without job control bash gives a background process /dev/null to read from: hand our input on.
    shell = ["bash", "-c", f"exec 3<&0; {prelude.replace(' &', ' <&3 &')}", "bash"]
    space = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", *shell]
    command = [*space, interpreter(), str(SERVER), str(folder), str(cpus)]
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1", "RAY_DEDUP_LOGS": "0"}
    return Driver("ray", command, folder, environment | FASTEST)


if __name__ == "__main__":
    setup() if sys.argv[1:] == ["setup"] else print(missing() or version())
