"""The tour of `make demo`: two agents on this machine train digits, one worker is killed on the way; the
model is registered, deployed, and asked over HTTP for the digits that were held out.

Everything is done with the `pace` command and the SDK, as a user would; each command is shown before it
runs. Whatever happens, what was started is stopped at the end. Exit code: that of the training job, or 1 when
the deployed model does not answer as it should.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import paceline
from paceline.client.views import Job
from paceline.spec.errors import NotFound

ROOT = Path(__file__).resolve().parents[1]
PACE = Path(sys.executable).with_name("pace")
KILL_AFTER_CHECKPOINTS = 2
REGISTERED_S = 60
HELD_OUT = 360
RIGHT_MIN = 0.9


def say(text: str) -> None:
    """A heading, bold on a terminal."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def end_on_sigterm() -> None:
    """As on an interrupt: what was started is stopped."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def pace(*args: str, check: bool = True) -> int:
    """Show a command, run it, return its exit code."""
    print(f"$ pace {shlex.join(args)}", flush=True)
    return subprocess.run([str(PACE), *args], check=check).returncode


def kill_a_worker(job: int) -> None:
    """Wait for the second accepted checkpoint, then SIGKILL rank 1."""
    with paceline.Client() as client:
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
        job = client.submit(
            ROOT / "examples" / "digits" / "job.yaml", overrides=["outputs.model.name=digits"]
        )
        killer = threading.Thread(target=kill_a_worker, args=(job,), daemon=True)
        killer.start()
        code = pace("logs", "-f", str(job), check=False)
        killer.join()
        done = client.wait(job)
        say("What happened, and where the time went")
        pace("timeline", str(job))
        say("The job, and where the model is")
        pace("show", str(job))
        return code or done.exit_code


def registered(client: paceline.Client) -> str:
    """The model's version, once it is there: a moment after the job's end."""
    until = time.monotonic() + REGISTERED_S
    while time.monotonic() < until:
        with contextlib.suppress(NotFound):
            asset, _ = client.asset("model", "digits@latest")
            return f"{asset.name}:{asset.version}"
        time.sleep(0.1)
    raise SystemExit(f"the model was not registered within {REGISTERED_S} s")


def serve() -> int:
    """Deploy what was trained, and have it classify what it was not trained on."""
    with paceline.Client() as client:
        model = registered(client)
        say(f"The job's output is registered: {model}")
        pace("model", "show", model)
        say("Deploying it: a replica and a router, placed like any job")
        pace("deploy", model, "--name", "digits")
        say(f"Asking it over HTTP for {HELD_OUT} digits that were held out")
        right = classify(client)
        print(f"{right} of {HELD_OUT} are right ({right / HELD_OUT:.1%})", flush=True)
        say("Where it all came from")
        pace("lineage", "endpoint:digits")
        return 0 if right >= RIGHT_MIN * HELD_OUT else 1


def classify(client: paceline.Client) -> int:
    """How many of the held-out digits the endpoint gets right."""
    import runpy

    from paceline.client.invoking import invoke

    load_digits = runpy.run_path(str(ROOT / "examples" / "digits" / "train.py"))["load_digits"]
    images, labels = (tensor[-HELD_OUT:].tolist() for tensor in load_digits())
    pixels = {"name": "input", "datatype": "FP32", "shape": [HELD_OUT, 1, 8, 8], "data": images}
    answer = invoke(client.endpoint("digits"), json.dumps({"inputs": [pixels]}).encode())
    if answer.status != 200:
        raise SystemExit(f"the endpoint answered {answer.status}: {answer.body.decode(errors='replace')}")
    scores = json.loads(answer.body)["outputs"][0]["data"]
    rows = [scores[at : at + 10] for at in range(0, len(scores), 10)]
    return sum(row.index(max(row)) == label for row, label in zip(rows, labels, strict=True))


def main() -> int:
    end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="paceline-demo-") as state:
        os.environ["PACELINE_STATE"] = state
        say("A scheduler and two agents on this machine")
        try:
            pace("up", "--agents", "2")
            pace("nodes")
            say("Training digits on a gang of two: examples/digits/job.yaml")
            return train() or serve()
        finally:
            say("Stopping all of it")
            pace("down", "--kill-jobs", check=False)


if __name__ == "__main__":
    sys.exit(main())
