"""What a task, a gang or a node counts as, in thousandths of a GPU: where cpus and GPUs are compared."""

from typing import Final

from ...spec.resources import GangDemand, Resources

CPUS_AS_GPU: Final = 16
"""So many cpus count as one GPU where a task takes no GPU."""


def weight_milli(need: Resources) -> int:
    """Thousandths of a GPU that a task, or a node, counts as."""
    return need.gpus_milli or need.cpu_milli // CPUS_AS_GPU


def gang_milli(demand: GangDemand, tasks: int) -> int:
    return weight_milli(demand.per_task) * tasks
