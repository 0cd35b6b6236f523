"""Amounts as people read them."""

from collections.abc import Sequence
from typing import Final

from ...spec.resources import ANY_GPU, WHOLE_GPU_MILLI, GangDemand, GpuWish, Resources

_SPELT_WITH_VOWEL: Final = frozenset("AEFHILMNORSX")


def duration_text(us: int) -> str:
    """`340 ms`, `12.5 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = us / 1e6
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f}".rstrip("0").rstrip(".") + " s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size_text(size_bytes: int) -> str:
    """`512 MiB`, `1.5 GiB`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def others_of(numbers: Sequence[int], count: int) -> list[tuple[int, int]]:
    """The ranges (first, last) of what is below `count` and not among these."""
    found, low = [], 0
    for number in (*sorted(number for number in numbers if number < count), count):
        if number > low:
            found.append((low, number - 1))
        low = max(low, number + 1)
    return found


def ranks_text(ranges: Sequence[tuple[int, int]]) -> str:
    """`rank 3`, `ranks 0, 2-5`; of many ranges the first eight."""
    parts = [str(low) if low == high else f"{low}-{high}" for low, high in ranges[:8]]
    one = len(ranges) == 1 and ranges[0][0] == ranges[0][1]
    return f"{'rank' if one else 'ranks'} {', '.join(parts)}" + (" and more" if len(ranges) > 8 else "")


def cpu_text(cpu_milli: int) -> str:
    return f"{cpu_milli / 1000:g}"


def cpus_text(cpu_milli: int) -> str:
    """`1 cpu`, `0.5 cpus`."""
    return f"{cpu_text(cpu_milli)} cpu{'s' if cpu_milli != 1000 else ''}"


def gpus_text(count: int, wish: GpuWish = ANY_GPU) -> str:
    """`4 H100 GPUs`, `1 GPU of 40 GiB or more`, `2 1g.5gb MIG slices`."""
    kind = " or ".join(wish.models)
    noun = "MIG slice" if wish.slices else "GPU"
    return f"{count} {kind + ' ' if kind else ''}{noun}{'s' if count != 1 else ''}{_least_text(wish)}"


def _least_text(wish: GpuWish) -> str:
    return f" of {size_text(wish.memory_bytes)} or more" if wish.memory_bytes else ""


def milli_gpus_text(gpu_milli: int) -> str:
    """`1 GPU`, `2.5 GPUs`."""
    return f"{gpu_milli / WHOLE_GPU_MILLI:g} GPU{'' if gpu_milli == WHOLE_GPU_MILLI else 's'}"


def gpu_share_text(gpu_milli: int, wish: GpuWish = ANY_GPU) -> str:
    """`0.5 of a GPU`, `0.5 of an H100`."""
    kind = " or ".join(wish.models) or "GPU"
    spelt = len(kind) > 1 and kind[0] in _SPELT_WITH_VOWEL and not kind[1].islower()
    article = "an" if spelt and wish.models else "a"
    return f"{gpu_milli / WHOLE_GPU_MILLI:g} of {article} {kind}{_least_text(wish)}"


def resources_text(amount: Resources, wish: GpuWish = ANY_GPU) -> str:
    """`4 H100 GPUs, 8 cpus, 16 GiB`."""
    parts = []
    if amount.gpus:
        parts.append(gpus_text(amount.gpus, wish))
    if amount.gpu_milli:
        parts.append(gpu_share_text(amount.gpu_milli, wish))
    if amount.cpu_milli:
        parts.append(cpus_text(amount.cpu_milli))
    if amount.memory_bytes:
        parts.append(size_text(amount.memory_bytes))
    return ", ".join(parts) or "no resources of its own"


def demand_text(demand: GangDemand, count: int | None = None) -> str:
    """`2 tasks x (4 GPUs, 8 cpus)`; of an elastic gang `1 to 4 tasks x (...)`. `count`: as it was placed."""
    each = resources_text(demand.per_task, demand.gpu)
    pool = f" of pool {demand.pool}" if demand.pool else ""
    if count is None and demand.elastic:
        return f"{demand.instance_count_min} to {demand.instance_count_max} tasks x ({each}){pool}"
    count = demand.instance_count if count is None else count
    return f"1 task with {each}{pool}" if count == 1 else f"{count} tasks x ({each}){pool}"


def lost_text(step: int, saved_step: int, lost_us: int) -> str:
    """What an attempt had done that no checkpoint holds."""
    since = f"since the checkpoint of step {saved_step}" if saved_step >= 0 else "and no checkpoint was made"
    steps = step - max(saved_step, 0)
    if steps > 0:
        return f"{steps} step{'s' if steps != 1 else ''} and {duration_text(lost_us)} {since}"
    return f"{duration_text(lost_us)} {since}"
