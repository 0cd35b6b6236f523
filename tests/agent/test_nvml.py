"""GPUs through the real nvidia-ml-py binding, against a stub of the library built from C."""

from pathlib import Path
from typing import Any

import pytest
from support.nvml_node import NvmlNode, build_stub, h100, mig_slice


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("nvml"))


def read(node: NvmlNode) -> dict[str, Any]:
    report: dict[str, Any] = node.ask("read")
    return report


def test_a_healthy_gpu_says_everything(stub: Path, tmp_path: Path) -> None:
    with NvmlNode(stub, tmp_path, h100(0)) as node:
        assert node.ask("open") is True
        report = read(node)
    assert report["status"] == "ok" and report["driver_version"] == "570.86.15"
    assert report["gpus"] == [
        {
            "index": 0,
            "uuid": "GPU-0000",
            "name": "NVIDIA H100 80GB HBM3",
            "serial": "",
            "memory_total_bytes": 80 << 30,
            "memory_used_bytes": 1 << 30,
            "pci_bus_id": "00000000:10:00.0",
            "links": [],
            "mig_enabled": False,
            "slices": [],
            "utilization_percent": 37,
            "temperature_c": 54,
            "power_mw": 310000,
            "ecc_uncorrected": 0,
            "last_xid": None,
            "state": "ok",
            "health": "ok",
            "needs": "",
            "since_us": 0,
            "quarantines": 0,
            "numa_node": None,
        }
    ]


def test_a_board_says_its_serial_a_consumers_card_does_not_and_the_driver_its_cuda(
    stub: Path, tmp_path: Path
) -> None:
    lines = "cuda 12040\n" + h100(0, serial="1654922006542") + "\n" + h100(1)
    with NvmlNode(stub, tmp_path, lines) as node:
        node.ask("open")
        report = read(node)
    assert [gpu["serial"] for gpu in report["gpus"]] == ["1654922006542", ""]
    assert report["cuda_version"] == "12.4"
    with NvmlNode(stub, tmp_path, h100(0)) as node:
        node.ask("open")
        assert read(node)["cuda_version"] == "", "an older driver does not say"


def test_each_gpu_says_which_numa_node_is_nearest(stub: Path, tmp_path: Path) -> None:
    lines = "\n".join(h100(index, numa=numa) for index, numa in enumerate((0, 1, 70, None)))
    with NvmlNode(stub, tmp_path, lines) as node:
        node.ask("open")
        assert [gpu["numa_node"] for gpu in read(node)["gpus"]] == [0, 1, 70, None]


def test_what_a_device_does_not_give_is_unknown_and_no_error(stub: Path, tmp_path: Path) -> None:
    bare = "gpu 0 uuid=GPU-bare"
    with NvmlNode(stub, tmp_path, bare) as node:
        assert node.ask("open") is False  # no events either
        gpu = read(node)["gpus"][0]
    assert gpu["health"] == "ok" and gpu["uuid"] == "GPU-bare"
    unknown = ("memory_used_bytes", "utilization_percent", "temperature_c", "power_mw", "ecc_uncorrected")
    assert [gpu[name] for name in unknown] == [None] * 5


def test_one_reading_that_fails_spoils_no_other(stub: Path, tmp_path: Path) -> None:
    faults = "\nfault 0 nvmlDeviceGetPowerUsage 999\nfault 0 nvmlDeviceGetTotalEccErrors 4\n"
    with NvmlNode(stub, tmp_path, h100(0) + faults) as node:
        node.ask("open")
        gpu = read(node)["gpus"][0]
    assert (gpu["power_mw"], gpu["ecc_uncorrected"], gpu["temperature_c"]) == (None, None, 54)
    assert gpu["health"] == "ok"


def test_an_old_driver_without_the_newer_symbols(tmp_path: Path) -> None:
    old = build_stub(tmp_path / "old", "-DOLD_DRIVER")
    with NvmlNode(old, tmp_path, h100(0)) as node:
        node.ask("open")
        gpu = read(node)["gpus"][0]
    assert (gpu["memory_total_bytes"], gpu["memory_used_bytes"], gpu["health"]) == (80 << 30, 1 << 30, "ok")


def test_a_gpu_that_falls_off_the_bus_keeps_its_facts_and_the_rest_go_on(stub: Path, tmp_path: Path) -> None:
    two = h100(0) + "\n" + h100(1) + "\n"
    with NvmlNode(stub, tmp_path, two) as node:
        node.ask("open")
        assert [gpu["health"] for gpu in read(node)["gpus"]] == ["ok", "ok"]
        node.write(two + "fault 1 * 15\n")
        lost = read(node)["gpus"]
        assert lost[0]["health"] == "ok" and lost[0]["temperature_c"] == 54
        assert "fallen off the bus" in lost[1]["health"]
        assert (lost[1]["uuid"], lost[1]["memory_total_bytes"]) == ("GPU-0001", 80 << 30)
        assert lost[1]["temperature_c"] is None
        node.write(two)
        assert [gpu["health"] for gpu in read(node)["gpus"]] == ["ok", "ok"]


def test_a_gpu_that_was_lost_before_the_agent_came(stub: Path, tmp_path: Path) -> None:
    with NvmlNode(stub, tmp_path, h100(0) + "\n" + h100(1) + "\nfault 0 * 15\n") as node:
        node.ask("open")
        gpus = read(node)["gpus"]
    assert [gpu["index"] for gpu in gpus] == [0, 1]
    assert "fallen off the bus" in gpus[0]["health"] and gpus[1]["health"] == "ok"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (9, "driver is not loaded"),
        (18, "version mismatch"),
        (4, "no permission"),
        (999, "NVML does not start"),
    ],
)
def test_no_nvml_says_why(stub: Path, tmp_path: Path, code: int, says: str) -> None:
    with NvmlNode(stub, tmp_path, f"init {code}\n") as node:
        assert says in node.ask("open")


def test_no_library_and_no_gpu_say_so(stub: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "libnvidia-ml.so.1").write_bytes(b"not a library")
    with NvmlNode(empty, tmp_path) as node:
        assert "libnvidia-ml.so.1" in node.ask("open")
    with NvmlNode(stub, tmp_path) as node:
        node.ask("open")
        assert read(node)["status"].startswith("no GPU")


def test_links_between_gpus(stub: Path, tmp_path: Path) -> None:
    gpus = "\n".join(h100(index) for index in range(4))
    lines = "\nlink 0 0 1\nlink 0 1 1\nlink 1 0 0\nlink 1 1 0\n"
    lines += "link 2 0 switch\nlink 2 1 switch\nlink 3 0 switch\n"
    topology = "topology 0 2 50\ntopology 0 3 40\ntopology 1 2 10\n"
    with NvmlNode(stub, tmp_path, gpus + lines + topology) as node:
        node.ask("open")
        links = [
            {link["peer_index"]: (link["kind"], link["width"]) for link in gpu["links"]}
            for gpu in read(node)["gpus"]
        ]
    assert links[0] == {1: ("nvlink", 2), 2: ("system", 0), 3: ("node", 0)}
    assert links[1] == {0: ("nvlink", 2), 2: ("pix", 0)}
    assert links[2] == {0: ("system", 0), 1: ("pix", 0), 3: ("nvlink", 1)}


def slices(*lines: str) -> str:
    """Of GPU 1 in MIG mode, beside a whole GPU 0."""
    return "\n".join((h100(0), h100(1, mig=1), *lines)) + "\n"


SMALL, LARGE = mig_slice(1, 0, "1g.10gb", gi=9), mig_slice(1, 3, "3g.40gb", gi=2)


def test_a_gpu_in_mig_mode_offers_its_slices_and_not_itself(stub: Path, tmp_path: Path) -> None:
    with NvmlNode(stub, tmp_path, slices(SMALL, LARGE)) as node:
        assert node.ask("watch") is True
        gpus = node.ask("until MIG-1-2-0")["gpus"]
        assert (gpus[0]["mig_enabled"], gpus[0]["slices"]) == (False, [])
        assert gpus[1]["mig_enabled"]
        assert gpus[1]["slices"] == [
            {
                "gpu_instance": 9,
                "compute_instance": 0,
                "uuid": "MIG-1-9-0",
                "name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
                "memory_total_bytes": (10 << 30) - (256 << 20),
            },
            {
                "gpu_instance": 2,
                "compute_instance": 0,
                "uuid": "MIG-1-2-0",
                "name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
                "memory_total_bytes": (40 << 30) - (256 << 20),
            },
        ]
        assert node.ask("capacity") == 3


def test_a_slice_keeps_its_index_when_others_before_it_are_destroyed(stub: Path, tmp_path: Path) -> None:
    first, second = mig_slice(1, 0, "1g.10gb", gi=9), mig_slice(1, 1, "1g.10gb", gi=10)
    with NvmlNode(stub, tmp_path, slices(first, second)) as node:
        node.ask("watch")
        assert node.ask("changed") is True
        assert node.ask("uuids") == {"0": "GPU-0000", "20900": "MIG-1-9-0", "21000": "MIG-1-10-0"}
        node.write(slices(mig_slice(1, 0, "1g.10gb", gi=10)))
        assert node.ask("changed") is True, "the node tells its inventory anew"
        assert node.ask("uuids") == {"0": "GPU-0000", "21000": "MIG-1-10-0"}
        node.write(slices())
        assert node.ask("changed") is True
        assert node.ask("capacity") == 1


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"g": 1, "mb": 9728}, "NVIDIA H100 80GB HBM3 MIG 1g.10gb"),
        ({"g": 3, "c": 1, "mb": 40192}, "NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb"),
        ({}, "NVIDIA H100 80GB HBM3 MIG device"),
    ],
)
def test_a_slice_without_a_name_is_called_after_what_it_is(
    stub: Path, tmp_path: Path, parts: dict[str, int], name: str
) -> None:
    with NvmlNode(stub, tmp_path, slices(mig_slice(1, 0, "1g.10gb", gi=7, name=None, **parts))) as node:
        node.ask("open")
        [one] = read(node)["gpus"][1]["slices"]
    assert one["name"] == name


def test_a_slice_that_does_not_say_which_it_is_is_left_out(stub: Path, tmp_path: Path) -> None:
    unknown = (mig_slice(1, 0, "1g.10gb", gi=7) + " gi=-1", mig_slice(1, 1, "1g.10gb", gi=100))
    with NvmlNode(stub, tmp_path, slices(*unknown, LARGE)) as node:
        node.ask("open")
        gpu = read(node)["gpus"][1]
    assert [one["uuid"] for one in gpu["slices"]] == ["MIG-1-2-0"] and gpu["state"] == "ok"


def test_slices_are_as_healthy_as_their_gpu(stub: Path, tmp_path: Path) -> None:
    with NvmlNode(stub, tmp_path, slices(SMALL, LARGE)) as node:
        node.ask("watch")
        node.ask("until MIG-1-2-0")
        assert node.ask("capacity") == 3
        node.write(slices(SMALL, LARGE) + "event 1 8 48\n")
        assert "XID 48" in node.ask("until XID")["gpus"][1]["health"]
        assert node.ask("capacity") == 1
        node.write(slices(SMALL, LARGE) + "event 1 8 48\nfault 1 * 15\n")
        lost = node.ask("until bus")["gpus"][1]
        assert [one["uuid"] for one in lost["slices"]] == ["MIG-1-9-0", "MIG-1-2-0"], "known from before"


def test_worn_out_memory_is_unhealthy(stub: Path, tmp_path: Path) -> None:
    with NvmlNode(stub, tmp_path, h100(0, remap=1)) as node:
        node.ask("open")
        assert "row remapping failed" in read(node)["gpus"][0]["health"]


def test_xids_arrive_as_events(stub: Path, tmp_path: Path) -> None:
    two = h100(0) + "\n" + h100(1) + "\n"
    with NvmlNode(stub, tmp_path, two) as node:
        assert node.ask("open") is True
        assert node.ask("wait 0.05") == []
        node.write(two + "event 1 8 13\n")
        assert node.ask("wait 2") == [[1, 13]]
        node.write(two + "event 1 8 13\nevent 0 8 79\n")
        assert node.ask("wait 2") == [[0, 79]]
        node.write(two + "event 1 8 13\nevent 0 8 79\nevent 1 2 0\n")
        assert node.ask("wait 2") == [[1, 0]]  # a double-bit ECC error has no number
        assert [gpu["health"] for gpu in read(node)["gpus"]] == ["ok", "ok"]


def test_an_event_of_an_unknown_device_concerns_all(stub: Path, tmp_path: Path) -> None:
    two = h100(0) + "\n" + h100(1) + "\n"
    with NvmlNode(stub, tmp_path, two + "event -1 8 79\n") as node:
        node.ask("open")
        assert node.ask("wait 2") == [[0, 79], [1, 79]]


@pytest.mark.parametrize(
    ("facts", "state", "needs"),
    [
        ({"remap": 0, "pending": 0, "retire": 0, "recovery": 0}, "ok", ""),
        ({"pending": 1}, "ok", "a reset: rows"),
        ({"retire": 1}, "ok", "a reset: pages"),
        ({"remap": 1}, "drained", "replace it"),
        ({"recovery": 1}, "quarantined", "a reset (nvidia-smi -r)"),
        ({"recovery": 2}, "quarantined", "a reboot of the node"),
        ({"recovery": 3}, "drained", "to be drained"),
        ({"recovery": 4}, "drained", "a reset once it is drained"),
    ],
)
def test_what_the_driver_asks_for(
    stub: Path, tmp_path: Path, facts: dict[str, int], state: str, needs: str
) -> None:
    with NvmlNode(stub, tmp_path, h100(0, **facts)) as node:
        node.ask("open")
        gpu = read(node)["gpus"][0]
    assert gpu["state"] == state
    assert needs in gpu["needs"] and bool(gpu["needs"]) == bool(needs)


def test_the_watch_tells_of_faults_and_not_of_mere_readings(stub: Path, tmp_path: Path) -> None:
    with NvmlNode(stub, tmp_path, h100(0)) as node:
        assert node.ask("watch") is True
        assert node.ask("changed") is True
        assert node.ask("capacity") == 1
        node.write(h100(0, temp=71, util=99, used=5 << 30))
        assert node.ask("until 71")["gpus"][0]["utilization_percent"] == 99
        node.write(h100(0, temp=71) + "\nevent 0 8 48\n")
        assert node.ask("changed") is True
        assert "XID 48" in node.ask("until XID")["gpus"][0]["health"]
        assert node.ask("capacity") == 0


def test_a_lost_gpu_that_spoils_the_events_is_still_noticed(stub: Path, tmp_path: Path) -> None:
    two = h100(0) + "\n" + h100(1) + "\n"
    with NvmlNode(stub, tmp_path, two) as node:
        node.ask("watch")
        assert node.ask("changed") is True
        node.write(two + "fault -1 nvmlEventSetWait_v2 15\nfault 1 * 15\n")
        assert node.ask("changed") is True
        assert [gpu["health"] == "ok" for gpu in node.ask("until bus")["gpus"]] == [True, False]
        node.write(two + "event 0 8 79\n")
        assert "XID 79" in node.ask("until XID")["gpus"][0]["health"]


def test_a_driver_that_comes_later_is_found(stub: Path, tmp_path: Path) -> None:
    with NvmlNode(stub, tmp_path, "init 9\n") as node:
        assert node.ask("watch") is True
        assert "not loaded" in node.ask("until loaded")["status"]
        node.write(h100(0))
        assert node.ask("until H100")["status"] == "ok"


def test_a_hanging_driver_makes_gpus_unhealthy_and_nobody_wait(stub: Path, tmp_path: Path) -> None:
    with NvmlNode(stub, tmp_path, h100(0)) as node:
        node.ask("watch")
        node.ask("until H100")
        node.write(h100(0) + "\nfault 0 nvmlDeviceGetUUID hang\n")
        report = node.ask("until answered")
        assert "has not answered" in report["status"]
        assert "has not answered" in report["gpus"][0]["health"]


def test_only_the_wanted_gpus_are_offered(stub: Path, tmp_path: Path) -> None:
    lines = "\n".join(h100(index) for index in range(3))
    with NvmlNode(stub, tmp_path, lines) as node:
        node.ask("watch 2,GPU-0000,7")
        report = node.ask("until H100")
        assert [gpu["index"] for gpu in report["gpus"]] == [0, 2]
        assert report["status"] == "GPUs 7 are not on this node"
    with NvmlNode(stub, tmp_path, lines) as node:
        node.ask("watch none")
        assert node.ask("until offered") == {
            "status": "none offered: the agent was started so",
            "driver_version": "",
            "cuda_version": "",
            "gpus": [],
        }
