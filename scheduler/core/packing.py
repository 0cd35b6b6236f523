"""What a task's placement adds to the fragmentation of a node: placement goes where that is least.

After FGD (Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient
Descent", USENIX ATC 2023). The fragmentation of a node is the amount of its free GPU that a typical task
could not use, for want of cpu, of whole GPUs, of enough of one GPU, or because it wants another kind: the
mean over what was submitted (workload.py). The node's memory is left out. GPUs of several kinds on one node
are judged kind by kind; a MIG slice counts as a GPU of its own kind.

Growth is compared in steps: what is less says less than the rest of the order, which is our own. Idle nodes
are kept for jobs that need them whole; a task goes where there is no less cpu to each free GPU than it asks
for itself; and then the first node by name fills first.
"""

from typing import Final, NamedTuple

from ...spec.resources import WHOLE_GPU_MILLI, GangDemand
from .node import GpuGroup, GpuKind, Load, NodeInventory, gpu_groups, matches
from .workload import SCALE, Workload

STEP_MILLI: Final = 80
SCORES_MAX: Final = 200_000


class Fit(NamedTuple):
    """How well a task fits on a node: less is better."""

    step: int
    tie: int


def fit_of(workload: Workload, inventory: NodeInventory, load: Load, demand: GangDemand) -> Fit:
    """Of a node where at least one task fits."""
    need, groups = demand.per_task, gpu_groups(inventory, load)
    idle = len(load.free_gpus) == len(inventory.gpus)
    asked = (need.cpu_milli, need.gpus, need.gpu_milli, demand.gpu)
    key = (groups, load.free_cpu_milli, idle, asked)
    known = workload.scores.get(key)
    if known is None:
        if len(workload.scores) >= SCORES_MAX:
            workload.scores.clear()
        growth = growth_of(workload, groups, load.free_cpu_milli, demand)
        tie = _tie(groups, load.free_cpu_milli, demand, idle=idle)
        known = workload.scores[key] = Fit(growth // (STEP_MILLI * SCALE), tie)
    return known


def growth_of(workload: Workload, groups: tuple[GpuGroup, ...], cpu_milli: int, demand: GangDemand) -> int:
    """Milli-GPU times SCALE that become useless to a typical task. A share goes to the best GPU for it."""
    need = demand.per_task
    before = _usable(workload, groups, cpu_milli)
    left_milli = cpu_milli - need.cpu_milli
    if need.gpu_milli:
        _, _, after = best_share(workload, groups, cpu_milli, demand)
    else:
        after = _usable(workload, _without(groups, demand), left_milli)
    return before - after - SCALE * need.gpus_milli


def best_share(
    workload: Workload, groups: tuple[GpuGroup, ...], cpu_milli: int, demand: GangDemand
) -> tuple[GpuKind, int, int]:
    """Of which GPU a share is best taken: its kind, what is left of it, and what is usable then. Of those
    that do equally well, the one with the least left."""
    need, wish = demand.per_task, demand.gpu
    cpu_milli -= need.cpu_milli
    whole = _usable(workload, groups, cpu_milli)
    found: list[tuple[int, int, GpuKind]] = []
    for kind, free, lefts in groups:
        if not matches(kind, wish):
            continue
        table = workload.table(kind)
        here = table.usable(cpu_milli, free, lefts)
        for left in dict.fromkeys(lefts):
            if left >= need.gpu_milli:
                one = table.usable(cpu_milli, 0, (left,))
                then = table.usable(cpu_milli, 0, (left - need.gpu_milli,))
                found.append((one - then - whole, left, kind))
        if free:
            rest = (*lefts, WHOLE_GPU_MILLI - need.gpu_milli)
            then = table.usable(cpu_milli, free - 1, rest)
            found.append((here - then - whole, WHOLE_GPU_MILLI, kind))
    minus_usable, left, kind = min(found)
    return kind, left, -minus_usable


def _usable(workload: Workload, groups: tuple[GpuGroup, ...], cpu_milli: int) -> int:
    return sum(workload.table(kind).usable(cpu_milli, free, lefts) for kind, free, lefts in groups)


def _without(groups: tuple[GpuGroup, ...], demand: GangDemand) -> tuple[GpuGroup, ...]:
    """What is free when a task's whole GPUs are taken."""
    wanted, wish = demand.per_task.gpus, demand.gpu
    if not wanted:
        return groups
    rest = []
    for group in groups:
        taken = min(wanted, group.free) if matches(group.kind, wish) else 0
        wanted -= taken
        rest.append(GpuGroup(group.kind, group.free - taken, group.lefts))
    return tuple(rest)


def _tie(groups: tuple[GpuGroup, ...], cpu_milli: int, demand: GangDemand, *, idle: bool) -> int:
    need = demand.per_task
    left = sum(WHOLE_GPU_MILLI * free + sum(lefts) for _, free, lefts in groups)
    asked = need.gpus_milli
    if not asked:
        return int(left > 0)
    return 2 * idle + (cpu_milli * asked < need.cpu_milli * left)
