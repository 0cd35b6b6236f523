"""BestFit, GpuPacking and FGD as the simulator of FGD's authors runs them, over one list of tasks.

Written anew after hkust-adsl/kubernetes-scheduler-simulator (pkg/simulator/plugin: best_fit_score.go,
gpu_packing_score.go, fgd_score.go, open_gpu_share.go; pkg/utils/frag.go), integer truncations included: a
score is a whole number from 0 to 100, and the first node in order wins a tie. The order is the simulator's,
too: it puts a random number before each node's name.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..openb import MILLI, Node, Task

GPUS_MAX: Final = 8
SCORE_MAX: Final = 100
MAX_SPEC_CPU: Final = 128_000
MAX_SPEC_GPU: Final = 8_000
POPULAR: Final = 0.95
"""FGD's typical tasks: the commonest kinds, until they are so much of the workload."""

Array = np.ndarray[Any, np.dtype[Any]]
Kind = tuple[int, int, int, tuple[str, ...]]


@dataclass(slots=True)
class Cluster:
    """What is left, a row for each node."""

    cpu: Array
    memory: Array
    gpu: Array
    """Milli-GPU left; 0 where the node has no such GPU."""
    count: Array
    """GPUs that it has."""
    model: Array


Score = Callable[[Cluster, Array, Task], tuple[Array, Array]]
"""Of some rows: scores, and of which GPU a share would be taken."""


def run(nodes: Sequence[Node], tasks: Sequence[Task], score: Score) -> float:
    """Part of the GPUs that is allocated when all tasks have come, one after the other; who does not fit is
    dropped."""
    cluster = _cluster(nodes)
    known: dict[Kind, tuple[Array, Array, list[int]]] = {}
    changes: list[int] = []
    seen: dict[Kind, int] = {}
    taken = 0
    for task in tasks:
        kind = task.kind
        if kind not in known:
            known[kind] = (np.zeros(len(nodes), int), np.zeros(len(nodes), int), [])
            dirty = np.arange(len(nodes))
        else:
            dirty = np.unique(np.array(changes[seen[kind] :], int))
        seen[kind] = len(changes)
        scores, gpus, _ = known[kind]
        if len(dirty):
            fit = dirty[_room(cluster, dirty, task)]
            scores[dirty] = -1
            if len(fit):
                scores[fit], gpus[fit] = score(cluster, fit, task)
        open_scores = np.where(cluster.memory >= task.memory_mib, scores, -1)
        at = int(np.argmax(open_scores))
        if open_scores[at] < 0:
            continue
        _take(cluster, at, int(gpus[at]), task)
        changes.append(at)
        taken += task.gpu_milli_total
    return taken / sum(MILLI * node.gpus for node in nodes)


def best_fit(cluster: Cluster, rows: Array, task: Task) -> tuple[Array, Array]:
    cpu = (cluster.cpu[rows] - task.cpu_milli) / MAX_SPEC_CPU
    gpu = (cluster.gpu[rows].sum(1) - task.gpu_milli_total) / MAX_SPEC_GPU
    return ((1 - 0.5 * cpu - 0.5 * gpu) * SCORE_MAX).astype(int), _tightest(cluster, rows, task)


def packing(cluster: Cluster, rows: Array, task: Task) -> tuple[Array, Array]:
    """Shared GPUs first, then free ones on a used node, then those of a free node."""
    gpu = cluster.gpu[rows]
    free = (gpu == MILLI).sum(1)
    if not task.gpus:
        return np.zeros(len(rows), int), np.zeros(len(rows), int)
    has = np.arange(GPUS_MAX) < cluster.count[rows][:, None]
    ordered = np.sort(np.where(has & (gpu >= task.gpu_milli), gpu, 2 * MILLI), axis=1)[:, : task.gpus]
    whole = (ordered == MILLI).sum(1)
    on_shared = np.maximum(SCORE_MAX - (ordered * 100 // MILLI).sum(1) // 10, SCORE_MAX // 2)
    on_free = np.maximum(SCORE_MAX // 2 - whole, SCORE_MAX // 3)
    on_empty = np.maximum(SCORE_MAX // 3 - free, free)
    scores = np.where(free == cluster.count[rows], on_empty, np.where(whole > 0, on_free, on_shared))
    return scores, _tightest(cluster, rows, task)


def fgd(workload: Sequence[Task]) -> Score:
    """`workload`: what the typical tasks are taken from, all of it known beforehand."""
    typical = _typical(workload)

    def score(cluster: Cluster, rows: Array, task: Task) -> tuple[Array, Array]:
        cpu, gpu, model = cluster.cpu[rows], cluster.gpu[rows], cluster.model[rows]
        before = _fragments(typical, cpu, gpu, model)
        if not 0 < task.gpu_milli < MILLI:
            left = _without_whole(gpu, task.gpus)
            after = _fragments(typical, cpu - task.cpu_milli, left, model)
            return _sigmoid(before - after), np.zeros(len(rows), int)
        best, chosen = np.full(len(rows), -1), np.zeros(len(rows), int)
        for at in range(GPUS_MAX):
            left = gpu.copy()
            left[:, at] -= task.gpu_milli
            can = left[:, at] >= 0
            if not can.any():
                continue
            after = _fragments(typical, cpu[can] - task.cpu_milli, left[can], model[can])
            found = np.full(len(rows), -1)
            found[can] = _sigmoid(before[can] - after)
            better = found > best
            best, chosen = np.where(better, found, best), np.where(better, at, chosen)
        return best, chosen

    return score


def _cluster(nodes: Sequence[Node]) -> Cluster:
    gpu = np.zeros((len(nodes), GPUS_MAX), int)
    for at, node in enumerate(nodes):
        gpu[at, : node.gpus] = MILLI
    return Cluster(
        np.array([node.cpu_milli for node in nodes]),
        np.array([node.memory_mib for node in nodes]),
        gpu,
        np.array([node.gpus for node in nodes]),
        np.array([node.model for node in nodes]),
    )


def _room(cluster: Cluster, rows: Array, task: Task) -> Array:
    """Where it fits, memory left aside: that differs among tasks of a kind."""
    fits = cluster.cpu[rows] >= task.cpu_milli
    if task.gpus:
        fits &= (cluster.gpu[rows] >= task.gpu_milli).sum(1) >= task.gpus
        if task.models:
            fits &= np.isin(cluster.model[rows], task.models)
    return fits


def _take(cluster: Cluster, at: int, gpu: int, task: Task) -> None:
    cluster.cpu[at] -= task.cpu_milli
    cluster.memory[at] -= task.memory_mib
    if 0 < task.gpu_milli < MILLI:
        cluster.gpu[at, gpu] -= task.gpu_milli
    elif task.gpus:
        cluster.gpu[at] = _without_whole(cluster.gpu[at : at + 1], task.gpus)[0]
    assert cluster.cpu[at] >= 0 and (cluster.gpu[at] >= 0).all()


def _tightest(cluster: Cluster, rows: Array, task: Task) -> Array:
    gpu = cluster.gpu[rows]
    tightest: Array = np.argmin(np.where(gpu >= max(task.gpu_milli, 1), gpu, 2 * MILLI), axis=1)
    return tightest


def _without_whole(gpu: Array, wanted: int) -> Array:
    """The first so many of those that are wholly free are taken."""
    free = gpu == MILLI
    return np.where(free & (np.cumsum(free, axis=1) <= wanted), 0, gpu)


@dataclass(frozen=True, slots=True)
class Alike:
    """Typical tasks that ask for the same GPUs."""

    gpus: int
    milli: int
    models: tuple[str, ...]
    cpus: Array
    """Ascending."""
    shares: Array
    """Of those that need no more cpu than the first so many of `cpus`."""


def _typical(workload: Sequence[Task]) -> list[Alike]:
    counts = sorted(Counter(task.kind for task in workload).items(), key=lambda item: (-item[1], item[0]))
    chosen: list[tuple[Kind, int]] = []
    for item in counts:
        if sum(count for _, count in chosen) >= POPULAR * len(workload):
            break
        chosen.append(item)
    total = sum(count for _, count in chosen)
    alike: dict[tuple[int, int, tuple[str, ...]], list[tuple[int, float]]] = {}
    for (cpu_milli, *asked), count in sorted(chosen):
        alike.setdefault(tuple(asked), []).append((cpu_milli, count / total))  # type: ignore[arg-type]
    return [
        Alike(*asked, np.array([cpu for cpu, _ in tasks]), np.cumsum([0.0, *(share for _, share in tasks)]))
        for asked, tasks in alike.items()
        if asked[0]
    ]


def _fragments(typical: list[Alike], cpu: Array, gpu: Array, model: Array) -> Array:
    """Milli-GPU that a typical task could not use; to a task without GPU all of it is useless."""
    fragments: Array = gpu.sum(1).astype(float)
    for alike in typical:
        enough = gpu >= alike.milli
        hosts = enough.sum(1) >= alike.gpus
        if alike.models:
            hosts &= np.isin(model, alike.models)
        share = alike.shares[np.searchsorted(alike.cpus, cpu, side="right")]
        fragments -= share * hosts * (gpu * enough).sum(1)
    return fragments


def _sigmoid(growth: Array) -> Array:
    return (SCORE_MAX / (1 + np.exp(-growth / MILLI))).astype(int)
