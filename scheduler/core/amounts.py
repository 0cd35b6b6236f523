"""Amounts as people read them."""

from collections.abc import Sequence

from ...spec.resources import GangDemand, Resources


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


def ranges_text(numbers: Sequence[int]) -> str:
    """`0, 2-5, 9`, of growing numbers; of many ranges the first eight."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    parts = [str(low) if low == high else f"{low}-{high}" for low, high in ranges[:8]]
    return ", ".join(parts) + (" and more" if len(ranges) > 8 else "")


def cpu_text(cpu_milli: int) -> str:
    return f"{cpu_milli / 1000:g}"


def gpus_text(count: int, models: tuple[str, ...] = ()) -> str:
    kind = " or ".join(models)
    return f"{count} {kind + ' ' if kind else ''}GPU{'s' if count != 1 else ''}"


def resources_text(amount: Resources, models: tuple[str, ...] = ()) -> str:
    """`4 H100 GPUs, 8 cpus, 16 GiB`."""
    parts = []
    if amount.gpus:
        parts.append(gpus_text(amount.gpus, models))
    if amount.cpu_milli:
        parts.append(f"{cpu_text(amount.cpu_milli)} cpu{'s' if amount.cpu_milli != 1000 else ''}")
    if amount.memory_bytes:
        parts.append(size_text(amount.memory_bytes))
    return ", ".join(parts) or "no resources of its own"


def demand_text(demand: GangDemand) -> str:
    """`2 tasks x (4 GPUs, 8 cpus)`."""
    count = demand.instance_count
    each = resources_text(demand.per_task, demand.gpu_models)
    return f"1 task with {each}" if count == 1 else f"{count} tasks x ({each})"
