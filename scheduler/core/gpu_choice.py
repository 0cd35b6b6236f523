"""Which GPUs of a node a task gets: those that reach each other and the host's memory best.

GPUs that NVLink joins are a group, and so are those of one NUMA node, whichever lies in the other. A task
gets its GPUs from the group with the fewest free ones of those that have enough, of equals the smaller, so
that others stay whole; within it, and where none has enough, from as few groups as can be. As Slurm binds
GPUs (`--gpu-bind=closest`, the links in gres.conf) and NVIDIA's device plugin for Kubernetes allocates them
(by the links of each pair).
"""

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from .node import NodeGpu

Group = frozenset[int]


def choose_gpus(free: Sequence[int], groups: Collection[Group], count: int) -> tuple[int, ...]:
    """`count` of those that are free, ascending; of equals the first."""
    left = sorted(free)
    chosen: list[int] = []
    while groups and len(chosen) < count:
        wanted = count - len(chosen)
        parts = [
            (len(group), part) for group in groups if (part := [index for index in left if index in group])
        ]
        enough = [(len(part), size, part) for size, part in parts if len(part) >= wanted]
        if enough:
            _, _, best = min(enough)
            narrower = [group for group in groups if 0 < len(group.intersection(best)) < len(best)]
            return tuple(sorted((*chosen, *choose_gpus(best, narrower, wanted))))
        if not parts:
            break
        chosen += min((-len(part), size, part) for size, part in parts)[-1]
        left = [index for index in left if index not in chosen]
    return tuple(sorted((*chosen, *left[: count - len(chosen)])))


@lru_cache(maxsize=4096)
def groups_of(gpus: tuple[NodeGpu, ...]) -> tuple[Group, ...]:
    """Those of one NUMA node, and those that are linked, each once."""
    found: dict[tuple[str, int], set[int]] = {}
    for gpu in gpus:
        if gpu.numa >= 0:
            found.setdefault(("numa", gpu.numa), set()).add(gpu.index)
        if gpu.linked >= 0:
            found.setdefault(("linked", gpu.linked), set()).add(gpu.index)
    return tuple(dict.fromkeys(map(frozenset, found.values())))


def linked_groups(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """For each GPU that is linked the least index of those that it is joined to, by others too."""
    group: dict[int, int] = {}
    for pair in pairs:
        old = {group.get(index, index) for index in pair}
        for index in (*pair, *(index for index, number in group.items() if number in old)):
            group[index] = min(old)
    return group
