"""Jobs of a day long gone: Philly's trace, as the authors of Pollux have derived it.

Philly: Jeon et al., "Analysis of Large-Scale Multi-Tenant GPU Clusters for DNN Training Workloads", USENIX
ATC'19 (msr-fiddle/philly-traces, CC-BY-4.0). The derived file: petuum/adaptdl, branch osdi21-artifact
(Apache-2.0); its rows are in no order, and have no users and no failures.
"""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Final

NODE_GPUS: Final = 8
FILE: Final = Path("philly", "philly_jobs.csv")


@dataclass(frozen=True, slots=True)
class TraceJob:
    """`submit_s` is counted from the first day's midnight. `tasks` equal parts, each on a node of its own."""

    number: int
    submit_s: float
    duration_s: float
    tasks: int
    gpus: int
    """Of each task."""


def jobs_between(traces: Path, first: date, last: date) -> list[TraceJob]:
    """Those submitted on these days, both included, in the order of their submission.

    Raises SystemExit with what is wrong and what to do.
    """
    path = traces / FILE
    begin, end = _midnight(first), _midnight(last + timedelta(days=1))
    try:
        with path.open(newline="") as file:
            rows = [
                ((datetime.fromisoformat(row["timestamp"]) - begin).total_seconds(), row)
                for row in csv.DictReader(file)
                if begin <= datetime.fromisoformat(row["timestamp"]) < end
            ]
    except FileNotFoundError:
        raise SystemExit(
            f"error: {path} is not there; give the folder that has it with --traces DIR"
        ) from None
    if not rows:
        raise SystemExit(f"error: {path} has no job from {first} to {last}; give other days")
    rows.sort(key=lambda row: row[0])
    return [
        _job(number, submit_s, float(row["duration"]), int(row["num_gpus"]))
        for number, (submit_s, row) in enumerate(rows, 1)
    ]


def sample_jobs(count: int, nodes: int, seed: int) -> list[TraceJob]:
    """Made up, in Philly's proportions, at 95 % load: for those who have no trace at hand."""
    dice = random.Random(seed)
    sizes = dice.choices((1, 2, 4, 8, 16), (86, 4, 5, 4, 1), k=count)
    durations_s = [min(dice.lognormvariate(7.0, 1.8), 200_000.0) for _ in range(count)]
    work_s = sum(size * duration_s for size, duration_s in zip(sizes, durations_s, strict=True))
    span_s = work_s / (0.95 * nodes * NODE_GPUS)
    submits_s = sorted(dice.uniform(0, span_s) for _ in range(count))
    return [_job(number, *of) for number, of in enumerate(zip(submits_s, durations_s, sizes, strict=True), 1)]


def mean_duration_h(jobs: Sequence[TraceJob]) -> float:
    """What no scheduler can be below."""
    return sum(job.duration_s for job in jobs) / len(jobs) / 3600


def _job(number: int, submit_s: float, duration_s: float, gpus: int) -> TraceJob:
    tasks = -(-gpus // NODE_GPUS)
    return TraceJob(number, submit_s, duration_s, tasks, -(-gpus // tasks))


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day)
