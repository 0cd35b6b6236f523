"""Gangs whose nodes have networks of their own: collectives go where the peers are."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.networks import Networks, needs_networks, networks

TESTS = Path(__file__).parents[1]
SUM = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
ones = torch.ones(1000)
dist.all_reduce(ones)
print("sum", int(ones.sum()), *(f"{name}={os.environ.get(name)}" for name in VARIABLES))
dist.destroy_process_group()
"""
VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class ApartCluster(Cluster):
    """The scheduler listens where the nodes reach it."""

    def __init__(self, folder: Path, nets: Networks) -> None:
        super().__init__(
            folder, agents=0, cpus=2, scheduler_args=["--tls"], environment={"PYTHONPATH": str(TESTS)}
        )
        self.nets = nets

    @property
    def address(self) -> str:
        return f"{self.nets.here}:{self._port}"


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[ApartCluster]:
    with networks(2) as nets, ApartCluster(tmp_path, nets) as made:
        for index, name in enumerate(nets.names):
            made.start_agent(index, wait=False, by=["support.in_network", name])
        for index in range(2):
            made.wait_connected(index)
        yield made


def submit(cluster: Cluster, nodes: int, **document: object) -> int:
    script = cluster.folder / "sum.py"
    script.write_text(SUM.replace("VARIABLES", repr(VARIABLES)))
    return cluster.submit_text(
        json.dumps(
            {
                "command": f"{sys.executable} {script}",
                "distribution": {"type": "pytorch"},
                "resources": {"instance_count": nodes, "cpus": 1},
                **document,
            }
        )
    )


@needs_networks
def test_a_gang_meets_over_the_interface_that_leads_to_its_peers(apart: ApartCluster) -> None:
    job = submit(apart, 2)
    apart.wait_state(job, "SUCCEEDED")
    for rank in range(2):
        said = apart.pace("logs", str(job), "--rank", str(rank)).stdout
        assert "sum 2000 GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME==eth0" in said
    timeline = apart.pace("timeline", str(job)).stdout
    for index in range(2):
        assert f"other nodes over eth0 ({apart.nets.address(index)})" in timeline


def test_what_the_job_says_of_it_stays_and_a_gang_of_one_node_is_told_nothing(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=2, cpus=1) as cluster:
        given = submit(cluster, 2, environment_variables={"NCCL_SOCKET_IFNAME": "ib"})
        cluster.wait_state(given, "SUCCEEDED")
        assert "GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=ib" in cluster.pace("logs", str(given)).stdout
        timeline = cluster.pace("timeline", str(given)).stdout
        assert "other nodes over lo (127.0.0.1), NCCL_SOCKET_IFNAME=ib as given" in timeline
        alone = submit(cluster, 1)
        cluster.wait_state(alone, "SUCCEEDED")
        said = cluster.pace("logs", str(alone)).stdout
        assert "sum 1000 GLOO_SOCKET_IFNAME=None NCCL_SOCKET_IFNAME=None" in said
        assert "other nodes" not in cluster.pace("timeline", str(alone)).stdout
