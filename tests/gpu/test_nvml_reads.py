"""The agent's NVML against the real driver; nvidia-smi says the same."""

import json
import re

from paceline.agent.gpu import Gpu
from paceline.agent.nvml import Nvml
from paceline.spec.gpu_health import GpuState
from support.cluster import Cluster
from support.gpu_driver import smi


def check_plausible(gpu: Gpu) -> None:
    assert re.fullmatch(r"GPU-[0-9a-f-]{36}", gpu.uuid), gpu
    assert re.fullmatch(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.\d", gpu.pci_bus_id), gpu
    assert gpu.memory_used_bytes is not None
    assert 0 <= gpu.memory_used_bytes < gpu.memory_total_bytes, gpu
    assert gpu.utilization_percent is None or 0 <= gpu.utilization_percent <= 100, gpu
    assert gpu.temperature_c is None or 0 < gpu.temperature_c < 120, gpu
    assert gpu.power_mw is None or 1_000 < gpu.power_mw < 2_000_000, gpu
    assert gpu.ecc_uncorrected is None or gpu.ecc_uncorrected >= 0, gpu
    assert (gpu.state, gpu.needs, gpu.last_xid) == (GpuState.OK, "", None), gpu
    assert gpu.health == "ok"


def test_the_driver_is_read_and_listened_to() -> None:
    nvml = Nvml()
    try:
        report = nvml.read()
        print(report)
        gpu = report.gpus[0]
        check_plausible(gpu)
        uuid, name, serial, total, driver, mig = smi(
            "uuid", "name", "serial", "memory.total", "driver_version", "mig.mode.current"
        )
        assert (gpu.uuid, gpu.name, report.driver_version) == (uuid, name, driver)
        assert gpu.serial == (serial if serial.isdigit() else "")
        assert gpu.memory_total_bytes >> 20 == int(total)
        assert gpu.mig_enabled == (mig == "Enabled")
        assert gpu.devices == ({0: uuid} if not gpu.mig_enabled else gpu.devices)
        assert re.fullmatch(r"\d+\.\d+", report.cuda_version), report
        assert report.status == "ok"
        assert nvml.has_events
        assert nvml.wait_event(0.1) == ()
    finally:
        nvml.close()


def test_pace_nodes_shows_the_gpu(cluster: Cluster) -> None:
    told = cluster.pace("nodes", "-o", "json")
    assert told.returncode == 0, told.stderr
    [node] = json.loads(told.stdout)["nodes"]
    print(node)
    uuid, name, driver = smi("uuid", "name", "driver_version")
    gpu = node["gpus"][0]
    assert (gpu["uuid"], gpu["name"], gpu["state"], gpu["health"]) == (uuid, name, "ok", "ok")
    assert (node["driver_version"], node["gpu_status"]) == (driver, "ok")
    assert 0 < gpu["memory_used_bytes"] < gpu["memory_total_bytes"]
    assert node["capacity"]["gpus"] == len(node["gpus"])
    assert name in " ".join(cluster.pace("nodes").stdout.split())
