"""restart: a rank is killed, a whole node's processes are, or a node joins; time to the next completed step.

What was trained must not change by it: the effective run (of each step the last time it was done) has the
losses and samples of the run that nobody disturbed, none repeated and none skipped.

Of a killed rank each part is timed, too, of ours as of the floor: records.PARTS, together the whole.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from . import floors, growth, records
from .cluster import Cluster, training
from .cluster import version as our_version
from .harness import Options, Report, Row, Sample, alternate, options
from .peers import ray_train, torchrun
from .peers.processes import Crew, descendants
from .peers.work.driver import Driver
from .peers.work.waiting import wait_until

RANKS = 2
STEP_S = 0.02
SAVE_EVERY = 10
METRIC = "kill to next step"
RANK = "one rank of two"
NODE = "one node of two"
RANK_IN_LOOP = "one rank of two, survivor stays"
"""In the step loop: no step is done again, which is checked."""


def main(argv: Sequence[str] | None = None) -> None:
    given = options("restart", "A killed rank, a killed node: time to the next step, beside torchrun.", argv)
    report = Report("restart", versions={"paceline": our_version(), "torch": torchrun.version()})
    with tempfile.TemporaryDirectory(prefix="bench-restart-") as name:
        folder = Path(name)
        with Cluster(folder, agents=3, slots=RANKS) as cluster:
            runs = OurRuns(cluster, folder, steps=50 if given.quick else 150)
            worker(report, given, runs, folder)
            node(report, given, runs, folder)
            beside_ray(report, given, runs, folder)
            report.notes.append(runs.verdict())
    with tempfile.TemporaryDirectory(prefix="bench-growth-") as name:
        growth.measure(report, given, Path(name))
    report.finish(given)


def worker(report: Report, given: Options, runs: "OurRuns", folder: Path) -> None:
    """SIGKILL of one of two ranks on one node."""
    with floors.fork_server(folder) as forks:
        floor = Floor(forks)
        ours, theirs, least, in_loop = alternate(
            given.pairs,
            runs.kill_rank,
            report.patient(torchrun.NAME, lambda: torchrun_rank(folder)),
            report.patient("the floor", floor.restart),
            runs.kill_rank_in_loop,
        )
    name = "detect+fork+init+load"
    report.rows.append(Row(RANK, METRIC, "s", ours, torchrun.NAME, theirs, name, least))
    for part in records.PARTS:
        parts = (sample_of(part, side) for side in (runs.parts, floor.parts))
        report.rows.append(part_row(part, *parts))
    report.rows.append(Row(RANK_IN_LOOP, METRIC, "s", in_loop, torchrun.NAME, theirs, name, least))


def part_row(part: str, ours: Sample, floor: Sample) -> Row:
    return Row(RANK, f"of it, {part}", "s", ours, floor_name=part, floor=floor)


def sample_of(part: str, runs: Sequence[Mapping[str, float]]) -> Sample:
    return Sample(tuple(run[part] for run in runs))


class Floor:
    """Restarts by the fork server, and the parts of each."""

    def __init__(self, forks: Driver) -> None:
        self._forks = forks
        self.parts: list[dict[str, float]] = []

    def restart(self) -> float:
        self.parts.append(self._forks.ask("restart", ranks=RANKS))
        return sum(self.parts[-1].values())


def node(report: Report, given: Options, runs: "OurRuns", folder: Path) -> None:
    """SIGKILL of all processes of one of the two nodes of a gang; a third has room.

    torchrun's survivors go on as a smaller gang, which asks less of it.
    """
    if given.quick:
        report.left_out("torchrun for a killed node: not with --quick")
        report.rows.append(Row(NODE, METRIC, "s", alternate(1, runs.kill_node)[0]))
    else:
        theirs = report.patient(torchrun.NAME, lambda: torchrun_node(folder))
        taken = alternate(given.pairs, runs.kill_node, theirs)
        report.rows.append(Row(NODE, METRIC, "s", taken[0], torchrun.NAME, taken[1]))
    report.rows.append(Row(NODE, "detection to next step", "s", Sample(tuple(runs.after_detection_s))))


def beside_ray(report: Report, given: Options, runs: "OurRuns", folder: Path) -> None:
    """The same faults. At Ray, too, a third node has room for what the killed one has had."""
    if why := "Ray Train: not with --quick" if given.quick else ray_train.missing():
        report.left_out(why)
        return
    report.versions["ray"] = ray_train.version()
    with ray_train.start(folder) as ray:
        sides: list[tuple[str, Callable[[], float], Callable[[], float]]] = [
            (RANK, runs.kill_rank, lambda: float(ray.ask("restart", ranks=RANKS))),
            (NODE, runs.kill_node, lambda: float(ray.ask("restart_node", timeout_s=400))),
        ]
        for case, ours, theirs in sides:
            taken = alternate(given.pairs, ours, report.patient(ray_train.NAME, theirs))
            report.rows.append(Row(case, METRIC, "s", taken[0], ray_train.NAME, taken[1]))


@dataclass(frozen=True, slots=True)
class Disturbed:
    """One run of ours that was. Seconds since the epoch."""

    job: int
    out: Path
    known: frozenset[str]
    """The processes from before the fault."""
    killed: float
    stepped: float

    @property
    def seconds(self) -> float:
        return self.stepped - self.killed


class OurRuns:
    """Training by us, disturbed and undisturbed: two ranks on one node, or one each on two."""

    def __init__(self, cluster: Cluster, folder: Path, *, steps: int) -> None:
        self._cluster = cluster
        self._folder = folder
        self._steps = steps
        self._numbers = count()
        self._differences: list[str] = []
        self._checked = 0
        self.parts: list[dict[str, float]] = []
        """Of each killed rank, by records.PARTS."""
        self.after_detection_s: list[float] = []
        """Of each killed node."""
        self._whole, job = self._submit(1)
        cluster.finish(job)

    def kill_rank(self) -> float:
        run = self._disturbed(_kill_rank, instances=1)
        self.parts.append(
            records.parts(
                run.out,
                killed=run.killed,
                detected=self._detected_at(run.job),
                stepped=run.stepped,
                known=run.known,
            )
        )
        return run.seconds

    def kill_rank_in_loop(self) -> float:
        run = self._disturbed(_kill_rank, instances=1, script=records.TRAIN_LOOP)
        self._check_stayed(run.job)
        return run.seconds

    def kill_node(self) -> float:
        def kill(_out: Path, job: int) -> float:
            return self._cluster.kill_node(self._cluster.client.job(job).tasks[1].node)

        self._cluster.start_dead()
        self._cluster.wait_warm()
        run = self._disturbed(kill, instances=2)
        self.after_detection_s.append(run.stepped - self._detected_at(run.job))
        return run.seconds

    def _check_stayed(self, job: int) -> None:
        entries = self._cluster.client.timeline(job).entries
        if not any(entry.kind == "GangReformed" for entry in entries):
            told = "\n".join(entry.text for entry in entries)
            raise AssertionError(
                f"job {job}: the survivor did not stay up:\n{told}\n{self._cluster.said(job, 1)}"
            )

    def verdict(self) -> str:
        """One line on whether the runs were the same."""
        if self._differences:
            raise AssertionError("the run was changed by the restart:\n" + "\n".join(self._differences[:20]))
        return (
            f"{self._checked} disturbed runs: losses and samples of every step equal those of the"
            " undisturbed run, none repeated, none skipped"
        )

    def _disturbed(
        self, kill: Callable[[Path, int], float], *, instances: int, script: Path = records.TRAIN
    ) -> Disturbed:
        out, job = self._submit(instances, script)
        wait_until(lambda: self._cluster.client.job(job).checkpoints, "an accepted checkpoint", every_s=0.05)
        known = records.processes(out)
        killed = kill(out, job)
        stepped = wait_until(
            lambda: records.next_step_at(out, killed, known),
            "a step after the kill",
            timeout_s=60,
            every_s=0.02,
        )
        self._cluster.finish(job)
        self._differences += records.differences(out, self._whole)
        self._differences += records.repeated(out) if script is records.TRAIN_LOOP else []
        self._checked += 1
        return Disturbed(job, out, known, killed, stepped)

    def _submit(self, instances: int, script: Path = records.TRAIN) -> tuple[Path, int]:
        out = self._folder / f"run-{next(self._numbers)}"
        out.mkdir()
        document = training(
            out,
            steps=self._steps,
            save_every=SAVE_EVERY,
            step_s=STEP_S,
            instances=instances,
            processes=RANKS // instances,
            cpus=RANKS,  # a node each
            script=script,
        )
        return out, self._cluster.client.submit(document)

    def _detected_at(self, job: int) -> float:
        """When the scheduler gave the first attempt up, by its own record."""
        entries = self._cluster.client.timeline(job).entries
        return min(entry.at_us for entry in entries if entry.kind == "AttemptEnded") / 1e6


def _kill_rank(out: Path, _job: int) -> float:
    victim = next(start["pid"] for start in records.starts(out) if start["rank"] == 1)
    killed = time.time()
    os.kill(victim, signal.SIGKILL)
    return killed


def torchrun_rank(folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as name, Crew(folder) as crew:
        out = Path(name)
        torchrun.start_gang(crew, records.TRAIN, _arguments(out), ranks=RANKS, step_s=STEP_S)
        wait_until((out / "checkpoint.pt").exists, "torchrun's checkpoint", timeout_s=60)
        known = records.processes(out)
        victim = next(start["pid"] for start in records.starts(out) if start["rank"] == 1)
        killed = time.time()
        os.kill(victim, signal.SIGKILL)
        return _next_step(out, killed, known) - killed


def torchrun_node(folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as name, Crew(folder) as crew:
        out = Path(name)
        nodes = torchrun.Nodes(crew, records.TRAIN, _arguments(out), nodes=2, step_s=STEP_S)
        _, lost = nodes.start(), nodes.start()
        wait_until((out / "checkpoint.pt").exists, "torchrun's checkpoint", timeout_s=90)
        known = records.processes(out)
        family = descendants(lost.pid)
        killed = time.time()
        lost.kill()
        for process in family:
            process.kill()
        return _next_step(out, killed, known) - killed


def _arguments(out: Path) -> list[str]:
    return [str(out), "100000", str(SAVE_EVERY), str(out)]


def _next_step(out: Path, killed: float, known: frozenset[str]) -> float:
    return wait_until(
        lambda: records.next_step_at(out, killed, known), "torchrun's next step", timeout_s=120, every_s=0.02
    )


if __name__ == "__main__":
    main(sys.argv[1:])
