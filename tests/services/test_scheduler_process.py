"""The scheduler as a process: exit codes, its record, signals, a crash, a second one on the same folder."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from paceline.proto.channels import open_channel, target
from paceline.proto.generated import jobs_pb2, jobs_pb2_grpc
from paceline.scheduler.main import command

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start schedulers on `tmp_path/state`; what still runs at the end is killed by pid."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(*args: str, state: str = "state") -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "paceline.scheduler.main", "--state", str(tmp_path / state)]
        with (tmp_path / "log").open("ab") as log:
            running.append(subprocess.Popen([*line, "--listen", "127.0.0.1:0", *args], stderr=log))
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


def served(tmp_path: Path, process: subprocess.Popen[bytes]) -> dict[str, str]:
    """What scheduler.json says once this process has written it."""
    path = tmp_path / "state" / "scheduler.json"
    end_s = time.monotonic() + 60
    while True:
        if path.exists():
            said: dict[str, str] = json.loads(path.read_text())
            if said["pid"] == process.pid:
                return said
        assert process.poll() is None and time.monotonic() < end_s, (tmp_path / "log").read_text()
        time.sleep(0.01)


def submit(tmp_path: Path, address: str, key: str) -> list[int]:
    token = (tmp_path / "state" / "client.token").read_text().strip()
    document = json.dumps({"type": "command", "command": "true", "code": "/tmp"})
    with open_channel(target(address, token)) as channel:
        request = jobs_pb2.SubmitRequest(key=key, jobs=[jobs_pb2.JobDocument(document=document)])
        return list(jobs_pb2_grpc.JobsStub(channel).Submit(request).jobs)


def test_it_serves_stops_when_asked_and_survives_a_kill(tmp_path: Path, start: Start) -> None:
    first = start()
    said = served(tmp_path, first)
    stat = Path(f"/proc/{first.pid}/stat").read_text()
    assert said["start_time"] == int(stat.rpartition(")")[2].split()[19])
    assert submit(tmp_path, said["address"], "a") == [1]

    second = start()
    assert second.wait(60) == 3
    assert "held by another scheduler" in (tmp_path / "log").read_text()
    assert f"pid {first.pid}" in (tmp_path / "log").read_text()

    first.send_signal(signal.SIGKILL)
    first.wait()
    third = start()
    again = served(tmp_path, third)
    assert again["cluster_id"] == said["cluster_id"]
    assert submit(tmp_path, again["address"], "a") == [1]
    assert submit(tmp_path, again["address"], "b") == [2]
    third.send_signal(signal.SIGTERM)
    assert third.wait(20) == 0
    assert not (tmp_path / "state" / "scheduler.json").exists()
    with pytest.raises(grpc.RpcError):
        submit(tmp_path, again["address"], "c")
    leftovers = {path.name for path in (tmp_path / "state").iterdir()}
    assert leftovers == {
        *("paceline.db", "paceline.db.lock", "logs", "storage"),
        *("client.token", "agent.token", "worker.secret"),
    }


def test_a_damaged_store_and_a_taken_port_have_their_exit_codes(tmp_path: Path, start: Start) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "paceline.db").write_bytes(os.urandom(10_000))
    broken = start()
    assert broken.wait(60) == 3
    assert "damaged" in (tmp_path / "log").read_text()
    (tmp_path / "state" / "paceline.db").unlink()
    address = served(tmp_path, start())["address"]
    assert start("--listen", address, state="other").wait(60) == 4
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_store_damaged_inside_is_refused_before_anything_is_decided(tmp_path: Path, start: Start) -> None:
    """The check runs beside the imports: it is over before anything is decided, written or served."""
    first = start()
    said = served(tmp_path, first)
    for number in range(40):
        submit(tmp_path, said["address"], str(number))
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    path = tmp_path / "state" / "paceline.db"
    with sqlite3.connect(path) as connection:
        [root] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'keys'").fetchone()
        [size] = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)  # of a table that a start does not read: only the check can tell
    before = path.read_bytes()
    assert start().wait(60) == 3
    assert "damaged" in (tmp_path / "log").read_text()
    assert path.read_bytes() == before
    assert not (tmp_path / "state" / "scheduler.json").exists()


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--listen", "0.0.0.0:0"], "in the clear"),
        (["--listen", "nonsense"], "HOST:PORT"),
        (["--tls-cert", "x.pem"], "go together"),
        (["--store", "mysql://x"], "mysql"),
        (["--lease-exclusive", "60"], "run twice"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_made(
    tmp_path: Path, args: list[str], word: str
) -> None:
    done = CliRunner().invoke(command, ["--state", str(tmp_path / "new"), *args])
    assert done.exit_code == 2 and word in done.output
    assert not (tmp_path / "new").exists()


def test_it_does_not_start_on_the_storage_of_another_cluster(tmp_path: Path, start: Start) -> None:
    storage = ("--storage", str(tmp_path / "shared"))
    first = start(*storage)
    owner = served(tmp_path, first)["cluster_id"]
    assert start(*storage, state="other").wait(60) == 1
    said = (tmp_path / "log").read_text()
    assert f"{tmp_path / 'shared'} is that of cluster {owner}, and this is cluster" in said
    assert "Traceback" not in said
