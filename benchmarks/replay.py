"""replay: a month of Philly's jobs on nodes of 8 GPUs, by the scheduler's own engine and as others do it.

    python -m benchmarks.replay [--traces DIR] [--from DAY] [--to DAY] [--nodes N ...]

Ours is the code that places jobs in production (scheduler/loop_engine.py), driven by a clock that jumps from
one arrival or end to the next; the others are in peers/lines.py. A job's completion time (JCT) goes from its
submission to its end; what it has queued is its JCT without its duration (for ours with the 30 s that each
preemption is charged with). The floor is the mean duration.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import date
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Final

from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.effects import StartTask, StopTask
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
SAVES_AFTER_S: Final = 300.0
RESTART_S: Final = 30.0
"""Charged for each preemption."""
_SILENT: Final = Settings(heartbeat_us=10**15)
"""Nobody beats here: no time is long enough for a node to be lost."""
_NODE: Final = Resources(cpu_milli=128_000, memory_bytes=1 << 40, gpus=NODE_GPUS)


class _Run:
    """A job's course: what is left of it, and its current attempt."""

    def __init__(self, job: TraceJob) -> None:
        self.job = job
        self.left_s = job.duration_s
        self.started_s = 0.0
        self.tasks: list[StartTask] = []
        self.seqs: Counter[int] = Counter()
        """Of each task of the attempt: what it has told so far."""
        self.step = 0

    def tells(self, task: StartTask, *told: s.Said) -> s.Reports:
        first = self.seqs[task.key.task] + 1
        self.seqs[task.key.task] += len(told)
        entries = (s.Entry(task.key, seq, said) for seq, said in enumerate(told, first))
        return s.Reports(task.node, tuple(entries))


class Ours:
    """The engine, with nodes that do at once what they are told. A job saves its first checkpoint after five
    minutes, and another when it is told to leave; then it has 30 s more to run."""

    def __init__(self, nodes: int) -> None:
        self._engine = Engine(Loaded(0, JobId(0), Micros(0), ()), _SILENT)
        self._moments: list[tuple[float, int, str, _Run, int]] = []
        self._order = count()
        self._runs: dict[JobId, _Run] = {}
        self.ended_s: dict[int, float] = {}
        self.stopped = 0
        self._tell(0.0, [self._hello(number) for number in range(1, nodes + 1)])

    @property
    def next_s(self) -> float:
        """When something happens by itself; infinite when nobody runs or waits."""
        if not self._runs:
            return float("inf")
        due_us = self._engine.next_due_us()
        return min(self._moments[0][0] if self._moments else float("inf"), (due_us or 10**18) / 1e6)

    def submit(self, job: TraceJob, now_s: float) -> None:
        demand = GangDemand(
            Resources(gpus=job.gpus), job.tasks, instance_count_min=job.tasks, instance_count_max=job.tasks
        )
        self._runs[JobId(job.number)] = _Run(job)  # the engine counts as the trace does
        new = s.NewJob(str(job.number), 0, Shape(demand), "{}")
        self._tell(now_s, [s.Submit(str(job.number), "philly", (new,))])

    def go_on(self, now_s: float) -> None:
        """To what happens by itself at that time."""
        told: list[s.Stimulus] = []
        while self._moments and self._moments[0][0] <= now_s and not told:
            _, _, kind, run, attempt = heappop(self._moments)
            if not run.tasks or run.tasks[0].key.attempt != attempt:
                continue
            if kind == "saves":
                told.append(self._saves(run))
                continue
            told += [run.tells(task, s.Exited(0, 0), s.Ended((0,), (0,))) for task in run.tasks]
            self.ended_s[run.job.number] = now_s
            del self._runs[JobId(run.job.number)]
        self._tell(now_s, told)

    def _tell(self, now_s: float, stimuli: Sequence[s.Stimulus]) -> None:
        """What it starts has started, and what it stops has left, before the next moment."""
        more = True
        while more or stimuli:
            step = self._engine.step(stimuli, Micros(round(now_s * 1e6)), {})
            stimuli, more = [], step.more
            for effect in step.effects:
                if isinstance(effect, StartTask):
                    stimuli.append(self._on_start(effect, now_s))
                elif isinstance(effect, StopTask) and effect.key.job in self._runs:
                    stimuli += self._on_stop(effect, now_s)

    def _on_start(self, task: StartTask, now_s: float) -> s.Reports:
        run = self._runs[task.key.job]
        run.tasks.append(task)
        if len(run.tasks) == run.job.tasks:
            run.started_s = now_s
            self._later(now_s + run.left_s, "ends", run)
            if run.left_s > SAVES_AFTER_S:
                self._later(now_s + SAVES_AFTER_S, "saves", run)
        return run.tells(task, s.Started((1,), "warm"))

    def _on_stop(self, stop: StopTask, now_s: float) -> list[s.Stimulus]:
        """All of the gang leaves with the notice to its first task."""
        run = self._runs[stop.key.job]
        if stop.key.task:
            return []
        self.stopped += 1
        run.left_s += RESTART_S - (now_s - run.started_s)
        told: list[s.Stimulus] = [self._saves(run)]
        for task in run.tasks:
            told.append(run.tells(task, s.Exited(0, -15, killed_by_us=True), s.Ended((-15,), (0,))))
        run.tasks, run.seqs = [], Counter()
        return told

    def _saves(self, run: _Run) -> s.Reports:
        run.step += 1
        return run.tells(run.tasks[0], s.Published(run.step, f"/{run.step}", "hash"))

    def _later(self, at_s: float, kind: str, run: _Run) -> None:
        heappush(self._moments, (at_s, next(self._order), kind, run, run.tasks[0].key.attempt))

    def _hello(self, number: int) -> s.Hello:
        name = f"node-{number:04}"
        gpus = tuple(NodeGpu(index, "NVIDIA P100") for index in range(NODE_GPUS))
        return s.Hello(NodeId(name), number, "boot", NodeInventory(name, f"{name}.test", _NODE, gpus))


def ours(jobs: Sequence[TraceJob], nodes: int) -> tuple[list[float], int]:
    """The seconds that each job has queued, or lost to restarts; how often one was stopped for another."""
    cluster, at = Ours(nodes), 0
    while at < len(jobs) or cluster.next_s < float("inf"):
        if at < len(jobs) and jobs[at].submit_s < cluster.next_s:
            cluster.submit(jobs[at], jobs[at].submit_s)
            at += 1
        else:
            cluster.go_on(cluster.next_s)
    return [cluster.ended_s[job.number] - job.submit_s - job.duration_s for job in jobs], cluster.stopped


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
    queued_s, stopped = ours(jobs, nodes)
    mine = _figures(jobs, queued_s)
    report.notes.append(f"{case}: ours stopped jobs {stopped:,} times for others")
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
