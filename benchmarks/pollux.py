"""Measured profiles of elastic training jobs, and workloads of them: those of the authors of Pollux.

Qiao et al., "Pollux: Co-adaptive Cluster Scheduling for Goodput-Optimized Deep Learning", OSDI'21; files of
petuum/adaptdl, branch osdi21-artifact, simulator/ (Apache-2.0). What they have measured on up to 16 nodes of
4 GPUs is read here: how long a step takes by placement and batch size, and the gradient's noise by progress.

Progress counts steps of the smallest batch size B0. A step with batch size B makes (v + s) / (v * B0 / B + s)
of it, s the square of the gradient's mean and v its variance there (the paper's equation 5: with the noise
scale p = v / s, a sample of a batch B is worth (p + B0) / (p + B) of one of B0). A job is over when it has
made the progress of its last epoch.
"""

import csv
import json
import random
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Final, NamedTuple

FOLDER: Final = Path("pollux")
NODES: Final = 16
NODE_GPUS: Final = 4
START_S: Final = 30.0
"""What each start of an attempt is charged with."""
LOCAL_BATCH_MAX: Final = {"yolov3": 8}
"""Of a GPU, where it is less than the largest that was measured (as in the authors' simulator)."""
ONE_GPU: Final = frozenset({"ncf"})
"""Applications whose jobs have one GPU and their batch size whatever there is (likewise)."""

Placement = tuple[int, ...]
"""GPUs on each of its nodes."""


class Timing(NamedTuple):
    step_s: float
    sync_s: float
    """Of the step, what is not spent again on each further micro-batch."""


class Batch(NamedTuple):
    """How a global batch is cut: `size` samples, `micro` on each GPU at a time, `passes` of them a step."""

    size: int
    micro: int
    passes: int


@dataclass(frozen=True, slots=True)
class PolluxJob:
    number: int
    name: str
    submit_s: float
    application: str
    gpus: int
    batch_size: int
    """Both as its user has chosen them."""


@dataclass(frozen=True, slots=True)
class _Epochs:
    """With one batch size, as they ended: progress, square of the gradient's mean, its variance."""

    progress: tuple[float, ...]
    mean_sqr: tuple[float, ...]
    variance: tuple[float, ...]


class Profile:
    """Of one application. What was not measured lies on a line between its neighbours."""

    def __init__(self, folder: Path) -> None:
        """Raises SystemExit with what is wrong and what to do."""
        self.name = folder.name
        self._exact: dict[Placement, dict[int, Timing]] = defaultdict(dict)
        shapes: dict[tuple[int, int], dict[int, list[Timing]]] = defaultdict(lambda: defaultdict(list))
        for row in _rows(folder / "placements.csv"):
            placement, local, timing = tuple(map(int, row["placement"])), int(row["local_bsz"]), _timing(row)
            self._exact[placement][local] = timing
            shapes[len(placement), sum(placement)][local].append(timing)
        for row in _rows(folder / "scalability.csv"):
            shape = int(row["num_nodes"]), int(row["num_replicas"])
            shapes[shape][int(row["local_bsz"])].append(_timing(row))
        self._shapes = {
            shape: {local: _mean(timings) for local, timings in curve.items()}
            for shape, curve in shapes.items()
        }
        self._epochs = {
            int(path.stem.partition("-")[2]): _epochs(path) for path in folder.glob("validation-*.csv")
        }
        if not self._epochs:
            raise SystemExit(f"error: {folder} has no validation-*.csv; give the folder that has pollux/")
        self.sizes = sorted(self._epochs)
        locals_ = [local for curve in self._exact.values() for local in curve]
        self.local_min = min(locals_)
        self.local_max = LOCAL_BATCH_MAX.get(self.name, max(locals_))
        count = min(len(each.progress) for each in self._epochs.values())
        self.ends = [min(each.progress[at] for each in self._epochs.values()) for at in range(count)]
        """Progress at the end of each epoch."""

    @property
    def gpus_max(self) -> int:
        """A GPU has at least the smallest batch that was measured."""
        return 1 if self.name in ONE_GPU else min(NODES * NODE_GPUS, self.sizes[-1] // self.local_min)

    def batch(self, size: int, gpus: int) -> Batch:
        """The nearest that can be had: as many on each GPU, as many in each pass. One GPU needs two passes to
        measure its gradient's noise beyond B0 (as in the authors' simulator)."""
        local = max(self.local_min, ceil(size / gpus - 1e-8))
        passes = ceil(local / self.local_max - 1e-8)
        if gpus == 1 and size > self.sizes[0]:
            passes = max(2, passes)
        micro = min(ceil(local / passes - 1e-8), self.sizes[-1] // (gpus * passes))
        return Batch(gpus * micro * passes, micro, passes)

    def step_s(self, placement: Placement, batch: Batch) -> float:
        timing = self.timing(placement, batch.micro)
        return timing.step_s + (batch.passes - 1) * (timing.step_s - timing.sync_s)

    def gain(self, size: int, epoch: int) -> float:
        """The progress of a step with this batch size."""
        above = min(bisect_left(self.sizes, size), len(self.sizes) - 1)
        below = max(0, min(bisect_right(self.sizes, size) - 1, above))
        low, high = self.sizes[below], self.sizes[above]
        share = (size - low) / (high - low) if high > low else 0.0
        share = min(1.0, max(0.0, share))
        ends = [self._epochs[each] for each in (low, high)]
        mean_sqr = ends[0].mean_sqr[epoch] * (1 - share) + ends[1].mean_sqr[epoch] * share
        variance = ends[0].variance[epoch] * (1 - share) + ends[1].variance[epoch] * share
        return (variance + mean_sqr) / (variance * self.sizes[0] / size + mean_sqr)

    @cache  # noqa: B019 - as long as the process
    def timing(self, placement: Placement, local: int) -> Timing:
        """Of a GPU with `local` samples at a time."""
        placement = min(placement[at:] + placement[:at] for at in range(len(placement)))
        if placement in self._exact:
            return _between(self._exact[placement], local)
        return self._of_shape(len(placement), sum(placement), local)

    def _of_shape(self, nodes: int, gpus: int, local: int) -> Timing:
        """Between the nearest numbers of nodes with which as many GPUs were measured, and there between the
        nearest numbers of GPUs."""
        by_nodes: dict[int, dict[int, Timing]] = defaultdict(dict)
        for (many, each), curve in self._shapes.items():
            by_nodes[many][each] = _between(curve, local)
        over = {many: _between(of, gpus) for many, of in by_nodes.items() if min(of) <= gpus <= max(of)}
        return _between(over or {many: _between(of, gpus) for many, of in by_nodes.items()}, nodes)


class Progress:
    """How far one job is; time runs only where it is told to."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._made = 0.0
        self._epoch = 0

    def left_s(self, placement: Placement, batch: Batch) -> float:
        """Until its end, if nothing changes."""
        step_s, left_s, made = self._profile.step_s(placement, batch), 0.0, self._made
        for epoch in range(self._epoch, len(self._profile.ends)):
            end = self._profile.ends[epoch]
            left_s += (end - made) * step_s / self._profile.gain(batch.size, epoch)
            made = end
        return left_s

    def run(self, placement: Placement, batch: Batch, seconds: float) -> float:
        """The seconds that were not needed."""
        step_s = self._profile.step_s(placement, batch)
        while self._epoch < len(self._profile.ends):
            rate = self._profile.gain(batch.size, self._epoch) / step_s
            needs_s = (self._profile.ends[self._epoch] - self._made) / rate
            if needs_s > seconds:
                self._made += rate * seconds
                return 0.0
            seconds -= needs_s
            self._made = self._profile.ends[self._epoch]
            self._epoch += 1
        return seconds

    @property
    def over(self) -> bool:
        return self._epoch == len(self._profile.ends)


def profiles(traces: Path) -> dict[str, Profile]:
    """By application. Raises SystemExit with what is wrong and what to do."""
    folders = sorted(path for path in (traces / FOLDER / "traces").glob("*") if path.is_dir())
    if not folders:
        raise SystemExit(
            f"error: {traces / FOLDER / 'traces'} has no profiles; give the folder of pollux/: --traces DIR"
        )
    return {folder.name: Profile(folder) for folder in folders}


def workload(path: Path) -> list[PolluxJob]:
    """In the order of submission. Raises SystemExit with what is wrong and what to do."""
    rows = sorted(_rows(path), key=lambda row: float(row["time"]))
    return [
        PolluxJob(
            number,
            row["name"],
            float(row["time"]),
            row["application"],
            int(row["num_replicas"]),
            int(row["batch_size"]),
        )
        for number, row in enumerate(rows, 1)
    ]


def find(traces: Path, named: str) -> Path:
    """A workload by its path, or by its name among those of load 1.0."""
    path = Path(named)
    return path if path.exists() else traces / FOLDER / "workloads" / f"{path.stem}.csv"


def published_h(traces: Path, policy: str, path: Path) -> float | None:
    """The mean completion time that the authors give for a workload; None: they give none here. Those of load
    2.0 are in `workloads-2.0`."""
    load = path.resolve().parent.name.partition("-")[2] or "1.0"
    told = traces / FOLDER / "expected" / f"{policy}-load{load}.json"
    found = json.loads(told.read_text())["avgs"].get(path.stem) if told.exists() else None
    return None if found is None else float(found) / 3600


def sample(traces: Path, seed: int) -> Path:
    """Made up, for those who have no trace at hand: two applications, and a workload, whose path is given."""
    dice = random.Random(seed)
    for name, sample_s in (("small", 0.0005), ("large", 0.002)):
        folder = traces / FOLDER / "traces" / name
        folder.mkdir(parents=True)
        locals_ = (16, 32, 64, 128)
        rows = [
            f"{shape},{local},{0.02 + sample_s * local + sync_s},{sync_s}"
            for shape, sync_s in (("1", 0.0), ("2", 0.01), ("4", 0.015), ("44", 0.04))
            for local in locals_
        ]
        _write(folder / "placements.csv", "placement,local_bsz,step_time,sync_time", rows)
        rows = [
            f"{nodes},{nodes * each},{local},{0.02 + sample_s * local + 0.05},0.05"
            for nodes, each in ((4, 1), (4, 4), (16, 1), (16, 4))
            for local in locals_
        ]
        _write(folder / "scalability.csv", "num_nodes,num_replicas,local_bsz,step_time,sync_time", rows)
        for size in (64, 256, 1024):
            rows = [f"{2000 * epoch},{0},0.5,1.0,{200 * epoch}" for epoch in range(1, 5)]
            _write(folder / f"validation-{size}.csv", "progress,iteration,metric,grad_sqr,grad_var", rows)
    path = traces / FOLDER / "workloads" / "sample.csv"
    path.parent.mkdir()
    rows = [
        f"{name}-{number},{dice.randrange(1200)},{name},{dice.choice((2, 4, 8))},256"
        for number, name in enumerate(dice.choices(("small", "large"), k=24))
    ]
    _write(path, "name,time,application,num_replicas,batch_size", rows)
    return path


def _write(path: Path, header: str, rows: Iterable[str]) -> None:
    path.write_text("\n".join((header, *rows)) + "\n")


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise SystemExit(f"error: {path} is not there; give the folder of pollux/: --traces DIR") from None


def _timing(row: dict[str, str]) -> Timing:
    return Timing(float(row["step_time"]), float(row["sync_time"]))


def _mean(timings: Sequence[Timing]) -> Timing:
    return Timing(*(sum(each) / len(timings) for each in zip(*timings, strict=True)))


def _between(curve: dict[int, Timing], at: int) -> Timing:
    """On the line between the nearest two; beyond them as at the last."""
    if at in curve:
        return curve[at]
    keys = sorted(curve)
    above = bisect_left(keys, at)
    if above in (0, len(keys)):
        return curve[keys[min(above, len(keys) - 1)]]
    low, high = keys[above - 1], keys[above]
    share = (at - low) / (high - low)
    return Timing(*(one + share * (other - one) for one, other in zip(curve[low], curve[high], strict=True)))


def _epochs(path: Path) -> _Epochs:
    rows = _rows(path)
    columns: Iterable[tuple[float, ...]] = (
        tuple(float(row[name]) for row in rows) for name in ("progress", "grad_sqr", "grad_var")
    )
    return _Epochs(*columns)
