"""The tour of `make faults`: one run on two local agents meets five different faults, and its timeline and
ledger tell what each cost.

Everything is done with the `pace` command, the SDK, signals to this run's own processes, and one flipped bit.
Whatever happens, what was started is stopped at the end. Exit code: that of the training job.

The batches are large: else two ranks are hardly faster than one, and the gang would not grow back for that.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import paceline
from demo import ROOT, end_on_sigterm, pace, rank_pid, say
from paceline.client import process
from paceline.client.upfile import Started, read_up
from paceline.client.views import Job
from paceline.proto.marks import agent_mark

JOB = f"""
type: command
name: faults
code: {ROOT / "examples" / "digits"}
command: python train.py --epochs 300 --batch 1437 --save-every 5 --out ${{{{outputs.model}}}}
outputs:
  model: {{type: custom_model}}
distribution: {{type: pytorch}}
resources: {{instance_count: 2, min_instance_count: 1, cpus: 1}}
retry: {{max_attempts: 8}}
limits: {{hang_timeout: 5}}
"""


class Run:
    """A job of `state`'s cluster, and what can befall it."""

    def __init__(self, client: paceline.Client, state: Path, job: int) -> None:
        self._client = client
        self._state = state
        self._job = job

    def kill_rank(self) -> None:
        pid = self._pid(rank=1)
        say(f"1. Rank 1 is killed: kill -9 {pid}")
        os.kill(pid, signal.SIGKILL)

    def stop_rank(self) -> None:
        pid = self._pid(rank=1)
        say(f"2. Rank 1 hangs: kill -STOP {pid}")
        os.kill(pid, signal.SIGSTOP)

    def damage_checkpoint(self) -> None:
        """In storage a bit flips, in memory nothing is left, and a rank falls."""
        newest = max(self._client.job(self._job).checkpoints, key=lambda one: one.accepted_us)
        say(f"3. Step {newest.step}'s checkpoint rots on disk and is gone from memory; rank 0 falls")
        file = min(Path(newest.path).glob("*.distcp"))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        for agent in self._agents():
            shutil.rmtree(memory_of(agent) / str(self._job), ignore_errors=True)
        os.kill(self._pid(rank=0), signal.SIGKILL)

    def lose_node(self) -> None:
        """The node is away until the gang goes on without it."""
        agent = self._agents()[1]
        say(f"4. {agent.name} is lost: SIGKILL to all of its processes; `pace up` brings it back")
        process.kill_all(lambda: of_node(agent), timeout_s=10)
        self.wait(lambda job: job.state == "RUNNING" and len(job.tasks) == 1)
        pace("up", "--agents", "2")
        self.wait(lambda job: job.state == "RUNNING" and len(job.tasks) == 2)

    def preempt(self) -> None:
        say("5. It is preempted, with notice")
        pace("preempt", str(self._job))

    def wait(self, is_so: Callable[[Job], bool]) -> Job:
        """The job as soon as it is so. Raises RuntimeError when it is over before."""
        for change in self._client.watch(self._job):
            if is_so(change.job):
                return change.job
        raise RuntimeError(f"job {self._job} was over too early")

    def wait_for_checkpoints(self) -> int:
        """The current attempt, when it has saved twice: the older is good whatever happens to the newest."""
        job = self.wait(lambda job: sum(one.attempt == job.attempt for one in job.checkpoints) >= 2)
        return job.attempt

    def _pid(self, rank: int) -> int:
        return rank_pid(self._client.job(self._job), rank)

    def _agents(self) -> tuple[Started, ...]:
        up = read_up(self._state)
        assert up is not None, "`pace up` has written it"
        return up.agents


def of_node(agent: Started) -> list[process.Identity]:
    """An agent, its warm pool, and the tasks that it has started."""
    mark = agent_mark(Path(agent.state) / "tasks")
    tasks = process.with_environment("PACELINE_MARK", lambda value: value.endswith(mark))
    return [
        *([agent.process] if agent.process.is_alive() else []),
        *process.descendants(agent.process),
        *tasks,
    ]


def memory_of(agent: Started) -> Path:
    """Where a node keeps checkpoints in memory."""
    return Path("/dev/shm") / f"paceline-{agent_mark(Path(agent.state) / 'tasks')[1:]}"


def ride(state: Path) -> int:
    """One run, one fault after the other, each when the run has recovered from the one before."""
    with paceline.Client() as client:
        file = state / "faults.yaml"
        file.write_text(JOB)
        job = client.submit(file)
        run = Run(client, state, job)
        try:
            for fault in (run.kill_rank, run.stop_rank, run.damage_checkpoint, run.lose_node, run.preempt):
                attempt = run.wait_for_checkpoints()
                fault()
                run.wait(lambda job, before=attempt: job.attempt > before)
            say("The rest is undisturbed")
            return client.wait(job).exit_code
        finally:
            say("What happened, and where the time went")
            pace("timeline", str(job), check=False)


def main() -> int:
    end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="paceline-faults-") as folder:
        os.environ["PACELINE_STATE"] = folder
        try:
            pace("up", "--agents", "2")
            return ride(Path(folder))
        finally:
            say("Stopping all of it")
            pace("down", "--kill-jobs", check=False)


if __name__ == "__main__":
    sys.exit(main())
