"""The tour of `make demo`: two agents on this machine train digits, one worker is killed on the way.

Everything is done with the `pace` command and the SDK, as a user would; each command is shown before it
runs. Whatever happens, what was started is stopped at the end. Exit code: that of the training job.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import paceline
from paceline.client.views import Job

ROOT = Path(__file__).resolve().parents[1]
PACE = Path(sys.executable).with_name("pace")
KILL_AFTER_CHECKPOINTS = 2


def say(text: str) -> None:
    """A heading, bold on a terminal."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def pace(*args: str, check: bool = True) -> int:
    """Show a command, run it, return its exit code."""
    print(f"$ pace {shlex.join(args)}", flush=True)
    return subprocess.run([str(PACE), *args], check=check).returncode


def kill_a_worker(client: paceline.Client, job: int) -> None:
    """Wait for the second accepted checkpoint, then SIGKILL rank 1."""
    for change in client.watch(job):
        if len(change.job.checkpoints) >= KILL_AFTER_CHECKPOINTS:
            pid = rank_pid(change.job, rank=1)
            if pid:
                say(f"Killing rank 1 (kill -9 {pid}) after checkpoint {change.job.checkpoints[0].step}")
                os.kill(pid, signal.SIGKILL)
                return


def rank_pid(job: Job, rank: int) -> int:
    """The process of a rank of the current attempt; 0 when it does not run."""
    for task in job.tasks:
        local_rank = rank - task.first_rank
        if task.state == "running" and 0 <= local_rank < len(task.pids):
            return task.pids[local_rank]
    return 0


def train() -> int:
    """Submit, kill a worker, follow to the end; the job's exit code."""
    with paceline.Client() as client:
        job = client.submit(ROOT / "examples" / "digits" / "job.yaml")
        killer = threading.Thread(target=kill_a_worker, args=(client, job))
        killer.start()
        code = pace("logs", "-f", str(job), check=False)
        killer.join()
        done = client.wait(job)
        say("What happened, and where the time went")
        pace("timeline", str(job))
        say("The job, and where the model is")
        pace("show", str(job))
        return code or done.exit_code


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="paceline-demo-") as state:
        os.environ["PACELINE_STATE"] = state
        say("A scheduler and two agents on this machine")
        try:
            pace("up", "--agents", "2")
            pace("nodes")
            say("Training digits on a gang of two: examples/digits/job.yaml")
            return train()
        finally:
            say("Stopping all of it")
            pace("down", "--kill-jobs", check=False)


if __name__ == "__main__":
    sys.exit(main())
