"""Our side, as a user has it: `pace up` in a folder of its own, the SDK, `pace down`.

Nothing inside is reached into. Only the faults that a benchmark makes (killing a node's processes, the
scheduler) go by pid, as a machine's failure would.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from paceline import Client
from paceline.spec.lifecycle import JobState

from .peers.processes import run
from .peers.work.waiting import wait_until
from .records import TRAIN

PACE = str(Path(sys.executable).with_name("pace"))
NAME = "Paceline"


class Cluster:
    """A scheduler and `agents` agents of `slots` cpus each; leaving the `with` ends them and their jobs."""

    def __init__(self, folder: Path, *, agents: int = 2, slots: int = 2) -> None:
        self.state = folder / "paceline"
        self._agents = agents
        self._slots = slots

    def __enter__(self) -> Self:
        sizes = ["--agents", str(self._agents), "--slots", str(self._slots)]
        try:
            run([PACE, "up", "--state", str(self.state), *sizes])
            self.client = Client(state=self.state)
            self.wait_warm()
        except BaseException:
            self._down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._down()

    def _down(self) -> None:
        run([PACE, "down", "--state", str(self.state), "--kill-jobs"])

    def _all_warm(self) -> bool:
        nodes = self.client.nodes().nodes
        ready = [node for node in nodes if node.contact == "connected" and node.warm_pool == "ready"]
        return len(ready) == self._agents

    def scheduler_pid(self) -> int:
        return int(json.loads((self.state / "scheduler.json").read_text())["pid"])

    def agent_pid(self, node: str) -> int:
        return int(self._agent_told(node)["pid"])

    def agent_started_at(self, node: str) -> float:
        return psutil.Process(self.agent_pid(node)).create_time()

    def _agent_told(self, node: str) -> Mapping[str, Any]:
        for folder in sorted((self.state / "agents").iterdir()):
            told: Mapping[str, Any] = json.loads((folder / "agent.json").read_text())
            if told["name"] == node:
                return told
        raise LookupError(f"no agent of the name {node} below {self.state / 'agents'}")

    def kill_node(self, node: str) -> float:
        """SIGKILL all processes of a node; the time at which it began. `start_dead` brings the node back."""
        agent = psutil.Process(self.agent_pid(node))
        family = [agent, *agent.children(recursive=True)]
        killed = time.time()
        for process in family:
            with suppress(ProcessLookupError):  # it went with its parent
                os.kill(process.pid, signal.SIGKILL)
        return killed

    def kill_agent(self, node: str) -> None:
        """SIGKILL the agent alone; its tasks go on. `start_dead` brings it back."""
        os.kill(self.agent_pid(node), signal.SIGKILL)

    def start_dead(self) -> None:
        """Start again what was killed: `pace up` does so."""
        run([PACE, "up", "--state", str(self.state)])

    def wait_warm(self) -> None:
        """Wait until all nodes are back and their warm pools ready."""
        wait_until(self._all_warm, "all warm pools ready", timeout_s=90, every_s=0.1)

    def finish(self, job: int, timeout_s: float = 120.0) -> None:
        """Wait for a job; raises with its reason and the end of its output unless it succeeded."""
        done = self.client.wait(job, timeout_s)
        if done.state != JobState.SUCCEEDED:
            raise RuntimeError(f"job {job}: {done.state}: {done.reason}\n{self.said(job)}")

    def said(self, job: int, attempt: int = 0) -> str:
        """The end of the output of an attempt; 0: of the last."""
        output = b"".join(chunk.data for chunk in self.client.logs(job, attempt=attempt))
        return output.decode(errors="replace")[-2000:]


def training(
    records: Path,
    *,
    steps: int,
    save_every: int = 0,
    step_s: float = 0.0,
    instances: int = 1,
    instances_min: int | None = None,
    processes: int = 2,
    cpus: float | None = None,
    script: Path = TRAIN,
) -> dict[str, Any]:
    """The job document of work/train.py, or of another script with its arguments."""
    sizes = {"instance_count": instances, "min_instance_count": instances_min, "cpus": cpus}
    return {
        "name": "train",
        "code": str(TRAIN.parent),
        "command": f"python {script} {records} {steps} {save_every}",
        "distribution": {"type": "pytorch", "process_count_per_instance": processes},
        "resources": {name: size for name, size in sizes.items() if size is not None},
        "environment_variables": {"STEP_S": str(step_s), "OMP_NUM_THREADS": "1"},
    }


def version() -> str:
    from importlib.metadata import version as version_of

    return version_of("paceline")
