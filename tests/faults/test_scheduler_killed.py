"""kill -9 of the scheduler before and after every commit of a scenario of 20 jobs, while they run and end.

The jobs must not notice: started once each, same pids, their true ends and their whole output.
"""

import json
import sqlite3
from pathlib import Path

import pytest
from support.cluster import Cluster, Process

JOBS = 20
LONG_S = 2.0


def job_text(index: int, starts: Path) -> str:
    """Job `index` notes its start, prints, sleeps a while, and ends with a code of its own."""
    sleep_s = LONG_S if index < 4 else 0.05 * (index % 5)
    script = (
        f"echo $$ >> {starts}/{index}; echo job {index} begins; sleep {sleep_s}; echo job {index} ends; "
        f"exit {exit_code(index)}"
    )
    return f"command: {json.dumps(script)}\nretry: {{max_attempts: 1}}\nresources: {{cpus: 1}}\n"


def exit_code(index: int) -> int:
    return index % 4 if index % 3 == 0 else 0


@pytest.mark.slow
def test_killed_at_every_commit(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    starts.mkdir()
    ledger = tmp_path / "died-at"
    tests = str(Path(__file__).resolve().parents[1])
    with Cluster(tmp_path, agents=2, cpus=2, environment={"PYTHONPATH": tests}) as cluster:
        cluster.stop_scheduler()
        options = ["--state", str(cluster.state), "--listen", cluster.address]
        cluster.scheduler = Process(
            "scheduler",
            ["support.dying_scheduler", str(ledger), "both", *options],
            tmp_path / "scheduler.log",
            cluster.environment,
        )
        with cluster.new_client(patience_s=120) as client:
            jobs = [client.submit(job_file(tmp_path, index, starts)) for index in range(JOBS)]
            ended = [client.wait(job, timeout_s=200) for job in jobs]
            for index, job in enumerate(ended):
                assert (job.exit_code, job.state) == (
                    exit_code(index),
                    "FAILED" if exit_code(index) else "SUCCEEDED",
                ), index
                assert job.attempt == 1
                pids = (starts / str(index)).read_text().split()
                assert len(pids) == 1, f"job {index} was started {len(pids)} times"
                assert [str(pid) for task in job.tasks for pid in task.pids] == pids
                output = b"".join(chunk.data for chunk in client.logs(job.job, follow=True))
                assert output == f"job {index} begins\njob {index} ends\n".encode()
        assert_each_commit_was_met(cluster.state / "paceline.db", ledger)
        cluster.stop_scheduler()


def job_file(folder: Path, index: int, starts: Path) -> Path:
    path = folder / f"job-{index}.yaml"
    path.write_text(job_text(index, starts))
    return path


def assert_each_commit_was_met(database: Path, ledger: Path) -> None:
    """The history's numbers have no gap and no double, and each of its words on jobs was met by two kills."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT seq, kind, job FROM events ORDER BY seq").fetchall()
    assert [seq for seq, _, _ in rows] == list(range(1, len(rows) + 1))
    said = [f"{kind}:{job}" for _, kind, job in rows if job is not None]
    assert len(said) == len(set(said)), "an event was stored twice"
    deaths = [line.split() for line in ledger.read_text().splitlines()]
    for moment in ("before", "after"):
        assert {word for first, *words in deaths if first == moment for word in words} == set(said)
