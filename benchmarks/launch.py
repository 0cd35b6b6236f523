"""launch: submit (already connected, warm pool ready) to the first DDP step of two ranks (gloo).

The script is the same beside torchrun and Ray Train, and so is what is timed: from the call that starts the
run to the moment at which the last rank has done its first step, by the ranks' own clock.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from . import floors, records
from .cluster import Cluster, training
from .cluster import version as our_version
from .harness import Options, Report, Row, alternate, options
from .peers import ray_train, torchrun
from .peers.processes import Crew

RANKS = 2
CASE = "2 ranks, gloo"
METRIC = "submit to first step"


def main(argv: Sequence[str] | None = None) -> None:
    given = options("launch", "Submit to first DDP step, beside torchrun and Ray Train.", argv)
    report = Report("launch", versions={"paceline": our_version(), "torch": torchrun.version()})
    with tempfile.TemporaryDirectory(prefix="bench-launch-") as name:
        folder = Path(name)
        with Cluster(folder, agents=1, slots=RANKS) as cluster:
            ours = launcher(cluster, folder)
            ours()  # the first of all pays for what the cluster never did before; as the other sides' first
            beside_torchrun(report, given, ours, folder)
            beside_ray(report, given, ours, folder)
    report.finish(given)


def beside_torchrun(report: Report, given: Options, ours: Callable[[], float], folder: Path) -> None:
    with floors.fork_server(folder) as floor:
        floor.ask("launch", ranks=RANKS)
        taken = alternate(
            given.pairs,
            ours,
            report.patient(torchrun.NAME, lambda: by_torchrun(folder)),
            report.patient("the floor", lambda: float(floor.ask("launch", ranks=RANKS))),
        )
    name = "fork+init+step"
    report.rows.append(Row(CASE, METRIC, "s", taken[0], torchrun.NAME, taken[1], name, taken[2]))


def beside_ray(report: Report, given: Options, ours: Callable[[], float], folder: Path) -> None:
    if why := "Ray Train: not with --quick" if given.quick else ray_train.missing():
        report.left_out(why)
        return
    report.versions["ray"] = ray_train.version()
    with ray_train.start(folder) as ray:
        taken = alternate(
            given.pairs, ours, report.patient(ray_train.NAME, lambda: float(ray.ask("launch", ranks=RANKS)))
        )
    report.rows.append(Row(CASE, METRIC, "s", taken[0], ray_train.NAME, taken[1]))


def launcher(cluster: Cluster, folder: Path) -> Callable[[], float]:
    """A measure: one launch by us."""
    runs = iter(range(1_000_000))

    def launch() -> float:
        out = folder / f"ours-{next(runs)}"
        out.mkdir()
        document = training(out, steps=1)
        began = time.time()
        cluster.finish(cluster.client.submit(document))
        return first_step(out) - began

    return launch


def by_torchrun(folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as name, ExitStack() as stack:
        crew = stack.enter_context(Crew(folder))
        began = time.time()
        process = torchrun.start_gang(crew, records.TRAIN, [name, "1", "0"], ranks=RANKS)
        try:
            failed = process.wait(60)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError("torchrun gave no first step in 60 s") from error
        if failed:
            raise RuntimeError(
                f"torchrun: exit {process.returncode}: {(folder / 'torchrun.out').read_text()[-2000:]}"
            )
        return first_step(Path(name)) - began


def first_step(out: Path) -> float:
    at = records.first_step_at(out, world=RANKS)
    if at is None:
        raise RuntimeError(f"{out}: the run ended without a first step of all ranks")
    return at


if __name__ == "__main__":
    main(sys.argv[1:])
