"""HyperQueue from its wheel: server and workers in one process of its own interpreter.

Its `hq` command is not in the wheel, so what only the command can do (streaming output) is left out.
"""

import sys
from pathlib import Path

from . import cache
from .processes import run
from .work.driver import Driver

NAME = "HyperQueue"
PACKAGE = "hyperqueue==0.27.0"
SERVER = Path(__file__).parent / "work" / "hyperqueue_server.py"


def missing() -> str:
    if cache.interpreter("hyperqueue").exists():
        return ""
    return "HyperQueue: not installed (python -m benchmarks.peers.hyperqueue setup)"


def version() -> str:
    told = "from importlib.metadata import version; print(version('hyperqueue'))"
    return run([str(cache.interpreter("hyperqueue")), "-c", told]).strip()


def setup() -> None:
    cache.install("hyperqueue", PACKAGE)


def start(folder: Path, *, workers: int = 2, cores: int = 4) -> Driver:
    """Operations: `array(tasks)` and `jobs(count)` give seconds from submit to all done;
    `starts(count, rate)` the seconds from each submit to the task's own first action.
    """
    server = folder / "hq"
    server.mkdir()
    arguments = [str(server), str(workers), str(cores)]
    command = [str(cache.interpreter("hyperqueue")), str(SERVER), *arguments]
    return Driver("hyperqueue", command, folder, {"TMPDIR": str(folder)})


if __name__ == "__main__":
    setup() if sys.argv[1:] == ["setup"] else print(missing() or version())
