"""Alibaba's openb trace as FGD's authors use it: nodes with GPUs, and tasks that come until they have asked
for more than there is.

Data: alibaba/clusterdata, cluster-trace-gpu-v2023. Method: hkust-adsl/kubernetes-scheduler-simulator
(pkg/simulator: core.go, simulator.go). What random numbers decide there (the order of the tasks, which come
again, what stands before the nodes' names) is decided by Python's here: single seeds differ, means do not.
"""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

MILLI: Final = 1000
ARRIVED: Final = 1.3
"""GPUs asked for by the end, of those that there are."""


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str


@dataclass(frozen=True, slots=True)
class Task:
    """`gpu_milli`: of each GPU."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    gpu_milli: int
    models: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple[int, int, int, tuple[str, ...]]:
        """All but the memory."""
        return self.cpu_milli, self.gpus, self.gpu_milli, self.models

    @property
    def gpu_milli_total(self) -> int:
        return self.gpus * self.gpu_milli


def read_nodes(traces: Path) -> list[Node]:
    with (traces / "openb" / "openb_node_list_gpu_node.csv").open() as file:
        return [
            Node(row["sn"], int(row["cpu_milli"]), int(row["memory_mib"]), int(row["gpu"]), row["model"])
            for row in csv.DictReader(file)
        ]


def read_tasks(traces: Path, workload: str) -> list[Task]:
    """In the order of their names."""
    with (traces / "openb" / f"openb_pod_list_{workload}.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["name"])
    return [_task(row) for row in rows]


def _task(row: dict[str, str]) -> Task:
    gpus = int(row["num_gpu"])
    milli = min(int(row["gpu_milli"]), MILLI) if gpus else 0
    models = tuple(model for model in (row.get("gpu_spec") or "").split("|") if model) if gpus else ()
    return Task(int(row["cpu_milli"]), int(row["memory_mib"]), gpus, milli, models)


def sample_nodes() -> list[Node]:
    """A small cluster of three kinds of nodes."""
    kinds = [(96_000, 8, "G2"), (64_000, 2, "T4"), (32_000, 4, "V100M16")]
    return [
        Node(f"node-{at:02d}", cpu_milli, 8 * cpu_milli, gpus, model)
        for at, (cpu_milli, gpus, model) in enumerate(kinds * 4)
    ]


def sample_tasks() -> list[Task]:
    """Shares, whole GPUs, several, none; a few of them want a model."""
    asks = [(4000, 1, 320, ()), (3000, 1, 810, ()), (11_000, 1, MILLI, ()), (32_000, 4, MILLI, ("G2",))]
    asks += [(8000, 0, 0, ()), (12_000, 1, 470, ("T4", "V100M16"))]
    return [
        Task(cpu_milli, 2 * cpu_milli, gpus, milli, models) for cpu_milli, gpus, milli, models in asks * 5
    ]


def arrivals(nodes: Sequence[Node], tasks: Sequence[Task], seed: int) -> tuple[list[Node], list[Task]]:
    """The nodes in the order in which ties are broken, and the tasks in the order in which they come."""
    dice = random.Random(seed)
    coming = list(tasks)
    dice.shuffle(coming)
    most = ARRIVED * MILLI * sum(node.gpus for node in nodes)
    asked = sum(task.gpu_milli_total for task in coming)
    while asked > most:
        asked -= coming.pop(dice.randrange(len(coming))).gpu_milli_total
    while True:
        task = dice.choice(tasks)
        if asked + task.gpu_milli > most:
            break
        coming.append(task)
        asked += task.gpu_milli_total
    places = list(range(len(nodes)))
    dice.shuffle(places)
    named = [
        replace(node, name=f"{place:04d}-{node.name}") for place, node in zip(places, nodes, strict=True)
    ]
    return sorted(named, key=lambda node: node.name), coming
