"""What tasks typically ask for, learnt from what was submitted: the yardstick of fragmentation (packing.py).

Beside the state: it follows from the jobs that this scheduler has seen, and is built anew by recovery from
those that wait or run. All in whole numbers: no order of adding up changes a decision.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from ...spec.resources import WHOLE_GPU_MILLI, GangDemand, GpuWish
from .node import GpuKind, matches

if TYPE_CHECKING:
    from .packing import Fit

SCALE: Final = 1_000_000
"""Shares of the workload are counted in millionths."""
TASKS_MAX: Final = 8192
"""When more tasks than this are counted, all counts are halved: what came long ago weighs less."""
KINDS_MAX: Final = 256
MOVED_MIN: Final = SCALE // 16
"""The tables follow when so much of the workload has become of another kind."""


class Kind(NamedTuple):
    """Tasks that ask for the same."""

    cpu_milli: int
    gpus: int
    gpu_milli: int
    gpu: GpuWish


@dataclass(frozen=True, slots=True)
class Table:
    """Of the tasks that may run on one kind of GPU, how many fit into what: in millionths of all tasks."""

    cpus: list[int]
    """Ascending; row `at` below is of the tasks that need no more cpu than the first `at` of these."""
    sharing: list[list[int]]
    """Row, then class of what is left of a GPU: tasks whose share fits into it."""
    whole: list[list[int]]
    """Row, then a count of whole GPUs (of more than there are columns: the last): tasks that need no more."""
    left_class: list[int]
    """Milli-GPU that are left of a GPU -> class."""

    def usable(self, cpu_milli: int, free: int, lefts: tuple[int, ...]) -> int:
        """Milli-GPU that a typical task could use of a node with so much cpu and so many whole GPUs free, and
        so much left of shared ones; times SCALE."""
        row = bisect_right(self.cpus, cpu_milli)
        sharing, classes = self.sharing[row], self.left_class
        total = 0
        if free:
            whole = self.whole[row]
            total = WHOLE_GPU_MILLI * free * (sharing[-1] + whole[free if free < len(whole) else -1])
        for left in lefts:
            total += left * sharing[classes[left]]
        return total


@dataclass(slots=True)
class Workload:
    """Tasks by kind. `version` grows when the shares of the kinds, as the tables have them, change."""

    counts: dict[Kind, int] = field(default_factory=dict)
    total: int = 0
    version: int = 0
    shares: dict[Kind, int] = field(default_factory=dict)
    """In millionths, as of `version`."""
    tables: dict[GpuKind, Table] = field(default_factory=dict)
    """By kind of GPU, made when they are first asked for."""
    scores: dict[tuple[object, ...], "Fit"] = field(default_factory=dict)
    """Memo of packing.py."""
    unseen: int = 0
    """Tasks since the shares were last compared with the counts."""

    def learn(self, demand: GangDemand, jobs: int = 1) -> None:
        need, count = demand.per_task, demand.instance_count * jobs
        kind = Kind(need.cpu_milli, need.gpus, need.gpu_milli, demand.gpu)
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.total += count
        self.unseen += count
        if self.unseen * 4 >= self.total:
            self._compare()

    def table(self, gpu: GpuKind) -> Table:
        known = self.tables.get(gpu)
        if known is None:
            known = self.tables[gpu] = _table(self.shares, gpu)
        return known

    def _compare(self) -> None:
        self.unseen = 0
        while self.total > TASKS_MAX:
            self.counts = {kind: count // 2 for kind, count in self.counts.items() if count > 1}
            self.total = sum(self.counts.values())
        if len(self.counts) > KINDS_MAX:
            common = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:KINDS_MAX]
            self.counts = dict(common)
            self.total = sum(self.counts.values())
        shares = {kind: count * SCALE // self.total for kind, count in self.counts.items()}
        kinds = shares.keys() | self.shares.keys()
        moved = sum(abs(shares.get(kind, 0) - self.shares.get(kind, 0)) for kind in kinds)
        if moved > 2 * MOVED_MIN:
            self.shares, self.tables, self.scores = shares, {}, {}
            self.version += 1


def _table(shares: dict[Kind, int], gpu: GpuKind) -> Table:
    kinds = {
        kind: share
        for kind, share in shares.items()
        if (kind.gpus or kind.gpu_milli) and matches(gpu, kind.gpu)
    }
    cpus = sorted({kind.cpu_milli for kind in kinds})
    millis = sorted({kind.gpu_milli for kind in kinds if kind.gpu_milli})
    gpus_max = max((kind.gpus for kind in kinds), default=0)
    sharing = [[0] * (len(millis) + 1) for _ in range(len(cpus) + 1)]
    whole = [[0] * (gpus_max + 1) for _ in range(len(cpus) + 1)]
    for kind, share in kinds.items():
        row = bisect_right(cpus, kind.cpu_milli)
        if kind.gpu_milli:
            sharing[row][bisect_right(millis, kind.gpu_milli)] += share
        else:
            whole[row][kind.gpus] += share
    for rows in (sharing, whole):
        _add_up(rows)
    classes = [bisect_right(millis, left) for left in range(WHOLE_GPU_MILLI + 1)]
    return Table(cpus, sharing, whole, classes)


def _add_up(rows: list[list[int]]) -> None:
    """Each cell becomes the sum of those that are in no later row and no later column."""
    for at, row in enumerate(rows):
        before = 0
        for column, value in enumerate(row):
            before += value
            row[column] = before + (rows[at - 1][column] if at else 0)
