"""Checkpoints at a URL, in a real cluster beside a real S3 server: what a node and its folder have lost comes
from there, and the job's page says what is damaged.
"""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client import process, views
from paceline.proto.marks import agent_mark
from support.cluster import Cluster, wait_until
from support.s3 import BUCKET, S3Server

SCRIPT = Path(__file__).parents[1] / "support" / "saving_rank.py"


@pytest.fixture
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, agents=1, cpus=4, scheduler_args=("--missed-heartbeats", "60")) as made:
        yield made


def by_path(cluster: Cluster, job: int, path: str) -> views.Checkpoint | None:
    return next((one for one in cluster.client.job(job).checkpoints if one.path == path), None)


def test_what_the_node_and_its_folder_have_lost_comes_from_the_url(
    cluster: Cluster, s3: S3Server, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    job = cluster.submit_text(
        json.dumps(
            {
                "command": f"{sys.executable} {SCRIPT} {folder} 20 10",
                "distribution": {"type": "pytorch", "process_count_per_instance": 2},
                "resources": {"cpus": 1},
                "retry": {"max_attempts": 2},
                "environment_variables": s3.variables,
                "checkpoint": {"storage": f"s3://{BUCKET}/runs"},
            }
        )
    )
    first, second = wait_until(
        "steps 10 and 20 are accepted", lambda: paths(cluster.client.job(job), count=2), 120
    )
    wait_until("step 10 is uploaded", lambda: uploaded(cluster, job, first), 60)

    lose_all_but_the_url(cluster, job, first, second)
    kill_a_rank(cluster, job)
    again = wait_until(
        "attempt 2 has saved step 20", lambda: newest_of(cluster.client.job(job), attempt=2), 120
    )
    texts = [entry.text for entry in cluster.client.timeline(job).entries]
    assert any(
        "goes on from the checkpoint of step 10, read from s3://" in text and "missing in storage" in text
        for text in texts
    ), texts
    assert any("not good: step 20 (attempt 1)" in text for text in texts), texts

    damage = "that of step 10 is damaged in storage: manifest.json: missing; step 20 is the newest good one"
    wait_until("the scrub has found it", lambda: damage in shown(cluster, job), 60)
    assert "storage (damaged), upload" in shown(cluster, job)
    (folder / "enough").touch()
    cluster.wait_state(job, "SUCCEEDED", timeout_s=120)
    last = by_path(cluster, job, again)
    assert last is not None
    assert last.url.startswith(f"s3://{BUCKET}/runs/"), "the last one is made up for at the end"
    key = last.url.removeprefix(f"s3://{BUCKET}/")
    assert s3.read(f"{key}/manifest.json") == Path(again, "manifest.json").read_bytes()


def paths(job: views.Job, count: int) -> tuple[str, ...] | None:
    """Oldest first."""
    found = tuple(one.path for one in reversed(job.checkpoints))
    return found if len(found) == count else None


def uploaded(cluster: Cluster, job: int, path: str) -> bool:
    found = by_path(cluster, job, path)
    return found is not None and found.url != ""


def newest_of(job: views.Job, attempt: int) -> str | None:
    newest = job.checkpoints[0]
    return newest.path if newest.attempt == attempt else None


def shown(cluster: Cluster, job: int) -> str:
    """Of `pace show`; its lines are wrapped."""
    return " ".join(cluster.pace("show", str(job)).stdout.split())


def lose_all_but_the_url(cluster: Cluster, job: int, *folders: str) -> None:
    mark = agent_mark(cluster.agent_state(0) / "tasks")[1:]
    shutil.rmtree(Path("/dev/shm") / f"paceline-{mark}" / str(job))
    for folder in folders:
        shutil.rmtree(folder)


def kill_a_rank(cluster: Cluster, job: int) -> None:
    found = process.identify(cluster.task_pids(job)[0])
    assert found is not None
    process.send(found, signal.SIGKILL)
