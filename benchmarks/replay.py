"""replay: a month of Philly's jobs on nodes of 8 GPUs, by the scheduler's own engine and as others do it.

    python -m benchmarks.replay [--traces DIR] [--from DAY] [--to DAY] [--nodes N ...]

Ours is the code that places jobs in production (scheduler/loop_engine.py), driven by a clock that jumps from
one arrival or end to the next; the others are in peers/lines.py. A job's completion time (JCT) goes from its
submission to its end; what it has queued is its JCT without its duration. The floor is the mean duration.
"""

from collections.abc import Sequence
from datetime import date
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Final

from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.effects import StartTask
from paceline.scheduler.core.job import Shape
from paceline.scheduler.core.node import NodeGpu, NodeInventory
from paceline.scheduler.core.settings import Settings
from paceline.scheduler.loop_engine import Engine
from paceline.scheduler.store.base import Loaded
from paceline.spec.ids import JobId, Micros, NodeId
from paceline.spec.resources import GangDemand, Resources
from rich.console import Console

from .cluster import version
from .harness import Report, Row, Sample, parser, quantile, read
from .peers.lines import POLICIES, replay
from .philly import NODE_GPUS, TraceJob, jobs_between, mean_duration_h, sample_jobs

TRACES: Final = Path("..", "shared", "traces")
NODES: Final = (64, 80, 96)
QUICK_JOBS, QUICK_NODES = 400, 4
_SILENT: Final = Settings(heartbeat_us=10**15)
"""Nobody beats here: no time is long enough for a node to be lost."""
_NODE: Final = Resources(cpu_milli=128_000, memory_bytes=1 << 40, gpus=NODE_GPUS)


class Ours:
    """The engine, with nodes that do at once what they are told."""

    def __init__(self, nodes: int) -> None:
        self._engine = Engine(Loaded(0, JobId(0), Micros(0), ()), _SILENT)
        self._ends: list[tuple[float, int, list[StartTask]]] = []
        self._order = count()
        self._jobs: dict[JobId, TraceJob] = {}
        self._tasks: dict[JobId, list[StartTask]] = {}
        self.started_s: dict[int, float] = {}
        self._step(0.0, [self._hello(number) for number in range(1, nodes + 1)])

    @property
    def next_end_s(self) -> float:
        """Of those that run; infinite when nobody does."""
        return self._ends[0][0] if self._ends else float("inf")

    def submit(self, job: TraceJob, now_s: float) -> None:
        demand = GangDemand(
            Resources(gpus=job.gpus), job.tasks, instance_count_min=job.tasks, instance_count_max=job.tasks
        )
        self._jobs[JobId(job.number)] = job  # the engine counts as the trace does
        new = s.NewJob(str(job.number), 0, Shape(demand), "{}")
        self._step(now_s, [s.Submit(str(job.number), "philly", (new,))])

    def end(self, now_s: float) -> None:
        """Of the next one that is over."""
        *_, tasks = heappop(self._ends)
        told = (s.Exited(0, 0), s.Ended((0,), (0,)))
        self._step(now_s, [_reports(task, 2, *told) for task in tasks])

    def _step(self, now_s: float, stimuli: Sequence[s.Stimulus]) -> None:
        """What it starts has started before the next moment."""
        more = True
        while more or stimuli:
            step = self._engine.step(stimuli, Micros(round(now_s * 1e6)), {})
            stimuli, more = [], step.more
            for effect in step.effects:
                if isinstance(effect, StartTask):
                    stimuli.append(_reports(effect, 1, s.Started((1,), "warm")))
                    self._on_start(effect, now_s)

    def _on_start(self, task: StartTask, now_s: float) -> None:
        job = self._jobs[task.key.job]
        tasks = self._tasks.setdefault(task.key.job, [])
        tasks.append(task)
        if len(tasks) == job.tasks:
            self.started_s[job.number] = now_s
            heappush(self._ends, (now_s + job.duration_s, next(self._order), tasks))
            del self._jobs[task.key.job], self._tasks[task.key.job]

    def _hello(self, number: int) -> s.Hello:
        name = f"node-{number:04}"
        gpus = tuple(NodeGpu(index, "NVIDIA P100") for index in range(NODE_GPUS))
        return s.Hello(NodeId(name), number, "boot", NodeInventory(name, f"{name}.test", _NODE, gpus))


def _reports(task: StartTask, first_seq: int, *told: s.Said) -> s.Reports:
    return s.Reports(
        task.node, tuple(s.Entry(task.key, seq, said) for seq, said in enumerate(told, first_seq))
    )


def ours(jobs: Sequence[TraceJob], nodes: int) -> list[float]:
    """The seconds that each job has queued."""
    cluster, at = Ours(nodes), 0
    while at < len(jobs) or cluster.next_end_s < float("inf"):
        if at < len(jobs) and jobs[at].submit_s < cluster.next_end_s:
            cluster.submit(jobs[at], jobs[at].submit_s)
            at += 1
        else:
            cluster.end(cluster.next_end_s)
    return [cluster.started_s[job.number] - job.submit_s for job in jobs]


def main(argv: Sequence[str] | None = None) -> None:
    options = parser("replay", __doc__.partition("\n")[0])
    options.add_argument("--traces", type=Path, default=TRACES, metavar="DIR", help=f"default {TRACES}")
    options.add_argument(
        "--from", type=date.fromisoformat, dest="first", default=date(2017, 10, 9), metavar="DAY"
    )
    options.add_argument(
        "--to", type=date.fromisoformat, dest="last", default=date(2017, 11, 8), metavar="DAY"
    )
    options.add_argument("--nodes", type=int, nargs="+", default=NODES, metavar="N", help="of 8 GPUs each")
    given = options.parse_args(argv)
    common = read(options, given)
    report = Report("replay", versions={"paceline": version()})
    if common.quick:
        jobs, sizes = sample_jobs(QUICK_JOBS, QUICK_NODES, seed=1), [QUICK_NODES]
        report.left_out("the trace: made-up jobs in its proportions")
    else:
        jobs, sizes = jobs_between(given.traces, given.first, given.last), given.nodes
    least = max(job.tasks for job in jobs)
    if min(sizes) < least:
        options.error(f"--nodes: a job here wants {least} nodes, got {min(sizes)}")
    for nodes in sizes:
        _add_rows(report, jobs, nodes)
    report.notes.append(
        f"{len(jobs):,} jobs, mean duration {mean_duration_h(jobs):.2f} h; "
        "all is computed, nothing timed: a second run gives the same figures"
    )
    report.finish(common)


def _add_rows(report: Report, jobs: Sequence[TraceJob], nodes: int) -> None:
    case, floor = f"{nodes} nodes x {NODE_GPUS}", Sample((mean_duration_h(jobs),))
    progress = Console(stderr=True)
    progress.print(f"{case}: ours ...")
    mine = _figures(jobs, ours(jobs, nodes))
    for name, policy in POLICIES.items():
        progress.print(f"{case}: {name} ...")
        theirs = _figures(jobs, replay(jobs, nodes, policy))
        report.rows.append(
            Row(case, "mean JCT", "h", mine[0], name, theirs[0], floor_name="mean duration", floor=floor)
        )
        report.rows.append(Row(case, "queued, p99.9", "h", mine[1], name, theirs[1]))


def _figures(jobs: Sequence[TraceJob], queued_s: Sequence[float]) -> tuple[Sample, Sample]:
    """Mean JCT and the 99.9th percentile of what jobs have queued, in hours."""
    mean_h = sum(job.duration_s + each for job, each in zip(jobs, queued_s, strict=True)) / len(jobs) / 3600
    return Sample((mean_h,)), Sample((quantile(queued_s, 0.999) / 3600,))


if __name__ == "__main__":
    main()
