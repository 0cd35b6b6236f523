"""NVML, as the agent sees it: what each GPU is, what it reads now, and what the driver finds wrong with it.

A reading that a device does not give is None (unknown), never an error. A device that is gone keeps its
facts and says why it is unhealthy, while the others go on. What was heard once (an XID) is handed on and not
kept: gpu_health.py remembers. Nothing else in Paceline calls NVML.
"""

import ctypes
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pynvml

from ..spec.gpu_health import GpuState
from ..spec.slices import INSTANCES_MAX, is_slice_name
from .gpu import Alarm, Gpu, GpuReport, Link, Slice

log = logging.getLogger(__name__)

GPUS_MAX: Final = 256
NUMA_WORDS: Final = 16
"""Of 64 NUMA nodes each, as many as Linux can have."""

_TOPOLOGY: Final = {
    pynvml.NVML_TOPOLOGY_INTERNAL: "pix",
    pynvml.NVML_TOPOLOGY_SINGLE: "pix",
    pynvml.NVML_TOPOLOGY_MULTIPLE: "pxb",
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "phb",
    pynvml.NVML_TOPOLOGY_NODE: "node",
    pynvml.NVML_TOPOLOGY_SYSTEM: "system",
}

_RECOVERY: Final = {
    pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: (GpuState.QUARANTINED, "a reset (nvidia-smi -r)"),
    pynvml.NVML_GPU_RECOVERY_ACTION_BUS_RESET: (GpuState.QUARANTINED, "a reset of its PCI bus"),
    pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: (GpuState.QUARANTINED, "a reboot of the node"),
    pynvml.NVML_GPU_RECOVERY_ACTION_SYSTEM_REBOOT: (GpuState.QUARANTINED, "a reboot of the node"),
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P: (
        GpuState.DRAINED,
        "to be drained: its NVLinks are in trouble",
    ),
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: (GpuState.DRAINED, "a reset once it is drained"),
    pynvml.NVML_GPU_RECOVERY_ACTION_RECOVER_IMEX_DOMAIN: (GpuState.DRAINED, "its IMEX domain recovered"),
}
"""nvmlDeviceGpuRecoveryAction_t. With `drain` what runs there may go on."""

_NO_NVML: Final = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver: libnvidia-ml.so.1 is not on this node",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the NVIDIA driver's libnvidia-ml.so.1 is too old or damaged",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded (modprobe nvidia)",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "driver/library version mismatch: libnvidia-ml.so.1 is not of the loaded kernel module's version; "
        "reload the module or reboot"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to open the NVIDIA devices",
}

# The device, not the question, is at fault.
_BROKEN: Final = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "lost: it has fallen off the bus or cannot be reached; reset or reboot",
    pynvml.NVML_ERROR_RESET_REQUIRED: "needs a reset before it can be used again",
    pynvml.NVML_ERROR_GPU_NOT_FOUND: "lost: the driver no longer finds it",
    pynvml.NVML_ERROR_IRQ_ISSUE: "its interrupts do not arrive",
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: "its external power cables are not attached",
}


class NvmlUnavailable(Exception):
    """There is no NVML to ask; the text says why, for a person."""


class NoEvents(Exception):
    """Waiting for events fails at once, as it does when a device was lost; the text says why."""


class Nvml:
    """An open NVML. `read` and `wait_event` may run in two threads; calls may last as the driver likes."""

    def __init__(self) -> None:
        """Raises NvmlUnavailable with the reason: no library, no driver, version mismatch, no permission."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlUnavailable(_NO_NVML.get(error.value, f"NVML does not start: {error}")) from error
        self._lost: dict[int, str] = {}
        self._known: dict[int, Gpu] = {}
        try:
            self._handles = self._open_devices()
        except pynvml.NVMLError as error:
            pynvml.nvmlShutdown()
            raise NvmlUnavailable(f"NVML cannot count the GPUs: {error}") from error
        self._events = self._register()

    def _open_devices(self) -> dict[int, Any]:
        """Handles by index; None for one that was lost before we came."""
        handles: dict[int, Any] = {}
        for index in range(min(pynvml.nvmlDeviceGetCount(), GPUS_MAX)):
            handles[index] = None
            try:
                handles[index] = pynvml.nvmlDeviceGetHandleByIndex(index)
            except pynvml.NVMLError as error:
                self._lost[index] = _why_broken(error)
        return handles

    def _register(self) -> Any:
        """An event set that hears of XIDs and double-bit ECC errors; None where no device has events."""
        wanted = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
        events = _ask(pynvml.nvmlEventSetCreate)
        if events is None:
            return None
        heard = 0
        for index, handle in self._handles.items():
            if handle is None:
                continue
            try:
                supported = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & wanted
                if supported:
                    pynvml.nvmlDeviceRegisterEvents(handle, supported, events)
                    heard += 1
            except pynvml.NVMLError as error:
                log.info("GPU %d gives no events: %s", index, error)
        if heard:
            return events
        pynvml.nvmlEventSetFree(events)
        return None

    @property
    def has_events(self) -> bool:
        return self._events is not None

    def wait_event(self, timeout_s: float) -> tuple[Alarm, ...]:
        """Wait for a fault of some device. Empty: there was none. Raises NoEvents."""
        try:
            data = pynvml.nvmlEventSetWait_v2(self._events, int(timeout_s * 1000))
        except pynvml.NVMLError_Timeout:
            return ()
        except pynvml.NVMLError as error:
            raise NoEvents(str(error)) from error
        index = self._index_of(data.device)
        xid = int(data.eventData) if data.eventType & pynvml.nvmlEventTypeXidCriticalError else 0
        # What comes without a device that we know concerns them all: rather too careful than trusting.
        concerned = [index] if index is not None else list(self._handles)
        return tuple(Alarm(each, xid, time.monotonic()) for each in concerned)

    def _index_of(self, device: Any) -> int | None:
        address = _address(device)
        for index, handle in self._handles.items():
            if handle is not None and _address(handle) == address:
                return index
        uuid = _ask(pynvml.nvmlDeviceGetUUID, device)
        known = self._known.items()
        return next((index for index, gpu in known if uuid in (gpu.uuid, *gpu.devices.values())), None)

    def read(self) -> GpuReport:
        """All devices as they are now."""
        for index, handle in self._handles.items():
            self._known[index] = self._read_one(index, handle)
        gpus = tuple(self._known.values())
        return GpuReport(
            status="ok" if gpus else "no GPU: the NVIDIA driver is loaded but finds none",
            driver_version=_ask(pynvml.nvmlSystemGetDriverVersion) or "",
            cuda_version=_cuda_version(_ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)),
            gpus=gpus,
        )

    def _read_one(self, index: int, handle: Any) -> Gpu:
        known = self._known.get(index, Gpu(index))
        if handle is None:
            return _out_of_order(known, GpuState.QUARANTINED, self._lost[index])
        try:
            if not known.uuid:
                known = self._read_facts(index, handle)
            return _condition(_read_now(known, handle), handle)
        except pynvml.NVMLError as error:
            # A question that fails for no known reason says nothing about what runs there.
            state = GpuState.QUARANTINED if error.value in _BROKEN else GpuState.DRAINED
            return _out_of_order(known, state, _why_broken(error))

    def _read_facts(self, index: int, handle: Any) -> Gpu:
        pci = _ask(pynvml.nvmlDeviceGetPciInfo, handle)
        memory = _memory(handle)
        return Gpu(
            index=index,
            uuid=pynvml.nvmlDeviceGetUUID(handle),
            name=_ask(pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
            serial=_ask(pynvml.nvmlDeviceGetSerial, handle) or "",
            memory_total_bytes=int(memory.total) if memory is not None else 0,
            pci_bus_id=_bus_id(pci),
            links=self._links(index, handle),
            numa_node=_numa_node(handle),
        )

    def _links(self, index: int, handle: Any) -> tuple[Link, ...]:
        direct, switched = _nvlinks(handle)
        links = []
        for peer, other in self._handles.items():
            if peer == index or other is None:
                continue
            width = direct.get(_bus_id(_ask_peer(pynvml.nvmlDeviceGetPciInfo, other)), 0)
            if not width and switched:
                width = min(switched, _nvlinks(other)[1])
            if width:
                links.append(Link(peer, "nvlink", width))
                continue
            level = _ask_peer(pynvml.nvmlDeviceGetTopologyCommonAncestor, handle, other)
            if level in _TOPOLOGY:
                links.append(Link(peer, _TOPOLOGY[level]))
        return tuple(links)

    def close(self) -> None:
        """Not while another thread is inside `read` or `wait_event`."""
        if self._events is not None:
            _ask_peer(pynvml.nvmlEventSetFree, self._events)
        _ask_peer(pynvml.nvmlShutdown)


def _read_now(gpu: Gpu, handle: Any) -> Gpu:
    pynvml.nvmlDeviceGetUUID(handle)  # a question that every living device answers
    memory = _memory(handle)
    use = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    mig = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    mig_enabled = bool(mig) and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    return replace(
        gpu,
        memory_used_bytes=int(memory.used) if memory is not None else None,
        utilization_percent=int(use.gpu) if use is not None else None,
        temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_mw=_ask(pynvml.nvmlDeviceGetPowerUsage, handle),
        mig_enabled=mig_enabled,
        slices=_slices(gpu.name, handle) if mig_enabled else (),
        ecc_uncorrected=_ask(
            pynvml.nvmlDeviceGetTotalEccErrors,
            handle,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        ),
    )


def _out_of_order(gpu: Gpu, state: GpuState, why: str) -> Gpu:
    return replace(
        gpu,
        state=state,
        health=why,
        needs=why,
        utilization_percent=None,
        temperature_c=None,
        power_mw=None,
    )


def _condition(gpu: Gpu, handle: Any) -> Gpu:
    """What the driver says of a device that answers. Rows or pages that only wait for a reset are no reason
    to stop using it (NVIDIA's "GPU Memory Error Management": new workloads can be launched)."""
    remapped = _ask_peer(pynvml.nvmlDeviceGetRemappedRows, handle)
    if remapped is not None and remapped[3]:
        why = "row remapping failed: its memory is worn out; replace it"
        return replace(gpu, state=GpuState.DRAINED, health=why, needs=why)
    found = _RECOVERY.get(_recovery_action(handle))
    if found is not None:
        return replace(gpu, state=found[0], health=f"the driver says it needs {found[1]}", needs=found[1])
    needs = ""
    if remapped is not None and remapped[2]:
        needs = "a reset: rows of its memory are to be remapped"
    elif _ask_peer(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle) == pynvml.NVML_FEATURE_ENABLED:
        needs = "a reset: pages of its memory are to be retired"
    return replace(gpu, state=GpuState.OK, health="ok", needs=needs)


def _recovery_action(handle: Any) -> int:
    """As the driver gives it since R565; none where it does not."""
    field = pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
    values = _ask_peer(pynvml.nvmlDeviceGetFieldValues, handle, [field])
    if values is None or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return int(pynvml.NVML_GPU_RECOVERY_ACTION_NONE)
    return int(values[0].value.uiVal)


def _cuda_version(number: int | None) -> str:
    """12040 -> 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _memory(handle: Any) -> Any:
    """The second version leaves out what the driver keeps for itself; older drivers have only the first."""
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    return memory if memory is not None else _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)


def _slices(gpu: str, handle: Any) -> tuple[Slice, ...]:
    """The MIG devices of a GPU of that name. Their handles are asked for anew: they change with layouts."""
    found = []
    for index in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        device = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        one = _slice(gpu, device) if device is not None else None
        if one is not None:
            found.append(one)
    return tuple(found)


def _slice(gpu: str, device: Any) -> Slice | None:
    """None: it is being made or destroyed, or does not say which one it is."""
    uuid = _ask(pynvml.nvmlDeviceGetUUID, device)
    gpu_instance = _ask(pynvml.nvmlDeviceGetGpuInstanceId, device)
    compute_instance = _ask(pynvml.nvmlDeviceGetComputeInstanceId, device)
    if not uuid or gpu_instance is None or compute_instance is None:
        return None
    if max(gpu_instance, compute_instance) >= INSTANCES_MAX:
        return None
    memory = _memory(device)
    total = int(memory.total) if memory is not None else 0
    return Slice(gpu_instance, compute_instance, uuid, _slice_name(gpu, device), total)


def _slice_name(gpu: str, device: Any) -> str:
    """As NVML has it; where it has none, made of what it is, as NVIDIA makes them."""
    name = _ask(pynvml.nvmlDeviceGetName, device) or ""
    if is_slice_name(name):
        return str(name)
    parts = _ask(pynvml.nvmlDeviceGetAttributes, device)
    if parts is None:
        return f"{gpu} MIG device"
    of, in_all = parts.computeInstanceSliceCount, parts.gpuInstanceSliceCount
    part = f"{of}c." if of < in_all else ""
    return f"{gpu} MIG {part}{in_all}g.{-(-parts.memorySizeMB // 1024)}gb"


def _numa_node(handle: Any) -> int | None:
    """NVML's own "NUMA node id" is another thing: of GPUs whose memory is a NUMA node itself."""
    words = _ask(pynvml.nvmlDeviceGetMemoryAffinity, handle, NUMA_WORDS, pynvml.NVML_AFFINITY_SCOPE_NODE)
    nodes = sum(word << 64 * at for at, word in enumerate(words or ()))
    return nodes.bit_length() - 1 if nodes.bit_count() == 1 else None


def _nvlinks(handle: Any) -> tuple[dict[str, int], int]:
    """Active NVLinks: how many to each GPU (by PCI bus id), and how many to switches."""
    direct: dict[str, int] = {}
    switched = 0
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if not _ask_peer(pynvml.nvmlDeviceGetNvLinkState, handle, link):
            continue
        if (
            _ask_peer(pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link)
            == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
        ):
            switched += 1
            continue
        remote = _bus_id(_ask_peer(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link))
        if remote:
            direct[remote] = direct.get(remote, 0) + 1
    return direct, switched


def _bus_id(pci: Any) -> str:
    if pci is None:
        return ""
    text = pci.busId or pci.busIdLegacy
    return text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)


def _address(handle: Any) -> int:
    """The handle is an opaque pointer; two are the same device when they point to the same place."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _ask(call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where device or driver does not give it; raises when the device is broken."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in _BROKEN:
            raise
        return None


def _ask_peer(call: Callable[..., Any], *arguments: Any) -> Any:
    """As `_ask`, for questions whose failure says nothing about the device in hand."""
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None


def _why_broken(error: Any) -> str:
    return _BROKEN.get(error.value, f"NVML cannot read it: {error}")
