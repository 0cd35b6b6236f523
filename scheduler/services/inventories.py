"""What a node says that it is and has, checked at the door, as placement needs it."""

from typing import Final

from google.protobuf.json_format import MessageToJson

from ...proto.codecs import resources_of
from ...proto.generated import nodes_pb2
from ...spec.errors import InvalidRequest, LimitExceeded
from ...spec.gpu_health import GpuState
from ...spec.ids import Micros
from ...spec.labels import fault_in_labels, fault_in_taints
from ...spec.slices import INSTANCES_MAX, SLICES_FROM, is_slice_name, slice_index
from ..core.gpu_choice import linked_groups
from ..core.node import NodeGpu, NodeInventory, SickGpu

INVENTORY_BYTES_MAX: Final = 256 << 10
_NAME_MAX: Final = 200
_WHY_MAX: Final = 500
_NO_ENGINE: Final = "none: "


def inventory_of(message: nodes_pb2.Inventory) -> NodeInventory:
    """Raises InvalidRequest, LimitExceeded."""
    if message.ByteSize() > INVENTORY_BYTES_MAX:
        raise LimitExceeded(f"an inventory of {message.ByteSize()} bytes; at most {INVENTORY_BYTES_MAX}")
    if not all(0 < port < 65536 for port in message.rendezvous_ports):
        raise InvalidRequest(f"rendezvous ports {list(message.rendezvous_ports)} are not all ports")
    if fault := fault_in_labels(message.labels) or fault_in_taints(message.taints):
        raise InvalidRequest(fault)
    gpus, sick = _gpus_of(message)
    engine, why_none = _engine_of(message.container_engine)
    return NodeInventory(
        name=message.name[:_NAME_MAX],
        address=message.address[:200],
        capacity=resources_of(message.capacity),
        gpus=gpus,
        sick=sick,
        environments=tuple(sorted(message.environments)),
        engine=engine,
        no_engine=why_none,
        rendezvous_ports=tuple(message.rendezvous_ports),
        warming=message.warm_pool == "starting",
        leaving=message.leaving,
        labels=tuple(sorted(message.labels.items())),
        taints=tuple(sorted(message.taints.items())),
        details=MessageToJson(message, preserving_proto_field_name=True, indent=None),
    )


def _engine_of(said: str) -> tuple[str, str]:
    """What it runs images with, or why it cannot."""
    if said.startswith(_NO_ENGINE):
        return "", said.removeprefix(_NO_ENGINE)[:_WHY_MAX]
    return said[:_NAME_MAX], "" if said else "its agent is older"


def _gpus_of(message: nodes_pb2.Inventory) -> tuple[tuple[NodeGpu, ...], tuple[SickGpu, ...]]:
    """What may be given to tasks, and what may not at present. A GPU in MIG mode is its slices, which have no
    NVLink and are as healthy as it is."""
    linked = linked_groups(
        (gpu.index, link.peer_index)
        for gpu in message.gpus
        for link in gpu.links
        if link.kind == "nvlink" and not gpu.mig_enabled
    )
    gpus, sick = list[NodeGpu](), list[SickGpu]()
    for gpu in message.gpus:
        state = _state(gpu)
        for index, name, memory_bytes in _devices_of(gpu):
            if state is GpuState.OK:
                numa = gpu.numa_node if gpu.HasField("numa_node") else -1
                gpus.append(NodeGpu(index, name, numa, linked.get(index, -1), memory_bytes))
            else:
                why, since_us = gpu.health[:_WHY_MAX], Micros(gpu.since_us)
                sick.append(SickGpu(index, name, state, why, since_us, memory_bytes))
    return tuple(sorted(gpus, key=lambda gpu: gpu.index)), tuple(sick)


def _devices_of(gpu: nodes_pb2.Gpu) -> list[tuple[int, str, int]]:
    """Index, name and memory of the GPU, or of its slices."""
    if not 0 <= gpu.index < SLICES_FROM:
        raise InvalidRequest(f"a GPU has the index {gpu.index}; expected 0 to {SLICES_FROM - 1}")
    if not gpu.mig_enabled:
        return [(gpu.index, gpu.name[:_NAME_MAX], gpu.memory_total_bytes)]
    for one in gpu.slices:
        if not (0 <= one.gpu_instance < INSTANCES_MAX and 0 <= one.compute_instance < INSTANCES_MAX):
            raise InvalidRequest(f"a slice of GPU {gpu.index} has ids out of range: {one}".strip())
        if not is_slice_name(one.name[:_NAME_MAX]):
            raise InvalidRequest(
                f"a slice of GPU {gpu.index} is called {one.name[:_NAME_MAX]!r}, without MIG"
            )
    return [
        (
            slice_index(gpu.index, one.gpu_instance, one.compute_instance),
            one.name[:_NAME_MAX],
            one.memory_total_bytes,
        )
        for one in gpu.slices
    ]


def _state(gpu: nodes_pb2.Gpu) -> GpuState:
    """An older agent only says that something is wrong: nothing is restarted for that."""
    if not gpu.state:
        return GpuState.OK if gpu.health in ("", "ok") else GpuState.DRAINED
    try:
        return GpuState(gpu.state)
    except ValueError as error:
        raise InvalidRequest(
            f"GPU {gpu.index} is {gpu.state[:50]!r}; expected {', '.join(GpuState)}"
        ) from error
