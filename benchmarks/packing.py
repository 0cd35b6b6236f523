"""packing: how much of a cluster's GPUs can be allocated: tasks come until they have asked for 130 % of them.

Alibaba's openb trace, by the method of FGD's authors (openb.py). Ours is the product's own core: events, the
line, `place`; what is typical it learns on the way. FGD is told beforehand what will come. The peers are run
here, and compared with what FGD's authors published of them, where the trace's folder has that.
"""

import csv
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from paceline.scheduler.core.events import Event
from paceline.scheduler.core.evolve import evolve
from paceline.scheduler.core.job import Shape
from paceline.scheduler.core.node import NodeGpu, NodeInventory
from paceline.scheduler.core.node_events import NodeConnected, NodeJoined
from paceline.scheduler.core.placement import place
from paceline.scheduler.core.state import ClusterState
from paceline.scheduler.core.stimuli import Cancel, NewJob, Submit
from paceline.scheduler.core.submit import on_cancel, on_submit
from paceline.spec.ids import JobId, Micros, NodeId
from paceline.spec.resources import GangDemand, Resources

from .cluster import version as our_version
from .harness import Report, Row, Sample, parser, read
from .openb import MILLI, Node, Task, arrivals, read_nodes, read_tasks, sample_nodes, sample_tasks
from .peers import openb_policies as peers

SEEDS: Final = range(42, 52)
TOLERANCE: Final = 0.3
"""Points by which a peer's mean may differ from the published one."""
OURS: Final = "paceline"
PEERS: Final = {"FGD": "06-FGD", "BestFit": "05-BestFit", "Packing": "04-GpuPacking"}
"""With their names in the published table."""
NOW: Final = Micros(1)


@dataclass(frozen=True, slots=True)
class Run:
    """One policy on one order of arrivals. Without `traces`: on the small sample."""

    policy: str
    traces: Path | None
    workload: str
    seed: int


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser("packing", "GPUs allocated at 130 % arrivals, beside BestFit, Packing and FGD.")
    arguments.add_argument("--traces", type=Path, default=Path("../shared/traces"), metavar="DIR")
    arguments.add_argument("--workload", default="default", metavar="NAME", help="openb_pod_list_NAME.csv")
    more = arguments.parse_args(argv)
    given = read(arguments, more)
    traces, workload = (None, "sample") if given.quick else (more.traces, more.workload)
    taken = measure(traces, workload, SEEDS[:1] if given.quick else SEEDS)
    published = _published(traces, workload)
    report = Report("packing", versions={"paceline": our_version(), "numpy": np.__version__})
    case, metric, unit = f"openb {workload}, {len(taken[OURS].values)} orders", "allocated", "% of the GPUs"
    for peer in PEERS:
        row = Row(case, metric, unit, taken[OURS], peer, taken[peer], "all", Sample((100.0,)))
        report.rows.append(row)
        report.notes.append(_compared(peer, taken[peer], published.get(peer)))
    means = {policy: statistics.fmean(sample.values) for policy, sample in taken.items()}
    report.notes.append("means: " + ", ".join(f"{policy} {mean:.2f} %" for policy, mean in means.items()))
    report.finish(given)


def measure(traces: Path | None, workload: str, seeds: Sequence[int]) -> dict[str, Sample]:
    """By policy; the seeds run side by side."""
    runs = [Run(policy, traces, workload, seed) for policy in (*PEERS, OURS) for seed in seeds]
    with ProcessPoolExecutor(min(len(runs), os.cpu_count() or 1)) as pool:
        found = list(zip(runs, pool.map(allocated, runs), strict=True))
    return {
        policy: Sample(tuple(percent for run, percent in found if run.policy == policy))
        for policy in (OURS, *PEERS)
    }


def allocated(run: Run) -> float:
    """In percent of all GPUs."""
    nodes, tasks = (
        (sample_nodes(), sample_tasks())
        if run.traces is None
        else (read_nodes(run.traces), read_tasks(run.traces, run.workload))
    )
    placed, coming = arrivals(nodes, tasks, run.seed)
    if run.policy == OURS:
        return 100 * ours(placed, coming)
    scores = {"BestFit": peers.best_fit, "Packing": peers.packing, "FGD": peers.fgd(tasks)}
    return 100 * peers.run(placed, coming, scores[run.policy])


def ours(nodes: Sequence[Node], tasks: Sequence[Task]) -> float:
    """Part of the GPUs that is allocated when all tasks have come."""
    state = ClusterState()
    for node in nodes:
        evolve(state, NodeJoined(NOW, NodeId(node.name), _inventory(node)))
        evolve(state, NodeConnected(NOW, NodeId(node.name), "boot", 1))
    taken = sum(task.gpu_milli_total for task in tasks if _starts(state, task))
    return taken / sum(MILLI * node.gpus for node in nodes)


def _starts(state: ClusterState, task: Task) -> bool:
    """Submitted, and cancelled again where it finds no place."""
    asked = Submit("", "", (NewJob("task", 0, Shape(_demand(task)), ""),))
    submitted = on_submit(state, asked, NOW, None)
    _apply(state, submitted.events)
    job: JobId = submitted.answer.jobs[0]
    plan = place(state, state.jobs[job], NOW)
    _apply(state, plan.events if plan is not None else ())
    if state.jobs[job].placed:
        return True
    _apply(state, on_cancel(state, Cancel(job), NOW).events)
    return False


def _apply(state: ClusterState, events: Sequence[Event]) -> None:
    for event in events:
        evolve(state, event)


def _inventory(node: Node) -> NodeInventory:
    capacity = Resources(node.cpu_milli, node.memory_mib << 20, node.gpus)
    return NodeInventory(
        node.name, node.name, capacity, tuple(NodeGpu(index, node.model) for index in range(node.gpus))
    )


def _demand(task: Task) -> GangDemand:
    share = task.gpu_milli if task.gpu_milli < MILLI else 0
    need = Resources(task.cpu_milli, task.memory_mib << 20, 0 if share else task.gpus, share)
    return GangDemand(need, gpu_models=task.models)


def _published(traces: Path | None, workload: str) -> dict[str, float]:
    """Means of what the authors of FGD found; empty where the folder does not say."""
    table = None if traces is None else traces / "openb" / "fgd_expected_alloc.csv"
    if table is None or not table.exists():
        return {}
    with table.open() as file:
        rows = [row for row in csv.DictReader(file) if row["workload"] == f"openb_pod_list_{workload}"]
    of = {
        peer: [float(row["130"]) for row in rows if row["sc_policy"] == name] for peer, name in PEERS.items()
    }
    return {peer: statistics.fmean(values) for peer, values in of.items() if values}


def _compared(peer: str, sample: Sample, published: float | None) -> str:
    live = statistics.fmean(sample.values)
    spread = f"{peer}: {live:.2f} % live ({sample.low:.2f}-{sample.high:.2f})"
    if published is None:
        return f"{spread}; nothing published to compare with"
    verdict = "reproduced" if abs(live - published) <= TOLERANCE else "NOT reproduced"
    return f"{spread}, {published:.2f} % published: {verdict} to {TOLERANCE} points"


if __name__ == "__main__":
    main()
