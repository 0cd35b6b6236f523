"""What is said of GPUs that are there and not what a job asks for: of another model, too small, or slices."""

from collections import Counter
from collections.abc import Sequence

from ...spec.resources import GangDemand, GpuWish
from ...spec.slices import is_slice_name, profile_of
from .amounts import gpu_share_text, gpus_text, size_text
from .node import Node, NodeGpu, gpus_matching, is_called
from .state import ClusterState

SHOWN = 3


def most_gpus(nodes: Sequence[Node], wish: GpuWish) -> int:
    """That will do, of one node."""
    return max(len(gpus_matching(node.inventory.gpus, wish)) for node in nodes)


def never_gpus_text(nodes: Sequence[Node], demand: GangDemand) -> str:
    """No node has as many as a task asks for."""
    wish, need = demand.gpu, demand.per_task
    asked = need.gpus or gpu_share_text(need.gpu_milli)
    if most := most_gpus(nodes, wish):
        return f"the largest node has {gpus_text(most, wish)}, asked {asked} per task"
    if small := _small(nodes, wish):
        name, gpu = max(small, key=lambda one: one[1].memory_bytes)
        return f"no node has GPUs with so much memory: {_small_text(name, gpu, wish)}"
    if wish.models:
        known = sorted({gpu.model for node in nodes for gpu in node.inventory.gpus})
        kind = "MIG slice" if wish.slices else "GPU"
        return (
            f"no node has a {kind} like {' or '.join(wish.models)}; they have {', '.join(known) or 'no GPUs'}"
        )
    whole = "whole " if any(node.inventory.gpus for node in nodes) else ""
    return f"no node has {whole}GPUs, asked {asked} per task"


def others_text(state: ClusterState, nodes: Sequence[Node], demand: GangDemand) -> str:
    """Beside the numbers of those that would do: `; n3's GPUs have 24 GiB each, asked 40 GiB`, or
    `; 3 MIG slices 1g.5gb are free, but it asks for whole GPUs; ...`."""
    if not demand.per_task.on_gpu:
        return ""
    parts = [_small_text(*one, demand.gpu) for one in _small(nodes, demand.gpu)[:SHOWN]]
    return "".join(f"; {part}" for part in (*parts, _slices_text(state, nodes, demand.gpu)) if part)


def _small(nodes: Sequence[Node], wish: GpuWish) -> list[tuple[str, NodeGpu]]:
    """The nodes whose GPUs would all do but for their memory, with the largest of these."""
    if not wish.memory_bytes:
        return []
    named = wish._replace(memory_bytes=0)
    found = []
    for node in nodes:
        gpus = node.inventory.gpus
        if not gpus_matching(gpus, wish) and (indices := gpus_matching(gpus, named)):
            largest = max((gpu for gpu in gpus if gpu.index in indices), key=lambda gpu: gpu.memory_bytes)
            found.append((node.name, largest))
    return found


def _small_text(name: str, gpu: NodeGpu, wish: GpuWish) -> str:
    what = "MIG slices" if wish.slices else "GPUs"
    return f"{name}'s {what} have {size_text(gpu.memory_bytes)} each, asked {size_text(wish.memory_bytes)}"


def _slices_text(state: ClusterState, nodes: Sequence[Node], wish: GpuWish) -> str:
    """Of whoever asks for whole GPUs."""
    if wish.slices:
        return ""
    free = Counter(
        profile_of(gpu.model)
        for node in nodes
        for gpu in node.inventory.gpus
        if gpu.index in state.loads[node.node].free_gpus
        and is_slice_name(gpu.model)
        and is_called(gpu.model, wish.models)
        and gpu.memory_bytes >= wish.memory_bytes
    )
    if not free:
        return ""
    shown = sorted(free.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    parts = [f"{count} MIG slice{'s' if count > 1 else ''} {profile}" for profile, count in shown]
    are = "is" if free.total() == 1 else "are"
    return f"{', '.join(parts)} {are} free, but it asks for whole GPUs; a slice has `model: {shown[0][0]}`"
