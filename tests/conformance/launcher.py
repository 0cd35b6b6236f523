"""What every launcher promises, on two real agents with two processes each: who the ranks are, that they
meet, what an exit code becomes, that a failed rank ends its gang, that a restart is a fresh attempt, and that
nothing is left running.

A launcher joins by a subclass that gives `distribution` and `RIDE`: Python that defines `ride(main)`, which
brings the ranks up in the launcher's own way, joins them in one gloo group, and calls
`main(rank, world_size, local_rank, local_world_size)` in each.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paceline.client import views
from paceline.spec.ids import JobId
from support.cluster import Cluster, wait_until

WORLD = 4
WAIT_S = 200.0

_SAY = """
import json, os, sys, time
from pathlib import Path

FOLDER = Path({folder!r})
ATTEMPT = int(os.environ["PACELINE_ATTEMPT"])

def say(rank, **what):
    aside = FOLDER / f".{{ATTEMPT}}.{{rank}}"
    aside.write_text(json.dumps(dict(what, pid=os.getpid())))
    aside.rename(FOLDER / f"{{ATTEMPT}}.{{rank}}.json")
"""

_MEET = """
def main(rank, world_size, local_rank, local_world_size):
    import torch
    import torch.distributed as dist
    total = torch.tensor([10.0 ** rank])
    dist.all_reduce(total)
    say(rank, who=[rank, world_size, local_rank, local_world_size], total=total.item())

if __name__ == "__main__":
    ride(main)
"""

_FAIL = """
def main(rank, world_size, local_rank, local_world_size):
    import torch.distributed as dist
    say(rank)
    dist.barrier()
    if ATTEMPT <= {failures} and rank == 2:
        {how}
    if ATTEMPT <= {failures}:
        time.sleep(600)

if __name__ == "__main__":
    ride(main)
"""


class LauncherConformance:
    distribution: str
    RIDE: str
    failed_rank_code = 7
    """What the job's exit code is when a rank calls sys.exit(7)."""
    killed_rank_code = 137
    """And when one is killed by SIGKILL."""

    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
        with Cluster(tmp_path_factory.mktemp("gang"), agents=2, cpus=2) as cluster:
            cls.prepare(cluster)
            yield cluster

    def who(self, rank: int) -> list[int]:
        """Rank, world size, local rank, local world size."""
        return [rank, WORLD, rank % 2, 2]

    @classmethod
    def prepare(cls, cluster: Cluster) -> None:
        """Before the first job."""

    def submit(self, cluster: Cluster, folder: Path, script: str, attempts: int = 1) -> JobId:
        file = folder / "ranks.py"
        file.write_text(_SAY.format(folder=str(folder)) + self.RIDE + script)
        return cluster.submit_text(
            f"command: python {file}\ndistribution: {self.distribution}\n"
            f"resources: {{instance_count: 2, cpus: 2}}\nretry: {{max_attempts: {attempts}}}\ngrace_s: 1\n"
        )

    def ends(self, cluster: Cluster, job: JobId, folder: Path, state: str, attempt: int = 1) -> views.Job:
        """Wait for the end; no process of any rank is there then."""
        found = cluster.wait_state(job, state, timeout_s=WAIT_S)
        assert found.attempt == attempt, cluster.story(job, f"attempt {found.attempt}")
        wait_until(
            "no process of the ranks is left",
            lambda: not [pid for pid in _pids(folder) if Path(f"/proc/{pid}").exists()],
        )
        return found

    @pytest.mark.timeout(400)
    def test_ranks_meet_over_two_nodes(self, cluster: Cluster, tmp_path: Path) -> None:
        job = self.submit(cluster, tmp_path, _MEET)
        assert self.ends(cluster, job, tmp_path, "SUCCEEDED").exit_code == 0
        said = _said(tmp_path, 1)
        assert [each["who"] for each in said] == [self.who(rank) for rank in range(WORLD)]
        assert [each["total"] for each in said] == [1111.0] * WORLD

    @pytest.mark.timeout(400)
    @pytest.mark.parametrize("how", ["sys.exit(7)", "os.kill(os.getpid(), 9)"])
    def test_a_failed_rank_ends_the_gang(self, cluster: Cluster, tmp_path: Path, how: str) -> None:
        job = self.submit(cluster, tmp_path, _FAIL.format(failures=1, how=how))
        code = self.failed_rank_code if "exit" in how else self.killed_rank_code
        assert self.ends(cluster, job, tmp_path, "FAILED").exit_code == code, cluster.story(job, "")

    @pytest.mark.timeout(400)
    def test_a_restart_is_a_fresh_attempt(self, cluster: Cluster, tmp_path: Path) -> None:
        job = self.submit(cluster, tmp_path, _FAIL.format(failures=1, how="sys.exit(7)"), attempts=2)
        self.ends(cluster, job, tmp_path, "SUCCEEDED", attempt=2)
        first, second = ({each["pid"] for each in _said(tmp_path, attempt)} for attempt in (1, 2))
        assert not first & second

    @pytest.mark.timeout(400)
    def test_a_cancelled_gang_leaves_nothing(self, cluster: Cluster, tmp_path: Path) -> None:
        job = self.submit(cluster, tmp_path, _FAIL.format(failures=9, how="time.sleep(600)"))
        wait_until("all ranks are up", lambda: len(_pids(tmp_path)) == WORLD, WAIT_S)
        cluster.client.cancel(job)
        self.ends(cluster, job, tmp_path, "CANCELLED")

    @pytest.mark.timeout(400)
    def test_the_commands_own_exit_code_is_the_jobs(self, cluster: Cluster, tmp_path: Path) -> None:
        job = self.submit(cluster, tmp_path, "\nsys.exit(9)\n")
        assert self.ends(cluster, job, tmp_path, "FAILED").exit_code == 9


def _said(folder: Path, attempt: int) -> list[dict[str, Any]]:
    files = [folder / f"{attempt}.{rank}.json" for rank in range(WORLD)]
    return [json.loads(file.read_text()) for file in files]


def _pids(folder: Path) -> list[int]:
    found = [json.loads(file.read_text())["pid"] for file in folder.glob("*.json")]
    assert os.getpid() not in found
    return found
