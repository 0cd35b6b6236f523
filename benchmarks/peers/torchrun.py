"""torchrun, at its fastest reliable settings: a short monitor interval and one address, so that
nothing is probed.

A node's loss needs its elastic mode (`--nnodes=1:2`, c10d): keep-alive and last-call timeouts cut down,
and the shared store off, with which a rejoining agent hung.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .processes import Crew, free_port, is_free
from .work.waiting import wait_until

NAME = "torchrun"
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=3", "--monitor-interval=0.01"]
NODE_CONF = (
    "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3,read_timeout=10,close_timeout=2"
)


def missing() -> str:
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torchrun: torch is not installed (pip install 'paceline[train]')"
    return ""


def version() -> str:
    from importlib.metadata import version as version_of

    return version_of("torch")


def start_gang(
    crew: Crew, script: Path, arguments: Sequence[str], *, ranks: int, step_s: float = 0.0
) -> subprocess.Popen[bytes]:
    """One torchrun with all ranks on this host; it restarts them when one dies.

    Not the static rendezvous, though it starts as fast: its store outlives an attempt, the second one
    reads the first one's addresses from it, and the restart fails or hangs.
    """
    rendezvous = ["--nnodes=1", f"--nproc-per-node={ranks}", *_c10d(free_port())]
    return crew.start(
        "torchrun", [*LAUNCHER, *rendezvous, str(script), *arguments], environment=_environment(step_s)
    )


class Nodes:
    """Elastic torchruns of at most `nodes` nodes, one rank each; the first to start keeps the rendezvous."""

    def __init__(
        self, crew: Crew, script: Path, arguments: Sequence[str], *, nodes: int, step_s: float = 0.0
    ) -> None:
        self._crew = crew
        self._port = free_port()
        rendezvous = [f"--nnodes=1:{nodes}", "--nproc-per-node=1", *_c10d(self._port)]
        self._command = [*LAUNCHER, *rendezvous, f"--rdzv-conf={NODE_CONF}", str(script), *arguments]
        self._environment = {**_environment(step_s), "LOGLEVEL": "INFO"}
        self._started = 0
        self._said = crew.folder

    def start(self) -> subprocess.Popen[bytes]:
        """One more node."""
        name = f"torchrun.{self._port}.{self._started}"
        self._said = self._crew.folder / f"{name}.out"
        process = self._crew.start(name, self._command, environment=self._environment)
        if not self._started:
            wait_until(lambda: not is_free(self._port), "the first node keeps the rendezvous")
        self._started += 1
        return process

    def newest_joins(self) -> bool:
        """It has started and asks the rendezvous to be let in, by what it says."""
        return "Rendezvous'ing worker group" in self._said.read_text(errors="replace")


def _c10d(port: int) -> list[str]:
    return [
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        f"--rdzv-id={port}",
        "--local-addr=127.0.0.1",
    ]


def _environment(step_s: float) -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", "STEP_S": str(step_s), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
