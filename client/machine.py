"""What this machine has, shared among the agents that `pace up` starts on it: equal parts, no overlap."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
HEAD_ROOM_BYTES_MIN: Final = 1 << 30


def cpu_share(count: int) -> float:
    """Whole cpus for each of `count` agents, at least 1: what this process may use, by affinity and quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for text in _cgroup_values("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota != "max":
            cpus = min(cpus, int(quota) // int(period))
    return max(1, cpus // count)


def memory_share_bytes(count: int) -> int:
    """What each of `count` agents offers: together no more than there is, less head room for the rest."""
    import psutil

    limits = [int(text) for text in _cgroup_values("memory.max") if text != "max"]
    total: int = min([psutil.virtual_memory().total, *limits])
    return (total - max(total // 10, min(HEAD_ROOM_BYTES_MIN, total // 2))) // count


def gpu_count() -> int:
    """GPUs that the NVIDIA driver knows."""
    try:
        return sum(1 for _ in Path("/proc/driver/nvidia/gpus").iterdir())
    except OSError:
        return 0


def gpu_share(index: int, count: int, gpus: int) -> str:
    """Which GPUs agent `index` of `count` offers, for its --gpus."""
    if count == 1:
        return "all"
    mine = range(index * gpus // count, (index + 1) * gpus // count)
    return ",".join(map(str, mine)) or "none"


def _cgroup_values(name: str) -> Iterator[str]:
    """What `name` says in this process's cgroup (version 2) and in those above it."""
    with suppress(OSError, IndexError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = _CGROUPS / next(line[3:].strip("/") for line in [*lines, "0::/"] if line.startswith("0::"))
        for folder in (own, *own.parents):
            if folder.is_relative_to(_CGROUPS) and (folder / name).is_file():
                yield (folder / name).read_text().strip()
