"""replay: a month of Philly's jobs on nodes of 8 GPUs, by the scheduler's own engine and as others do it.

    python -m benchmarks.replay [--traces DIR] [--from DAY] [--to DAY] [--nodes N ...]
    python -m benchmarks.replay [--traces DIR] --pollux FILE...      elastic jobs instead (elastic_replay.py)

Ours is the code that places jobs in production (scheduler/loop_engine.py), driven by a clock that jumps from
one arrival or end to the next (scheduler/trace.py); the others are in peers/lines.py. A job's completion time
(JCT) goes from its submission to its end; what it has queued is its JCT without its duration (for ours with
the 30 s that each preemption is charged with). The floor is the mean duration.
"""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from paceline.scheduler.trace import Arrival, Replay
from paceline.spec.ids import JobId
from rich.console import Console

from .cluster import version
from .elastic_replay import add_elastic_rows
from .harness import Report, Row, Sample, parser, quantile, read
from .peers.lines import POLICIES, replay
from .philly import NODE_GPUS, TraceJob, jobs_between, mean_duration_h, sample_jobs
from .pollux import find, sample

TRACES: Final = Path("..", "shared", "traces")
NODES: Final = (64, 80, 96)
QUICK_JOBS, QUICK_NODES = 400, 4


def ours(jobs: Sequence[TraceJob], nodes: int) -> tuple[list[float], int]:
    """The seconds that each job has queued, or lost to restarts; how often one was stopped for another."""
    arrivals = [Arrival(job.submit_s, job.duration_s, job.tasks, job.gpus) for job in jobs]
    replayed = Replay(arrivals, nodes, NODE_GPUS)
    while replayed.advance():
        pass
    course = replayed.rehearsal.course
    jct_s = [(course.ended_us[JobId(job.number)] / 1e6 - job.submit_s) for job in jobs]
    return [jct - job.duration_s for jct, job in zip(jct_s, jobs, strict=True)], len(course.stops)


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
    options.add_argument("--pollux", nargs="+", metavar="FILE", help="workloads of elastic jobs, or names")
    given = options.parse_args(argv)
    common = read(options, given)
    report = Report("replay", versions={"paceline": version()})
    if given.pollux and not common.quick:
        add_elastic_rows(report, given.traces, [find(given.traces, named) for named in given.pollux])
        report.finish(common)
        return
    if common.quick:
        with TemporaryDirectory() as folder:
            add_elastic_rows(report, Path(folder), [sample(Path(folder), seed=1)])
        jobs, sizes = sample_jobs(QUICK_JOBS, QUICK_NODES, seed=1), [QUICK_NODES]
        report.left_out("the traces: made-up jobs in their proportions")
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
