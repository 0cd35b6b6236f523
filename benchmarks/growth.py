"""restart's third case: a node joins a gang of one rank, which becomes a gang of two.

Three figures end with the first step of the two ranks. How long training stands still: from the last step of
the one rank. How long a node waits that could work: from the moment at which the scheduler knows its warm
pool to be ready; at torchrun, at which its agent asks to join; at Ray, at which the cluster has it. And all
that a node takes: from the start of its agent. All save every few steps: nobody waits for a checkpoint.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import records
from .cluster import Cluster, training
from .harness import Options, Report, Row, Sample, alternate
from .peers import ray_train, torchrun
from .peers.processes import Crew
from .peers.work.driver import Driver
from .peers.work.waiting import wait_until

SAVE_EVERY = 10
STEP_S = 0.02
STEPS = 1_000_000
"""More than are ever done: a node takes as long as it takes to start. The run is cut then."""
STEPS_AFTER = 100
"""Of the larger gang, done at once before the cut."""
RAY_STEPS = 3000
"""Nothing cuts a fit(): a minute of them, and once the gang has grown, the rest is done at once."""
REL_TOL = 1e-9
"""Another number of ranks adds up in another order, in double precision."""
CASE = "a node joins"
STOOD = "training stood still"
WAITED = "ready node to its first step"
STARTED = "agent's start to its first step"
METRICS = (STOOD, WAITED, STARTED)


@dataclass(frozen=True, slots=True)
class Joined:
    """How one gang grew. Seconds since the epoch."""

    started_at: float
    """The new node's agent."""
    ready_at: float
    grown: records.Growth

    def seconds(self, metric: str) -> float:
        since = {STOOD: self.grown.stood_at, WAITED: self.ready_at, STARTED: self.started_at}
        return self.grown.went_on_at - since[metric]


class Side:
    """Takes the first metric, and keeps what the others come from."""

    def __init__(self, name: str, grow: Callable[[], Joined]) -> None:
        self.name = name
        self._grow = grow
        self._all: list[Joined] = []

    def measure(self) -> float:
        self._all.append(self._grow())
        return self._all[-1].seconds(STOOD)

    def sample(self, metric: str) -> Sample:
        return Sample(tuple(joined.seconds(metric) for joined in self._all))

    def rows(self, peer: "Side | None" = None) -> list[Row]:
        case = f"{CASE}, {self.name}"
        if peer is None:
            return [Row(case, metric, "s", self.sample(metric)) for metric in METRICS]
        return [
            Row(case, metric, "s", self.sample(metric), peer.name, peer.sample(metric)) for metric in METRICS
        ]

    def note(self) -> str:
        again = ", ".join(str(joined.grown.again) for joined in self._all)
        return f"{CASE}, {self.name}: steps of the smaller gang that were done again: {again}"


def measure(report: Report, given: Options, folder: Path) -> None:
    """Add the rows."""
    with Cluster(folder, agents=2, slots=1) as cluster:
        runs = OurGrowth(cluster, folder)
        beside_torchrun(report, given, runs, folder)
        beside_ray(report, given, runs, folder)
        report.notes.append(runs.verdict())
    report.notes.append(f"{CASE}: all save every {SAVE_EVERY} steps of {STEP_S:g} s; ours grow at a save")


def beside_torchrun(report: Report, given: Options, runs: "OurGrowth", folder: Path) -> None:
    loop = Side("step loop", lambda: runs.grow(records.TRAIN_LOOP))
    plain = Side("plain script", lambda: runs.grow(records.TRAIN))
    if given.quick:
        report.left_out("torchrun for a node that joins: not with --quick")
        alternate(1, loop.measure)
        report.rows += loop.rows()
        return
    peer = Side(torchrun.NAME, lambda: torchrun_growth(folder))
    alternate(given.pairs, loop.measure, plain.measure, report.patient(peer.name, peer.measure))
    report.rows += [*loop.rows(peer), *plain.rows(peer)]
    report.notes += [side.note() for side in (loop, plain, peer)]


def beside_ray(report: Report, given: Options, runs: "OurGrowth", folder: Path) -> None:
    if given.quick or ray_train.missing():
        return  # `restart` has said so
    loop = Side("step loop", lambda: runs.grow(records.TRAIN_LOOP))
    with ray_train.start(folder) as ray:
        peer = Side(ray_train.NAME, lambda: ray_growth(ray))
        alternate(given.pairs, loop.measure, report.patient(peer.name, peer.measure))
    report.rows += loop.rows(peer)
    report.notes += [side.note() for side in (loop, peer)]


class OurGrowth:
    """A gang of one, of two at most, on the one node that is there; then the other one comes."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._grown: list[Path] = []

    def grow(self, script: Path) -> Joined:
        away = self._cluster.client.nodes().nodes[-1].name
        self._cluster.kill_node(away)
        wait_until(lambda: self._contact(away) != "connected", "a node is away", every_s=0.05)
        out = self._folder / f"grown-{len(self._grown)}"
        job = self._submit(out, script, steps=STEPS)
        wait_until(lambda: self._cluster.client.job(job).checkpoints, "an accepted checkpoint", every_s=0.05)
        self._cluster.start_dead()
        grown = _grown(out, "the larger gang's first step")
        (out / "enough").touch()
        self._cut(job, out, grown.first + STEPS_AFTER)
        self._grown.append(out)
        return Joined(self._cluster.agent_started_at(away), self._ready_at(job), grown)

    def verdict(self) -> str:
        """One line on whether the runs were the same: all but the last step, which may have lost a rank."""
        ends = {out: max(records.effective(out)) for out in self._grown}
        whole = self._folder / "whole"
        job = self._submit(whole, records.TRAIN, steps=max(ends.values()))
        (whole / "enough").touch()
        self._cluster.finish(job)
        for out, until in ends.items():
            if found := records.differences(out, whole, rel_tol=REL_TOL, until=until):
                raise AssertionError("the run was changed by its growth:\n" + "\n".join(found[:20]))
        return (
            f"{len(ends)} gangs that grew: samples of all of their {sum(ends.values())} steps equal those of"
            f" an undisturbed run, none repeated, none skipped; losses within {REL_TOL:g} of its"
        )

    def _submit(self, out: Path, script: Path, *, steps: int) -> int:
        out.mkdir()
        document = training(
            out,
            steps=steps,
            save_every=SAVE_EVERY,
            step_s=STEP_S,
            instances=2,
            instances_min=1,
            processes=1,
            cpus=1,
            script=script,
        )
        return self._cluster.client.submit(document)

    def _cut(self, job: int, out: Path, last: int) -> None:
        wait_until(lambda: max(records.effective(out)) >= last, f"step {last}", every_s=0.1)
        self._cluster.client.cancel(job)
        self._cluster.client.wait(job, 60)

    def _contact(self, name: str) -> str:
        return next(node.contact for node in self._cluster.client.nodes().nodes if node.name == name)

    def _ready_at(self, job: int) -> float:
        """When the scheduler had room for the larger gang, by its own record: the new node's pool is warm."""
        entries = self._cluster.client.timeline(job).entries
        return min(entry.at_us for entry in entries if entry.kind == "GrowthPlanned") / 1e6


def torchrun_growth(folder: Path) -> Joined:
    with tempfile.TemporaryDirectory(dir=folder) as name, Crew(folder) as crew:
        out = Path(name)
        arguments = [str(out), "1000000", str(SAVE_EVERY), str(out)]
        nodes = torchrun.Nodes(crew, records.TRAIN, arguments, nodes=2, step_s=STEP_S)
        nodes.start()
        wait_until((out / "checkpoint.pt").exists, "torchrun's checkpoint", timeout_s=90)
        started_at = time.time()
        nodes.start()
        wait_until(nodes.newest_joins, "torchrun's second agent", timeout_s=60)
        ready_at = time.time()
        return Joined(started_at, ready_at, _grown(out, "torchrun's first step of two"))


def ray_growth(ray: Driver) -> Joined:
    told = ray.ask("grow", steps=RAY_STEPS, save_every=SAVE_EVERY, step_s=STEP_S, timeout_s=400)
    return Joined(told["started_at"], told["ready_at"], records.Growth(**told["grown"]))


def _grown(out: Path, what: str) -> records.Growth:
    return wait_until(lambda: records.growth(out, 2), what, timeout_s=120, every_s=0.05)
