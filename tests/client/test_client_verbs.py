"""The verbs on a real cluster, as a person and as a script use them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from paceline.client.cli import main as cli
from support.cluster import Cluster, wait_until

Pace = Callable[..., int]
JobFile = Callable[[str], Path]

TWO_RANKS = "resources: {instance_count: 2}\n"


def test_submit_says_the_number_and_what_to_do_next(
    pace: Pace, job_file: JobFile, cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pace("submit", job_file("command: 'true'\nname: first")) == 0
    shown = capfd.readouterr()
    number = int(shown.out.split()[1])
    assert shown.out == f"job {number} (first) is submitted\n"
    assert f"pace logs -f {number}" in shown.err
    assert cluster.wait_state(number, "SUCCEEDED").name == "first"


def test_a_job_without_code_runs_where_its_file_is(
    pace: Pace, job_file: JobFile, capfd: pytest.CaptureFixture[str]
) -> None:
    path = job_file("command: cat beside.txt")
    (path.parent / "beside.txt").write_text("found it\n")
    assert pace("submit", path, "--follow") == 0
    assert capfd.readouterr().out == "found it\n"


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_follow_returns_the_jobs_exit_code(
    command: str, code: int, pace: Pace, job_file: JobFile, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pace("submit", job_file(f"command: {command}\nretry: {{max_attempts: 1}}"), "--follow") == code
    err = capfd.readouterr().err
    assert ("SUCCEEDED" if code == 0 else "FAILED") in err and "goodput" in err


def test_follow_prefixes_ranks_and_overrides_reach_the_job(
    pace: Pace, job_file: JobFile, capfd: pytest.CaptureFixture[str]
) -> None:
    path = job_file("command: echo rank $PACELINE_TASK lr ${{inputs.lr}}\ninputs: {lr: 0.1}\n" + TWO_RANKS)
    assert pace("submit", path, "--set", "inputs.lr=0.25", "-f") == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    assert lines == ["[r0] rank 0 lr 0.25", "[r1] rank 1 lr 0.25"]


def test_logs_pass_bytes_unchanged(
    pace: Pace, job_file: JobFile, cluster: Cluster, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = job_file("command: cat data.bin")
    data = bytes(range(256)) * 5000 + b"no newline at the end \xff"
    (path.parent / "data.bin").write_bytes(data)
    job = cluster.client.submit(path)
    cluster.wait_state(job, "SUCCEEDED")
    # What a task printed is there when its bytes are acknowledged, which the end of a follow waits for.
    assert pace("logs", job, "--follow") == 0
    assert capfdbinary.readouterr().out == data
    assert pace("logs", job) == 0
    assert capfdbinary.readouterr().out == data
    assert pace("logs", job, "--tail", 30) == 0
    assert capfdbinary.readouterr().out == data[-30:]


def test_logs_of_one_rank_have_no_prefix(
    pace: Pace, cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    job = cluster.submit_text("command: echo I am $PACELINE_TASK\n" + TWO_RANKS)
    cluster.wait_state(job, "SUCCEEDED")
    assert pace("logs", job, "-f", "--rank", 1) == 0
    assert capfd.readouterr().out == "I am 1\n"


def test_every_listing_is_one_json_document_with_stable_keys(
    pace: Pace, cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    job = cluster.submit_text("command: echo hi\nname: listed")
    cluster.wait_state(job, "SUCCEEDED")

    def output(*args: object) -> dict[str, object]:
        assert pace(*args, "-o", "json") == 0
        made = json.loads(capfd.readouterr().out)
        assert isinstance(made, dict)
        return made

    shown = output("show", job)
    assert set(shown) == {
        "job", "name", "user", "state", "attempt", "priority", "submitted_us", "started_us", "finished_us",
        "reason", "exit_code", "instance_count", "processes_per_task", "per_task", "tasks", "checkpoints",
        "outputs", "metrics", "step", "cancel_requested", "warnings", "pace", "document", "failure",
        "instances", "min_instance_count", "max_instance_count", "size", "parent_job", "parent_step",
        "queue", "pool", "gpu_models", "gpu_memory_bytes", "ran_with",
    }  # fmt: skip
    assert (shown["job"], shown["name"], shown["state"], shown["exit_code"]) == (
        job,
        "listed",
        "SUCCEEDED",
        0,
    )
    assert shown["document"]["command"] == "echo hi"  # type: ignore[index]
    listed = output("jobs", "--name", "listed")["jobs"]
    assert isinstance(listed, list) and [entry["job"] for entry in listed] == [job]
    nodes = output("nodes")["nodes"]
    assert isinstance(nodes, list) and {node["name"] for node in nodes} == {"local-0", "local-1"}
    assert output("nodes", "--trust") == {"was_suspected": False, "silent": 0}
    assert {"contact", "capacity", "free", "gpus", "gpu_status", "containment", "tasks"} <= set(nodes[0])
    story = output("timeline", job)
    ledger = story["ledger"]
    assert isinstance(ledger, dict) and ledger["wall_us"] == sum(ledger.values()) - ledger["wall_us"]
    assert output("why", job)["never"] is False
    assert pace("timeline", job, "--all") == 0
    assert len(capfd.readouterr().out.splitlines()) > len(story["entries"])  # type: ignore[arg-type]
    assert pace("cancel", job, "-o", "json") == cli.EXIT_REFUSED
    (error,) = json.loads(capfd.readouterr().out)["errors"]
    assert (error["job"], error["code"]) == (job, "conflict")


def test_why_says_never_with_numbers(pace: Pace, cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    job = cluster.submit_text("command: 'true'\nresources: {gpus: 1000}")
    try:
        assert pace("why", job) == 0
        text = capfd.readouterr().out
        assert "never" in text and "1000" in text
    finally:
        cluster.client.cancel(job)


def test_cancel_ends_a_job_and_knows_what_it_does_not_know(
    pace: Pace, cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    job = cluster.submit_text("command: sleep 600")
    cluster.wait_state(job, "RUNNING")
    assert pace("cancel", job, "--grace", "2", 10**9) == cli.EXIT_NOT_FOUND
    shown = capfd.readouterr()
    assert f"job {job}" in shown.out and str(10**9) in shown.err
    assert cluster.wait_state(job, "CANCELLED").state == "CANCELLED"
    assert pace("cancel", job) == 0  # asking twice does no harm


@pytest.mark.parametrize("verb", ["show", "why", "timeline", "logs"])
def test_a_job_that_is_not_there_is_exit_code_3(
    verb: str, pace: Pace, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pace(verb, 10**9) == cli.EXIT_NOT_FOUND
    assert "pace jobs" in capfd.readouterr().err


def test_jobs_filters_and_pages(pace: Pace, cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    made = cluster.client.submit_many([{"command": "true", "name": f"paged-{index}"} for index in range(7)])
    for job in made:
        cluster.wait_state(job)
    assert pace("jobs", "--name", "paged-", "-n", 3) == 0
    shown = capfd.readouterr()
    assert [line.split()[1] for line in shown.out.splitlines()[1:]] == ["paged-6", "paged-5", "paged-4"]
    assert "older ones" in shown.err
    assert len(cluster.client.jobs(name_contains="paged-", limit=5)) == 5
    assert pace("jobs", "--name", "paged-", "--active") == 0
    assert "no such job" in capfd.readouterr().err


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(cluster: Cluster, job_file: JobFile) -> None:
    path = job_file("command: echo started; sleep 600")
    follower = subprocess.Popen(
        [sys.executable, "-m", "paceline.client.cli.main", "submit", str(path), "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**cluster.environment, "PACELINE_STATE": str(cluster.state)},
    )
    assert follower.stdout is not None and follower.stdout.readline() == "started\n"
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=30)
    assert follower.returncode == cli.EXIT_INTERRUPTED and "Traceback" not in err
    (job,) = [int(line.split()[1]) for line in err.splitlines() if "is submitted" in line]
    assert f"pace logs -f {job}" in err and f"pace cancel {job}" in err
    assert cluster.client.job(job).state == "RUNNING"
    cluster.client.cancel(job, grace_s=1)
    cluster.wait_state(job, "CANCELLED")


def test_a_reader_that_goes_away_is_no_error(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.submit_text("command: 'true'")
    done = subprocess.run(
        f"{sys.executable} -m paceline.client.cli.main jobs -n 1000 -o json | head -c 10",
        shell=True,
        capture_output=True,
        text=True,
        env={**cluster.environment, "PACELINE_STATE": str(cluster.state)},
        timeout=60,
    )
    assert done.returncode == 0 and done.stderr == ""


def test_a_wrong_token_is_exit_code_5(
    pace: Pace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PACELINE_TOKEN", "x" * 43)
    assert pace("jobs") == cli.EXIT_DENIED
    assert "token" in capfd.readouterr().err


def test_the_agents_token_does_not_open_the_clients_door(
    pace: Pace, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PACELINE_TOKEN_FILE", str(cluster.state / "agent.token"))
    assert pace("jobs") == cli.EXIT_DENIED
    assert "client" in capfd.readouterr().err


def test_an_unreachable_address_is_exit_code_4_within_seconds(
    pace: Pace, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    assert pace("jobs", "--scheduler", "127.0.0.1:1") == cli.EXIT_UNREACHABLE
    assert time.monotonic() - begun < 30
    assert "127.0.0.1:1" in capfd.readouterr().err


def test_submit_from_standard_input(cluster: Cluster, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paceline.client.cli.main", "submit", "-", "--follow"],
        input="command: pwd",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**cluster.environment, "PACELINE_STATE": str(cluster.state)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == os.fspath(tmp_path)


def test_nothing_is_submitted_when_one_file_of_many_is_wrong(
    pace: Pace, cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.yaml").write_text("command: 'true'\nname: never-sent")
    (tmp_path / "bad.yaml").write_text("comand: 'true'\n")
    assert pace("submit", tmp_path / "good.yaml", tmp_path / "bad.yaml") == cli.EXIT_USAGE
    assert f"{tmp_path}/bad.yaml:1:1" in capfd.readouterr().err
    assert cluster.client.jobs(name_contains="never-sent") == ()


def test_a_followed_job_that_waits_says_why(cluster: Cluster, job_file: JobFile) -> None:
    path = job_file("command: 'true'\nresources: {gpus: 500}")
    follower = subprocess.Popen(
        [sys.executable, "-m", "paceline.client.cli.main", "submit", "--follow", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**cluster.environment, "PACELINE_STATE": str(cluster.state)},
    )
    assert follower.stderr is not None
    seen = []
    for line in follower.stderr:
        seen.append(line)
        if "waits (" in line:
            break
    job = int(seen[0].split()[1])
    assert "never" in seen[-1] and "500" in seen[-1]
    cluster.client.cancel(job)
    assert wait_until("the follower ends", follower.poll) == 130
