"""Elastic jobs with measured profiles on 16 nodes of 4 GPUs: the scheduler's engine beside Tiresias.

Three cases for each workload: the users' sizes; elastic with the users' batch sizes; elastic where the batch
size follows the number of GPUs. Each start is charged with 30 s, in all of them and for the peer.

The peer (peers/rounds.py) gives each job what its user has asked for. How far it is off what its authors have
published for the same workload is told: beyond TOLERANCE no comparison here is worth anything.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

from rich.console import Console

from .elastic_jobs import replay
from .harness import Report, Row, Sample, quantile
from .peers.rounds import tiresias
from .pollux import profiles, published_h, workload

CASES: Final = (
    ("users' sizes", False, False),
    ("elastic, batch size kept", False, True),
    ("elastic, batch size follows", True, True),
)
"""What it is called; whether the batch size follows; whether jobs are elastic."""
TOLERANCE: Final = 0.05
"""Of a workload's mean, at either load; 0.002 was seen at load 1.0, 0.044 at 2.0."""
PUBLISHED: Final = ("tiresias", "optimus", "pollux")


def add_elastic_rows(report: Report, traces: Path, paths: Sequence[Path]) -> None:
    """A row for each workload and case, and one for the means of all workloads."""
    measured, progress = profiles(traces), Console(stderr=True)
    theirs_h: list[float] = []
    ours_h: dict[str, list[float]] = {name: [] for name, *_ in CASES}
    for path in paths:
        jobs = workload(path)
        theirs_h.append(fmean(tiresias(jobs, measured)) / 3600)
        _note_published(report, traces, path, theirs_h[-1])
        for name, follows, elastic in CASES:
            progress.print(f"{path.stem}: {name} ...")
            done = replay(jobs, measured, follows=follows, elastic=elastic)
            ours_h[name].append(fmean(done.jct_s) / 3600)
            report.rows.append(_row(f"{path.stem}: {name}", ours_h[name][-1:], theirs_h[-1:]))
            report.notes.append(
                f"{path.stem}, {name}: {len(done.course.starts) - len(jobs)} restarts of {len(jobs)} jobs; "
                f"a decision took {quantile(done.steps_s, 0.999) * 1000:.0f} ms of a cpu at p99.9, "
                f"{max(done.steps_s) * 1000:.0f} at most"
            )
    if len(paths) > 1:
        for name, each_h in ours_h.items():
            report.rows.append(_row(f"mean of {len(paths)}: {name}", [fmean(each_h)], [fmean(theirs_h)]))


def _row(case: str, ours_h: list[float], theirs_h: list[float]) -> Row:
    return Row(case, "mean JCT", "h", Sample(tuple(ours_h)), "Tiresias", Sample(tuple(theirs_h)))


def _note_published(report: Report, traces: Path, path: Path, tiresias_h: float) -> None:
    known = {policy: published_h(traces, policy, path) for policy in PUBLISHED}
    told = ", ".join(f"{policy} {mean_h:.3f} h" for policy, mean_h in known.items() if mean_h is not None)
    expected_h = known["tiresias"]
    if expected_h is None:
        report.notes.append(f"{path.stem}: nothing was published for it here; Tiresias is not checked")
        return
    off = tiresias_h / expected_h - 1
    within = "within" if abs(off) <= TOLERANCE else "BEYOND"
    report.notes.append(
        f"{path.stem}: published: {told}; Tiresias here is {off:+.1%} off ({within} {TOLERANCE:.0%})"
    )
