"""What every benchmark shares: pairs in the same run (A B A B), medians with spread, ratios, floors,
table, JSON, plot.

A figure without its ratio says little on a noisy machine, so a Row always holds both sides as measured
and how many times better we are: theirs/ours for a time, ours/theirs for a rate. What was left out is
always said.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

PAIRS_MIN = 5
PEER_TRIES = 3
MORE_IS_BETTER = frozenset({"jobs/s", "MB/s", "lines/s", "1/s", "% of the time", "% of the GPUs"})
"""These units; of all others (times) less is."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of a benchmark."""

    quick: bool
    pairs: int
    json: Path | None
    plot: Path | None


@dataclass(frozen=True, slots=True)
class Sample:
    """Measurements of one thing, in the order they were taken."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a case, ours and one peer's. `floor` is what no implementation can beat."""

    case: str
    metric: str
    unit: str
    ours: Sample
    peer: str = ""
    theirs: Sample | None = None
    floor_name: str = ""
    floor: Sample | None = None

    @property
    def more_is_better(self) -> bool:
        return self.unit in MORE_IS_BETTER

    @property
    def ratio(self) -> float | None:
        """How many times better we are than the peer."""
        return None if self.theirs is None else self._better(self.ours.median, self.theirs.median)

    @property
    def fraction(self) -> float | None:
        """How much of the floor is reached: 1.0 is as good as it."""
        return None if self.floor is None else self._better(self.ours.median, self.floor.median)

    def _better(self, ours: float, other: float) -> float:
        good, bad = (ours, other) if self.more_is_better else (other, ours)
        return good / bad if bad else float("inf")


@dataclass(slots=True)
class Report:
    """What one run of a benchmark found."""

    name: str
    rows: list[Row] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def left_out(self, why: str) -> None:
        """Say what was not measured, and why."""
        self.notes.append(f"left out: {why}")

    def patient(self, peer: str, measure: Callable[[], float]) -> Callable[[], float]:
        """A peer's measure, taken again when the peer fails (a port was taken, it hung): ours never is."""

        def measured() -> float:
            for _ in range(PEER_TRIES - 1):
                try:
                    return measure()
                except (RuntimeError, TimeoutError) as error:
                    self.notes.append(f"{peer} failed and was run again: {str(error).splitlines()[0]}")
            return measure()

        return measured

    def finish(self, options: Options, draw: Callable[[Path], None] | None = None) -> None:
        """Print the table, and write JSON and plot where asked; `draw` where bars are not the picture."""
        console = Console()
        if not console.is_terminal:  # a file or a pipe: no line of the table may be broken
            console = Console(width=180)
        console.print(table(self))
        for note in self.notes:
            console.print(note, highlight=False, markup=False)
        console.print(f"machine: {machine()['summary']}; {_versions_line(self.versions)}", highlight=False)
        if options.json:
            options.json.write_text(json.dumps(as_json(self), indent=1) + "\n")
        if options.plot and draw is not None:
            draw(options.plot)
        elif options.plot:
            plot(self, options.plot)


def options(name: str, about: str, argv: Sequence[str] | None = None) -> Options:
    """Read `[--quick] [--pairs N] [--json FILE] [--plot FILE]`."""
    given = parser(name, about)
    return read(given, given.parse_args(argv))


def parser(name: str, about: str) -> argparse.ArgumentParser:
    """Of these options; a benchmark that has more adds them, and gives `read` what was parsed."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    made.add_argument("--quick", action="store_true", help="smallest size, one pair: shows that it works")
    made.add_argument("--pairs", type=int, default=PAIRS_MIN, help=f"pairs of runs (default {PAIRS_MIN})")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw the result (needs matplotlib)")
    return made


def read(made: argparse.ArgumentParser, given: argparse.Namespace) -> Options:
    """Check what was parsed; from now on SIGTERM ends this process as an exit does."""
    signal.signal(
        signal.SIGTERM, lambda number, _frame: sys.exit(128 + number)
    )  # so that clusters are stopped
    if given.pairs < 1:
        made.error(f"--pairs: expected at least 1, got {given.pairs}")
    return Options(given.quick, 1 if given.quick else given.pairs, given.json, given.plot)


def alternate(pairs: int, *measures: Callable[[], float]) -> list[Sample]:
    """Run the measures in turn, `pairs` times (A B A B), so that all see the same weather."""
    taken: list[list[float]] = [[] for _ in measures]
    for _ in range(pairs):
        for values, measure in zip(taken, measures, strict=True):
            values.append(measure())
    return [Sample(tuple(values)) for values in taken]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(report: Report) -> Table:
    drawn = Table(title=f"benchmark {report.name}", title_justify="left")
    for column in ("case", "metric"):
        drawn.add_column(column)
    for column in ("ours", "peer", "theirs", "ratio", "floor", "fraction"):
        drawn.add_column(column, justify="right")
    for row in report.rows:
        drawn.add_row(row.case, row.metric, *_cells(row))
    return drawn


def _cells(row: Row) -> Iterator[str]:
    yield spread(row.ours, row.unit)
    yield row.peer
    yield spread(row.theirs, row.unit) if row.theirs else ""
    yield f"{row.ratio:.1f} x" if row.ratio is not None else ""
    yield f"{row.floor_name} {number(row.floor.median)}" if row.floor else ""
    yield f"{row.fraction:.0%}" if row.fraction is not None else ""


def spread(sample: Sample, unit: str) -> str:
    """Median and, where there are several, the least and the greatest."""
    if len(sample.values) == 1:
        return f"{number(sample.median)} {unit}"
    return f"{number(sample.median)} {unit} ({number(sample.low)}-{number(sample.high)})"


def number(value: float) -> str:
    """Three digits that matter, no exponents."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def as_json(report: Report) -> dict[str, Any]:
    return {
        "name": report.name,
        "machine": machine(),
        "versions": _versions(report.versions),
        "notes": report.notes,
        "rows": [_row_json(row) for row in report.rows],
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "case": row.case,
        "metric": row.metric,
        "unit": row.unit,
        "ours": row.ours.median,
        "peer": row.peer,
        "theirs": row.theirs.median if row.theirs else None,
        "ratio": row.ratio,
        "floor": row.floor.median if row.floor else None,
        "floor_name": row.floor_name,
        "fraction": row.fraction,
        "ours_all": row.ours.values,
        "theirs_all": row.theirs.values if row.theirs else None,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    memory_gib = round(psutil.virtual_memory().total / 2**30)
    cpus = os.cpu_count() or 1
    cpu = next(
        (line.split(": ", 1)[1] for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    summary = f"{cpus} x {cpu}, {memory_gib} GiB, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}"
    return {
        "cpus": cpus,
        "cpu": cpu,
        "memory_gib": memory_gib,
        "kernel": platform.release(),
        "summary": summary,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _versions(extra: dict[str, str]) -> dict[str, str]:
    return {"python": platform.python_version(), **extra}


def _versions_line(extra: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in _versions(extra).items())


def plot(report: Report, path: Path) -> None:
    """Two bars a row, ours and the peer's, each panel in its own unit; dots are the single runs."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = report.rows
    figure, panels = pyplot.subplots(len(rows), 1, figsize=(8, 1.2 + 1.1 * len(rows)), squeeze=False)
    for row, panel in zip(rows, panels[:, 0], strict=True):
        bars = [("floor: " + row.floor_name, row.floor), (row.peer, row.theirs), ("paceline", row.ours)]
        for height, (label, sample) in enumerate((label, sample) for label, sample in bars if sample):
            panel.barh(height, sample.median, color="#2a6f97" if label == "paceline" else "#b0b7bd")
            panel.plot(sample.values, [height] * len(sample.values), "k.", markersize=3)
            panel.text(0, height, f" {label}", va="center", fontsize=8)
        panel.set_yticks([])
        panel.set_title(f"{row.case}: {row.metric} ({row.unit})", fontsize=9, loc="left")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
