"""What an agent knows without a network: its leases, its folder, its capacity, its options."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from paceline.agent import inventory
from paceline.agent.config import AgentConfig
from paceline.agent.folder import BrokenFolder, StateFolder, WrongCluster
from paceline.agent.gpu import Gpu, GpuReport, Slice
from paceline.agent.leases import Lease, LeaseFile, LeaseKeeper
from paceline.agent.routes import interface_towards, route_address
from paceline.spec.errors import Conflict, InvalidRequest, Unavailable
from paceline.spec.gpu_health import GpuState


def keeper(path: Path, now_s: float, boot: str = "b" * 36) -> tuple[LeaseKeeper, list[bool]]:
    expired: list[bool] = []
    return LeaseKeeper(LeaseFile(path, boot, now_s), expired.append), expired


def test_a_lease_counts_from_the_sending_of_what_was_acknowledged(tmp_path: Path) -> None:
    leases, expired = keeper(tmp_path / "lease", 100.0)
    leases.on_terms(20.0, 600.0, sent_s=100.0)
    leases.on_renewed(110.0, now_s=118.0)
    leases.look(129.9)
    assert expired == []
    leases.look(130.0)
    assert expired == [True]
    leases.look(710.0)
    assert expired == [True, True, False]


def test_late_repeated_and_future_replies_renew_nothing(tmp_path: Path) -> None:
    leases, _ = keeper(tmp_path / "lease", 100.0)
    leases.on_terms(20.0, 600.0, sent_s=100.0)
    leases.on_renewed(110.0, now_s=111.0)
    leases.on_renewed(105.0, now_s=112.0)  # late
    leases.on_renewed(500.0, now_s=113.0)  # never sent
    leases.on_renewed(float("nan"), now_s=113.0)
    assert leases.lease.renewed_s == 110.0
    leases.on_terms(30.0, 0.0, sent_s=90.0)  # a welcome that is older than the last renewal
    assert leases.lease == Lease(110.0, 30.0, 600.0)


def test_the_next_agent_takes_over_the_old_lease(tmp_path: Path) -> None:
    leases, _ = keeper(tmp_path / "lease", 100.0)
    leases.on_terms(20.0, 600.0, sent_s=100.0)
    again, expired = keeper(tmp_path / "lease", 125.0)
    again.look(125.0)
    assert again.lease == Lease(100.0, 20.0, 600.0) and expired == [True]
    rebooted, _ = keeper(tmp_path / "lease", 5.0, boot="c" * 36)
    assert rebooted.lease == Lease(5.0)


def test_a_damaged_lease_file_counts_from_now(tmp_path: Path) -> None:
    (tmp_path / "lease").write_bytes(os.urandom(4096))
    leases, _ = keeper(tmp_path / "lease", 50.0)
    assert leases.lease == Lease(50.0)


def test_one_agent_per_folder_also_after_a_kill(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "state") as folder:
        with pytest.raises(Conflict, match=f"another agent \\(pid {os.getpid()}\\)"):
            StateFolder(tmp_path / "state")
        node_id = folder.node_id
    with StateFolder(tmp_path / "state") as folder:
        assert folder.node_id == node_id
    code = "import os, sys; from pathlib import Path; from paceline.agent.folder import StateFolder; "
    code += "StateFolder(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path / "state")], timeout=20)
    assert child.returncode == -9
    StateFolder(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_the_first_cluster_is_remembered(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as folder:
        folder.check_cluster("a")
        folder.check_cluster("a")
        with pytest.raises(WrongCluster, match=r"belongs to cluster a, .* keeps cluster b"):
            folder.check_cluster("b")


def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokenFolder, match="Not a directory"):
        StateFolder(tmp_path / "file" / "state")
    (tmp_path / "node-id").write_text("../../etc\n")
    with pytest.raises(BrokenFolder, match="not a node id"):
        StateFolder(tmp_path)


def cgroup(tmp_path: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    own = tmp_path / "self"
    own.write_text(lines)
    return root, own


def test_cpus_are_cut_by_the_tightest_cgroup_above_us(tmp_path: Path) -> None:
    allowed = len(os.sched_getaffinity(0)) * 1000
    v2 = {"slice/cpu.max": "150000 100000\n", "slice/job/cpu.max": "max 100000\n", "cpu.max": "max 100000\n"}
    assert inventory.cpu_milli(*cgroup(tmp_path / "a", "0::/slice/job\n", v2)) == min(1500, allowed)
    v1 = {"cpu/box/cpu.cfs_quota_us": "50000\n", "cpu/box/cpu.cfs_period_us": "100000\n"}
    assert inventory.cpu_milli(*cgroup(tmp_path / "b", "4:memory:/box\n3:cpu:/box\n", v1)) == 500
    none = {"cpu/box/cpu.cfs_quota_us": "-1\n", "cpu/box/cpu.cfs_period_us": "100000\n"}
    assert inventory.cpu_milli(*cgroup(tmp_path / "c", "3:cpu,cpuacct:/box\n", none)) == allowed
    assert inventory.cpu_milli(*cgroup(tmp_path / "d", "garbage\n", {"x": ""})) == allowed


def test_memory_leaves_its_head_room(tmp_path: Path) -> None:
    limit = {"box/memory.max": f"{10 << 30}\n"}
    assert inventory.memory_bytes(*cgroup(tmp_path / "a", "0::/box\n", limit)) == (10 << 30) * 95 // 100
    small = {"memory/box/memory.limit_in_bytes": f"{300 << 20}\n"}
    assert inventory.memory_bytes(*cgroup(tmp_path / "b", "4:memory:/box\n", small)) == 150 << 20
    everything = psutil.virtual_memory().total
    v1_none = {"memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert inventory.memory_bytes(*cgroup(tmp_path / "c", "4:memory:/\n", v1_none)) == everything - max(
        int(everything * 0.05), 256 << 20
    )


def test_capacity_is_what_the_operator_says_and_counts_healthy_gpus_and_slices() -> None:
    halves = (Slice(1, 0, "MIG-1", "A100 MIG 3g.20gb"), Slice(2, 0, "MIG-2", "A100 MIG 3g.20gb"))
    gpus = (
        Gpu(0),
        Gpu(1, state=GpuState.QUARANTINED),
        Gpu(2, mig_enabled=True),
        Gpu(3),
        Gpu(4, mig_enabled=True, slices=halves),
        Gpu(5, mig_enabled=True, slices=halves, state=GpuState.DRAINED),
    )
    found = inventory.capacity(GpuReport("ok", gpus=gpus), 2.5, 1 << 30)
    assert (found.cpu_milli, found.memory_bytes, found.gpus) == (2500, 1 << 30, 4)


def test_readings_that_are_unknown_have_no_presence_on_the_wire() -> None:
    message = inventory.gpu_message(Gpu(0, temperature_c=0))
    assert message.HasField("temperature_c") and not message.HasField("power_mw")
    sample = inventory.gpu_samples(GpuReport("ok", gpus=(Gpu(1, utilization_percent=0),)))[0]
    assert sample.HasField("utilization_percent") and not sample.HasField("memory_used_bytes")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scheduler": "nowhere"}, "HOST:PORT"),
        ({"name": "a\nb"}, "printable"),
        ({"name": ""}, "printable"),
        ({"name": "\u202eevil"}, "printable"),
        ({"cpus": 0.0}, "slots"),
        ({"cpus": float("nan")}, "slots"),
        ({"memory_bytes": 5}, "memory"),
        ({"labels": {"a b": "c"}}, "label"),
        ({"labels": {"rack": ""}}, "label rack"),
        ({"labels": {f"k{at}": "v" for at in range(65)}}, "65 labels are too many"),
        ({"taints": {"": ""}}, "taint ''"),
        ({"taints": {"spot": "a\nb"}}, "taint spot"),
        ({"environments": {"azureml": "bin/python"}}, "absolute"),
    ],
)
def test_options_are_checked_at_the_door(tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        AgentConfig(**{"scheduler": "127.0.0.1:7223", "state": tmp_path, **options})  # type: ignore[arg-type]


def test_peers_reach_a_node_where_its_route_begins() -> None:
    assert route_address("127.0.0.1", 7223) == "127.0.0.1"
    assert route_address("localhost", 7223) == "127.0.0.1"
    assert route_address("::1", 7223) == "::1"
    with pytest.raises(Unavailable, match="cannot be resolved"):
        route_address("no-such-host.invalid", 7223)


def test_the_interface_towards_a_peer_has_the_address_where_the_route_begins() -> None:
    lo = interface_towards("127.0.0.1")
    assert lo == ("lo", "127.0.0.1")
    assert lo.variables() == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
    assert lo.told({}) == "lo (127.0.0.1)"
    assert lo.told({"NCCL_SOCKET_IFNAME": "ib"}) == "lo (127.0.0.1), NCCL_SOCKET_IFNAME=ib as given"
    with pytest.raises(Unavailable, match="cannot be resolved"):
        interface_towards("no-such-host.invalid")
