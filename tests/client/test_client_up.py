"""`pace up` and `pace down` as a person uses them: twice, after a death, with jobs, and nothing left."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paceline.client import process
from paceline.client.process import Identity
from paceline.client.sdk import Client
from paceline.client.upfile import read_up, write_whole
from paceline.spec.errors import PacelineError
from support.cluster import wait_until

MARK = "PACELINE_TEST_UP"
Pace = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def pace(home: Path, tmp_path: Path) -> Iterator[Pace]:
    """The real command with a home of its own; at the end nothing that it started may be left."""
    home.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PACELINE_", "XDG_"))}
    environment = {**clean, "HOME": str(home), "TMPDIR": str(tmp_path), MARK: str(home)}

    def run(*args: str, check: int | None = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "paceline.client.cli.main", *args],
            capture_output=True,
            text=True,
            env=environment,
            timeout=110,
        )
        assert check is None or done.returncode == check, done.stdout + done.stderr
        return done

    yield run

    def left() -> list[Identity]:
        return list(process.with_environment(MARK, lambda value: value == str(home)))

    run("down", "--kill-jobs", check=None)
    try:
        wait_until("nothing of it is left", lambda: not left(), 10)
    finally:
        process.kill_all(lambda: iter(left()), 10)


def state_of(shown: str) -> Path:
    found = re.search(r"state is in (\S+)", shown)
    assert found, shown
    return Path(found[1])


def test_up_submit_down_and_all_is_gone(pace: Pace, home: Path) -> None:
    up = pace("up", "--ephemeral", "--agents", "2", "--slots", "2", "--port", "0")
    state = state_of(up.stdout)
    assert "agent local-0 is connected: 2 cpus" in up.stdout and "agent local-1 is connected" in up.stdout
    assert "pace submit" in up.stderr
    assert (state / "client.token").stat().st_mode & 0o777 == 0o600

    again = pace("up")
    assert "scheduler is up at" in again.stdout and again.stdout.count("is up (pid") == 2
    assert state_of(again.stdout) == state

    (home / "job.yaml").write_text("command: echo hello")
    assert pace("submit", str(home / "job.yaml"), "--follow").stdout == "hello\n"
    assert pace("jobs", "-o", "json").stdout.startswith("{")

    (home / "long.yaml").write_text("command: sleep 600")
    pace("submit", str(home / "long.yaml"))
    down = pace("down")
    assert "cancelled 1 job" in down.stdout and f"removed {state}" in down.stdout
    assert not state.exists()
    assert "nothing to stop" in pace("down").stdout
    assert pace("jobs", check=4).stderr.count("pace up") == 1


@pytest.mark.serial  # a node that stays away longer than its heartbeats allow is replaced, as it should be
def test_what_died_is_started_again_and_down_leaves_jobs(pace: Pace, home: Path) -> None:
    state = home / "state"
    pace("up", "--state", str(state), "--agents", "2", "--port", "0")
    before = read_up(state)
    assert before is not None and before.scheduler is not None
    (home / "job.yaml").write_text(
        "command: while [ ! -e stop ]; do sleep 0.05; done; echo stopped by itself"
    )
    shown = pace("submit", str(home / "job.yaml"), "--state", str(state), "-o", "json").stdout
    job = json.loads(shown)["jobs"][0]["job"]
    with Client(state=state) as client:
        wait_until("it runs", lambda: client.job(job).state == "RUNNING")
        (task,) = client.job(job).tasks
    idle = 1 - int(task.node.removeprefix("local-"))

    for dead in (before.scheduler, before.agents[idle]):
        process.send(dead.process, signal.SIGKILL)
        process.wait_gone(dead.process, 10)
    gone = pace("jobs", "--state", str(state), check=4)
    assert f"it was pid {before.scheduler.process.pid}" in gone.stderr
    shown = pace("up", "--state", str(state)).stdout
    after = read_up(state)
    assert after is not None and after.scheduler is not None
    assert after.address == before.address and after.scheduler.process != before.scheduler.process
    assert after.agents[1 - idle] == before.agents[1 - idle]
    assert after.agents[idle].process != before.agents[idle].process

    down = pace("down", "--state", str(state)).stdout
    assert f"left running: job {job}" in down
    assert not after.scheduler.process.is_alive() and not any(a.process.is_alive() for a in after.agents)
    assert all(Path(f"/proc/{pid}").exists() for pid in task.pids)

    again = pace("up", "--state", str(state)).stdout
    assert "local-0 is connected" in again and "local-1 is connected" in again and before.address in again
    (home / "stop").touch()
    with Client(state=state) as client:
        done = client.wait(job, timeout_s=60)
        assert (done.state, done.attempt, done.tasks[0].pids) == ("SUCCEEDED", 1, task.pids)
        assert b"".join(c.data for c in client.logs(job, follow=True)) == b"stopped by itself\n"
    pace("down", "--state", str(state))
    assert "nothing to stop" in pace("down", "--state", str(state)).stdout


def test_down_kills_jobs_also_when_nobody_is_left_to_do_it(pace: Pace, home: Path) -> None:
    state = home / "state"
    pace("up", "--state", str(state), "--port", "0")
    (home / "job.yaml").write_text(
        'command: python3 -c "import os, time; os.fork() or os.setsid(); time.sleep(600)"'
    )
    pace("submit", str(home / "job.yaml"), "--state", str(state))
    current = read_up(state)
    assert current is not None and current.scheduler is not None
    with Client(state=state) as client:
        wait_until("it runs", lambda: client.job(1).state == "RUNNING")
        pid = client.job(1).tasks[0].pids[0]
    rank = process.identify(pid)
    assert rank is not None
    child = wait_until("it has forked", lambda: next(process.descendants(rank), None))
    for part in (current.scheduler, *current.agents):
        process.send(part.process, signal.SIGKILL)
        process.wait_gone(part.process, 10)
    down = pace("down", "--kill-jobs", "--state", str(state)).stdout
    assert "had already ended" in down and "killed" in down
    assert not rank.is_alive() and not child.is_alive()
    assert state.exists()


def test_a_scheduler_that_cannot_start_is_told_with_the_end_of_its_log(pace: Pace, home: Path) -> None:
    state = home / "state"
    state.mkdir()
    (state / "paceline.db").write_bytes(b"this is no database, but it is long enough to look at" * 100)
    done = pace("up", "--state", str(state), "--port", "0", check=1)
    assert "paceline.db" in done.stderr and str(state / "up" / "scheduler.log") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_told(pace: Pace, home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        refused = pace("up", "--state", str(home / "state"), "--port", str(port), check=6)
        assert str(port) in refused.stderr and "--port" in refused.stderr


def test_an_ephemeral_folder_that_holds_something_is_refused(pace: Pace, home: Path) -> None:
    state = home / "mine"
    state.mkdir()
    (state / "thesis.txt").write_text("do not remove")
    assert "not empty" in pace("up", "--ephemeral", "--state", str(state), check=6).stderr
    assert (state / "thesis.txt").exists()
    shutil.rmtree(state)


def test_down_signals_no_stranger_that_has_the_pid(pace: Pace, home: Path) -> None:
    state = home / "state"
    state.mkdir()
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        entry = {
            "name": "scheduler",
            "process": {"pid": stranger.pid, "start_time": 1},
            "log": "",
            "state": str(state),
            "cpus": 0,
            "scheduler": "",
        }
        up = {
            "ephemeral": False,
            "is_down": False,
            "address": "127.0.0.1:1",
            "scheduler": entry,
            "agents": [],
        }
        (state / "up.json").write_text(json.dumps(up))
        assert "had already ended" in pace("down", "--state", str(state)).stdout
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_full_disk_costs_no_file_and_says_which(tmp_path: Path) -> None:
    file = tmp_path / "up.json"
    write_whole(file, "as it was")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (0, hard)
    )  # as on a full disk, the write fails and not the open
    try:
        with pytest.raises(PacelineError, match=r"up\.json cannot be written: File too large"):
            write_whole(file, "as it is to be")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each.read_text() for each in tmp_path.iterdir()] == ["as it was"]
