"""What this node is and has: capacity, GPUs, labels, as one Inventory message.

Cpus and memory are what this process may really use (affinity, cgroup limits), less a stated head room.
GPUs are read in threads of their own: a driver that hangs makes them unhealthy, never the agent silent.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil

from ..proto.generated import agent_pb2, common_pb2, nodes_pb2
from ..spec.gpu_health import GpuState
from .gpu import Alarm, Gpu, GpuReport
from .gpu_health import HealthBook
from .nvml import NoEvents, Nvml, NvmlUnavailable

log = logging.getLogger(__name__)

MEMORY_HEAD_ROOM_FRACTION: Final = 0.05
MEMORY_HEAD_ROOM_BYTES_MIN: Final = 256 << 20
"""Left for the agent, zygotes and the system: the larger of the two, never more than half."""

REFRESH_S: Final = 5.0
NVML_RETRY_S: Final = 60.0
NVML_SILENT_S: Final = 30.0
EVENT_WAIT_S: Final = 1.0
ALARMS_MAX: Final = 1000
EXPLAINS_S: Final = 60.0
"""How long before a rank's end an XID may have come and still be what it died of."""


def cpu_milli(
    cgroup_root: Path = Path("/sys/fs/cgroup"), self_cgroup: Path = Path("/proc/self/cgroup")
) -> int:
    """Thousandths of a cpu that this process may use: the affinity mask, cut by the tightest cgroup quota."""
    allowed = len(os.sched_getaffinity(0)) * 1000
    quotas = [_cpu_quota(folder) for folder in _cgroup_folders("cpu", cgroup_root, self_cgroup)]
    return max(1, min([allowed, *(quota for quota in quotas if quota)]))


def memory_bytes(
    cgroup_root: Path = Path("/sys/fs/cgroup"), self_cgroup: Path = Path("/proc/self/cgroup")
) -> int:
    """What tasks may have: the machine's memory or the tightest cgroup limit, less the head room."""
    limits = [_memory_limit(folder) for folder in _cgroup_folders("memory", cgroup_root, self_cgroup)]
    total = min([psutil.virtual_memory().total, *(limit for limit in limits if limit)])
    head_room = max(int(total * MEMORY_HEAD_ROOM_FRACTION), MEMORY_HEAD_ROOM_BYTES_MIN)
    return total - min(head_room, total // 2)


def _cgroup_folders(controller: str, root: Path, self_cgroup: Path) -> list[Path]:
    """Our cgroup's folder and those above it, for this controller, in version 2 and version 1 hierarchies."""
    folders = []
    for line in _read(self_cgroup).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        bases = [root / controllers, root / controller] if controllers else [root, root / "unified"]
        base = next((each for each in bases if each.is_dir()), None)
        if base is None:
            continue
        own = base / path.strip("/")
        folders += [each for each in (own, *own.parents) if each == base or base in each.parents]
    return folders


def _cpu_quota(folder: Path) -> int:
    """In thousandths of a cpu; 0 when this cgroup sets none."""
    both = _read(folder / "cpu.max").split() or [
        _read(folder / "cpu.cfs_quota_us").strip(),
        _read(folder / "cpu.cfs_period_us").strip(),
    ]
    if len(both) != 2 or not both[0].isdigit() or not both[1].isdigit() or int(both[1]) == 0:
        return 0
    return int(both[0]) * 1000 // int(both[1])


def _memory_limit(folder: Path) -> int:
    """0 when this cgroup sets none."""
    text = _read(folder / "memory.max").strip() or _read(folder / "memory.limit_in_bytes").strip()
    return int(text) if text.isdigit() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class GpuWatch:
    """Keeps the newest report on the GPUs.

    `on_change` is called from a thread, when more than a reading has changed.
    """

    def __init__(self, on_change: Callable[[], None], book: HealthBook, wanted: str = "all") -> None:
        """`wanted`: "all", "none", or indices and uuids separated by commas."""
        self._on_change = on_change
        self._book = book
        self._wanted = wanted
        self._new: list[Alarm] = []
        self._heard: deque[Alarm] = deque(maxlen=ALARMS_MAX)
        self._lock = threading.Lock()
        self._report = GpuReport("the GPUs are being read")
        self._asked_s = 0.0
        self._answered = threading.Event()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._keep_reading, name="gpu-read", daemon=True)]

    def start(self) -> None:
        if self._wanted == "none":
            self._report = GpuReport("none offered: the agent was started so")
            self._answered.set()
            return
        self._threads[0].start()

    def wait_first(self, timeout_s: float) -> bool:
        """True once the GPUs (or their absence) are known."""
        return self._answered.wait(timeout_s)

    def report(self) -> GpuReport:
        """The newest; a driver that has not answered for long makes every GPU unhealthy, but stops no job."""
        with self._lock:
            report, asked_s = self._report, self._asked_s
        silent_s = time.monotonic() - asked_s if asked_s else 0.0
        if silent_s < NVML_SILENT_S:
            return report
        why = f"NVML has not answered for {silent_s // 10 * 10:.0f} s"
        gpus = tuple(
            gpu if gpu.state is GpuState.QUARANTINED else replace(gpu, state=GpuState.DRAINED, health=why)
            for gpu in report.gpus
        )
        return replace(report, status=why, gpus=gpus)

    def uuids(self) -> dict[int, str]:
        """Of all that tasks can have here, by index."""
        return {index: uuid for gpu in self.report().gpus for index, uuid in gpu.devices.items()}

    def alarms(self, indices: Collection[int], begin_s: float, end_s: float) -> list[Alarm]:
        """What was heard of these GPUs while a rank lived, shortly before its end (time.monotonic())."""
        with self._lock:
            heard = list(self._heard)
        begin_s = max(begin_s, end_s - EXPLAINS_S)
        return [alarm for alarm in heard if alarm.index in indices and alarm.heard_s >= begin_s]

    def refresh(self) -> None:
        """Read now, not at the next turn."""
        self._wake.set()

    def stop(self, timeout_s: float = 3.0) -> None:
        """A thread that hangs in the driver is left behind: it is a daemon and holds nothing of ours."""
        self._stopping.set()
        self._wake.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_s)

    def _keep_reading(self) -> None:
        nvml: Nvml | None = None
        while not self._stopping.is_set():
            with self._lock:
                self._asked_s = time.monotonic()
            try:
                if nvml is None:
                    nvml = self._open()
                report = self._judged(nvml)
            except NvmlUnavailable as error:
                report = GpuReport(str(error))
            self._publish(report)
            self._wake.wait(REFRESH_S if nvml else NVML_RETRY_S)
            self._wake.clear()
        for thread in self._threads[1:]:
            thread.join()
        if nvml is not None:
            nvml.close()

    def _judged(self, nvml: Nvml) -> GpuReport:
        with self._lock:
            new, self._new = self._new, []
        report = self._offered(nvml.read())
        last = {alarm.index: alarm.xid for alarm in self._heard if alarm.xid}
        gpus = tuple(
            self._book.judge(
                replace(gpu, last_xid=last.get(gpu.index)),
                [alarm.xid for alarm in new if alarm.index == gpu.index],
                time.time_ns() // 1000,
            )
            for gpu in report.gpus
        )
        self._book.save()
        return replace(report, gpus=gpus)

    def _open(self) -> Nvml:
        nvml = Nvml()
        if nvml.has_events:
            waiter = threading.Thread(target=self._keep_hearing, args=(nvml,), name="gpu-events", daemon=True)
            self._threads.append(waiter)
            waiter.start()
        return nvml

    def _keep_hearing(self, nvml: Nvml) -> None:
        hearing = True
        while not self._stopping.is_set():
            try:
                alarms = nvml.wait_event(EVENT_WAIT_S)
                happened, hearing = bool(alarms), True
            except NoEvents as error:
                if hearing:
                    log.warning("no GPU events at present: %s", error)
                alarms, happened, hearing = (), hearing, False
            with self._lock:
                self._new += alarms
                self._heard += alarms
            if happened:
                self.refresh()
            # A lost device makes every wait fail at once; events that pile up are read in one go.
            self._stopping.wait(0.1 if hearing else REFRESH_S)

    def _offered(self, report: GpuReport) -> GpuReport:
        if self._wanted == "all":
            return report
        wanted = set(self._wanted.split(","))
        chosen = tuple(gpu for gpu in report.gpus if str(gpu.index) in wanted or gpu.uuid in wanted)
        missing = wanted - {str(gpu.index) for gpu in chosen} - {gpu.uuid for gpu in chosen}
        status = f"GPUs {', '.join(sorted(missing))} are not on this node" if missing else report.status
        return replace(report, status=status, gpus=chosen)

    def _publish(self, report: GpuReport) -> None:
        with self._lock:
            changed = _facts(report) != _facts(self._report)
            self._report, self._asked_s = report, 0.0
        self._answered.set()
        if changed:
            self._on_change()


def _facts(report: GpuReport) -> GpuReport:
    """The report without the readings that change all the time."""
    return replace(
        report,
        gpus=tuple(
            replace(gpu, memory_used_bytes=None, utilization_percent=None, temperature_c=None, power_mw=None)
            for gpu in report.gpus
        ),
    )


def gpu_message(gpu: Gpu) -> nodes_pb2.Gpu:
    return nodes_pb2.Gpu(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        memory_total_bytes=gpu.memory_total_bytes,
        memory_used_bytes=gpu.memory_used_bytes,
        utilization_percent=gpu.utilization_percent,
        temperature_c=gpu.temperature_c,
        power_mw=gpu.power_mw,
        pci_bus_id=gpu.pci_bus_id,
        mig_enabled=gpu.mig_enabled,
        mig_devices=[one.uuid for one in gpu.slices],
        ecc_uncorrected=gpu.ecc_uncorrected,
        last_xid=gpu.last_xid,
        links=[
            nodes_pb2.GpuLink(peer_index=link.peer_index, kind=link.kind, width=link.width)
            for link in gpu.links
        ],
        health=gpu.health,
        state=gpu.state,
        needs=gpu.needs,
        since_us=gpu.since_us,
        quarantines=gpu.quarantines,
        numa_node=gpu.numa_node,
        slices=[
            nodes_pb2.GpuSlice(
                gpu_instance=one.gpu_instance,
                compute_instance=one.compute_instance,
                uuid=one.uuid,
                name=one.name,
                memory_total_bytes=one.memory_total_bytes,
            )
            for one in gpu.slices
        ],
    )


def gpu_samples(report: GpuReport) -> list[agent_pb2.GpuSample]:
    return [
        agent_pb2.GpuSample(
            index=gpu.index,
            memory_used_bytes=gpu.memory_used_bytes,
            utilization_percent=gpu.utilization_percent,
            temperature_c=gpu.temperature_c,
            power_mw=gpu.power_mw,
        )
        for gpu in report.gpus
    ]


def capacity(report: GpuReport, cpus: float | None, memory: int | None) -> common_pb2.Resources:
    """`cpus` and `memory` (bytes) are what the operator set; None: what the node has. A slice is a GPU."""
    return common_pb2.Resources(
        cpu_milli=cpu_milli() if cpus is None else int(cpus * 1000),
        memory_bytes=memory_bytes() if memory is None else memory,
        gpus=sum(len(gpu.devices) for gpu in report.gpus if gpu.state is GpuState.OK),
    )


def boot_id() -> str:
    """Changes with every boot of the node; empty where the kernel does not say."""
    return _read(Path("/proc/sys/kernel/random/boot_id")).strip()
