"""What jobs fail of, with real processes: what is tried again, how soon, and which rank was the first."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client import views
from paceline.spec.failures import FailureClass
from support.cluster import Cluster, wait_until

WARM, COLD = "python", "python -X utf8"
"""An interpreter option makes it a fresh interpreter."""

QUICK = "backoff: {start_s: 0.2}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("failures"), agents=2, cpus=4) as made:
        yield made


def fails(
    cluster: Cluster, command: str, *, script: str = "", retry: str = QUICK, gang: str = ""
) -> views.Job:
    """The job as it is when it is over, FAILED."""
    (cluster.folder / "train.py").write_text(script)
    text = f"command: {json.dumps(command)}\nretry: {{{retry}}}\nresources: {{cpus: 0.5{gang}}}\n"
    return cluster.wait_state(cluster.submit_text(text), "FAILED")


@pytest.mark.parametrize("python", [WARM, COLD])
@pytest.mark.parametrize(
    ("script", "error", "hint"),
    [
        ("x = 1\ndef f(:\n    pass\n", "SyntaxError", "train.py, line 2"),
        (
            "import no_such_thing_at_all\n",
            "ModuleNotFoundError",
            "no_such_thing_at_all is not there: install it",
        ),
        ("from os import nothing_like_it\n", "ImportError", "does not go with this import"),
    ],
)
def test_what_recurs_is_tried_once(cluster: Cluster, python: str, script: str, error: str, hint: str) -> None:
    job = fails(cluster, f"{python} train.py", script=script)
    assert job.attempt == 1
    assert job.failure is not None and job.reason is not None
    assert (job.failure.kind, job.failure.error_type) == (FailureClass.USER_ERROR, error)
    assert (job.failure.rank, job.failure.exit_code, job.failure.attempt) == (0, 1, 1)
    assert hint in job.failure.hint
    assert error in job.failure.traceback and "train.py" in job.failure.traceback
    assert error in job.failure.last_lines
    assert "not tried again, a user-error recurs" in job.reason.text


@pytest.mark.parametrize("python", [WARM, COLD])
def test_what_comes_again_in_the_same_line_is_tried_twice(cluster: Cluster, python: str) -> None:
    job = fails(cluster, f"{python} train.py", script="import os\nopen('no/such/file')\n")
    assert job.failure is not None and job.reason is not None
    assert (job.attempt, job.failure.kind) == (2, FailureClass.USER_ERROR), cluster.story(job.job, "")
    assert job.failure.error_type == "FileNotFoundError"
    assert "it failed in the same way twice, before its first step" in job.failure.hint
    assert "not tried again, a user-error recurs" in job.reason.text


@pytest.mark.parametrize("step", [0, 1])
def test_what_comes_again_after_a_step_is_tried_on(cluster: Cluster, step: int) -> None:
    script = f"import paceline\npaceline.init().report({step}, loss=1.0)\nraise ValueError('x')\n"
    job = fails(cluster, f"{WARM} train.py", script=script, retry=f"{QUICK}, max_attempts: 3")
    assert job.failure is not None
    assert (job.attempt, job.failure.kind) == (3, FailureClass.EXCEPTION), cluster.story(job.job, "")


@pytest.mark.parametrize(
    ("command", "code", "hint"),
    [
        ("no-such-program-at-all --lr 1", 127, "command not found"),
        ("./train.py", 126, "not executable"),
        ("python no_such_file.py", 2, "correct the command"),
        ("python train.py --wrong", 2, "correct the command"),
        ("if then", 2, "correct the command"),
    ],
)
def test_a_command_that_cannot_run_is_tried_once(
    cluster: Cluster, command: str, code: int, hint: str
) -> None:
    script = "import argparse\nargparse.ArgumentParser().parse_args()\n"
    job = fails(cluster, command, script=script)
    assert job.failure is not None
    assert (job.attempt, job.exit_code, job.failure.kind) == (1, code, FailureClass.USER_ERROR)
    assert hint in job.failure.hint


def test_an_exit_code_is_tried_again_as_often_as_allowed_each_time_later(cluster: Cluster) -> None:
    job = fails(cluster, "exit 3", retry="max_attempts: 4, backoff: {start_s: 0.5, max_s: 0.8}")
    assert (job.attempt, job.exit_code) == (4, 3)
    assert job.failure is not None and job.failure.kind is FailureClass.EXIT_CODE
    entries = cluster.client.timeline(job.job).entries
    ended = [entry.at_us for entry in entries if entry.kind == "AttemptEnded"]
    placed = [entry.at_us for entry in entries if entry.kind == "AttemptStarted"]
    waits_s = [(after - before) / 1e6 for before, after in zip(ended, placed[1:], strict=False)]
    assert len(waits_s) == 3
    assert waits_s[0] < waits_s[1] and waits_s[1] >= 0.5 and waits_s[2] >= 0.8


@pytest.mark.parametrize(
    ("on", "attempts"), [("exit-code", 2), ("[exit-code, signal]", 2), ("signal", 1), ("[]", 1)]
)
def test_only_what_is_named_is_tried_again(cluster: Cluster, on: str, attempts: int) -> None:
    job = fails(cluster, "exit 3", retry=f"max_attempts: 2, on: {on}")
    assert job.attempt == attempts and job.reason is not None
    assert ("retry.on does not name exit-code" in job.reason.text) is (attempts == 1)


@pytest.mark.parametrize("python", [WARM, COLD])
def test_a_crash_is_a_signal(cluster: Cluster, python: str) -> None:
    script = "import os, signal\nprint('about to crash', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    job = fails(cluster, f"{python} train.py", script=script, retry="max_attempts: 2")
    assert job.failure is not None
    assert (job.attempt, job.exit_code) == (2, 139)
    assert (job.failure.kind, job.failure.exit_code) == (FailureClass.SIGNAL, -11)
    assert "PYTHONFAULTHANDLER" in job.failure.hint and job.failure.last_lines == "about to crash"


def test_a_crash_below_a_shell_is_a_signal_too(cluster: Cluster) -> None:
    job = fails(cluster, "sh -c 'kill -SEGV $$'; exit $?", retry="max_attempts: 1")
    assert job.failure is not None
    assert (job.exit_code, job.failure.kind) == (139, FailureClass.SIGNAL)


@pytest.mark.parametrize("python", [WARM, COLD])
def test_out_of_memory_of_a_device(cluster: Cluster, python: str) -> None:
    """No device is needed for the words that torch says then."""
    script = """
import torch
raise torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB."
    " GPU 0 has a total capacity of 79.10 GiB of which 1 GiB is free."
)
"""
    job = fails(cluster, f"{python} train.py", script=script, retry="max_attempts: 1")
    assert job.failure is not None
    assert job.failure.kind is FailureClass.OUT_OF_MEMORY
    assert job.failure.error_type.endswith("OutOfMemoryError")
    assert "ask for a GPU with more than 79.10 GiB" in job.failure.hint


def test_a_script_that_records_its_errors_as_torchrun_wants_is_understood(cluster: Cluster) -> None:
    """The exit code and the output say nothing then; only the record does."""
    script = """
import os, sys
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    raise RuntimeError("recorded only")

try:
    main()
except RuntimeError:
    os._exit(9)
"""
    job = fails(cluster, f"{COLD} train.py", script=script, retry="max_attempts: 1")
    assert job.failure is not None and job.exit_code == 9
    assert (job.failure.kind, job.failure.error_type) == (FailureClass.EXCEPTION, "RuntimeError")
    assert job.failure.message == "recorded only" and "in main" in job.failure.traceback


GANG = """
import atexit, os, time
import torch, torch.distributed as dist

dist.init_process_group("gloo")
rank = dist.get_rank()
dist.all_reduce(torch.ones(1))
if rank == 1:
    {before}
    raise ValueError("label 11 is out of range")
dist.all_reduce(torch.ones(1))
"""
LINGERS = "atexit.register(lambda: (dist.destroy_process_group(), time.sleep(60)))"
"""Its sockets close, and its peer falls, long before its own process ends."""


@pytest.mark.parametrize("python", [WARM, COLD])
@pytest.mark.parametrize("instances", [1, 2])
@pytest.mark.parametrize("order", ["dies first", "dies last"])
def test_the_rank_that_failed_first_is_named(
    cluster: Cluster, python: str, instances: int, order: str
) -> None:
    """Rank 1 raises, rank 0 then falls of its broken connection: whoever ends first, rank 1 was the cause."""
    processes = f"type: pytorch, process_count_per_instance: {2 // instances}"
    gang = f", instance_count: {instances}}}\ndistribution: {{{processes}"
    script = GANG.format(before=LINGERS if order == "dies last" else "")
    job = fails(cluster, f"{python} train.py", script=script, gang=gang, retry="max_attempts: 1")

    def named() -> views.Failure | None:
        failure = cluster.client.job(job.job).failure
        return failure if failure is not None and failure.rank == 1 else None

    try:
        failure = wait_until("rank 1 is named", named)
    except AssertionError as error:
        raise AssertionError(cluster.story(job.job, f"{error}: {job.failure}")) from None
    assert (failure.kind, failure.error_type) == (FailureClass.EXCEPTION, "ValueError")
    assert failure.message == "label 11 is out of range"
    assert 'raise ValueError("label 11 is out of range")' in failure.traceback
    assert failure.node == job.tasks[instances - 1].node
    anew = [e for e in cluster.client.timeline(job.job).entries if e.kind == "FirstFailureFound"]
    assert len(anew) == (order == "dies last")
    assert all("rank 1 on" in entry.text and "ValueError" in entry.text for entry in anew)
    shown = cluster.pace("show", str(job.job)).stdout
    why = cluster.pace("why", str(job.job)).stdout
    for told in (shown, why):
        assert f"first failure: rank 1 on {failure.node}" in told, told
        assert "ValueError: label 11 is out of range" in told
        assert told.count('raise ValueError("label 11 is out of range")') == 1
        assert f"pace logs {job.job} --rank 1" in told
    as_json = json.loads(cluster.pace("show", str(job.job), "-o", "json").stdout)
    assert as_json["failure"]["rank"] == 1 and as_json["failure"]["kind"] == "exception"


def test_a_followed_job_tells_what_failed_first(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "command: 'echo hello; exit 7'\nretry: {max_attempts: 1}\nresources: {cpus: 0.5}\n"
    )
    done = cluster.pace("submit", str(tmp_path / "job.yaml"), "--follow")
    assert done.returncode == 7
    assert "failure: rank 0 on local-" in done.stderr and "(exit-code)" in done.stderr
    assert "see `pace logs" in done.stderr
