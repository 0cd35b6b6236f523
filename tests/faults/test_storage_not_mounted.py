"""A node on which the scheduler's storage is not mounted: nothing is written there that nobody would find."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster, wait_until
from support.disks import needs_root

pytestmark = needs_root
TESTS = Path(__file__).parents[1]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Node 1 has no storage."""
    storage = tmp_path / "shared"
    made = Cluster(
        tmp_path,
        cpus=2,
        agents=0,
        scheduler_args=["--storage", str(storage)],
        agent_args=["--cold"],
        environment={"PYTHONPATH": str(TESTS)},
    )
    with made:
        made.start_agent(0)
        made.start_agent(1, by=["support.without_folder", str(storage)])
        yield made


def submit(cluster: Cluster, command: str, *, code: bool) -> int:
    folder = cluster.folder / "code"
    folder.mkdir(exist_ok=True)
    (folder / "file").touch()
    packed = f"code: {folder}, " if code else ""
    return cluster.submit_text(
        f"{{command: '{command}', {packed}resources: {{cpus: 2}}, outputs: {{out: {{type: uri_folder}}}}}}"
    )


@pytest.mark.parametrize("code", [False, True], ids=["plain", "with code"])
def test_the_node_refuses_and_the_job_waits_for_one_that_has_it(cluster: Cluster, code: bool) -> None:
    first = submit(cluster, "sleep 600", code=code)
    cluster.wait_state(first, "RUNNING")
    assert [task.node for task in cluster.client.job(first).tasks] == ["local-0"]
    second = submit(cluster, "true", code=code)
    timeline = ("timeline", str(second))
    wait_until("another is kept for it", lambda: "local-0 kept for it" in cluster.pace(*timeline).stdout)
    assert "refused for now (no-storage)" in cluster.pace(*timeline).stdout
    assert "there is no cluster-id in it" in cluster.pace("nodes").stdout
    assert "mount it: it must be the same folder" in cluster.pace("why", str(second)).stdout
    cluster.client.cancel(first)
    cluster.wait_state(second, "SUCCEEDED")
    assert [task.node for task in cluster.client.job(second).tasks] == ["local-0"]
    assert ("prepared code" in cluster.pace(*timeline).stdout) == code
