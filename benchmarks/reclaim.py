"""reclaim: a gang of a quarter of a full cluster, of higher priority, in one rack: who must leave for it.

Nodes of 8 GPUs in three racks, full of jobs of 1 to 8 GPUs, of gangs over 2 to 8 nodes, and of elastic gangs,
of which some have saved and some have not. What is timed is the decision alone (preemption.py): from the walk
to the plan that claims the nodes and gives notice. What is lost is counted as it counts it: GPU-seconds since
the last checkpoint, or what a save and a restart take.

Quality is compared on small clusters with the least loss of all sets of victims, by exhaustive search. A gang
that goes on smaller loses as much as one that is stopped whole, on both sides: all of it starts anew.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count
from time import perf_counter
from typing import Final

from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.attempt_events import (
    AttemptStarted,
    JobSubmitted,
    Place,
    PlacesClaimed,
    StopRequested,
)
from paceline.scheduler.core.checkpoint_events import CheckpointAccepted
from paceline.scheduler.core.evolve import evolve
from paceline.scheduler.core.job import Shape
from paceline.scheduler.core.node import NodeGpu, NodeInventory
from paceline.scheduler.core.node_events import NodeConnected, NodeJoined
from paceline.scheduler.core.preemption import loss_us
from paceline.scheduler.core.state import ClusterState
from paceline.scheduler.core.submit import on_submit
from paceline.scheduler.core.task_events import TaskStarted
from paceline.scheduler.core.turns import Turns
from paceline.spec.ids import Attempt, JobId, Micros, NodeId, TaskKey
from paceline.spec.resources import Constraints, GangDemand, Resources
from rich.console import Console

from .cluster import version
from .harness import Report, Row, Sample, options
from .peers.least_loss import Case, Held, least_loss

GPUS: Final = 8
RACKS: Final = 3
SIZES: Final = (100, 1_000, 10_000)
QUICK_SIZES: Final = (12,)
SMALL_NODES, SMALL_CASES, QUICK_CASES = 24, 40, 3
HOUR_US: Final = 3_600_000_000
URGENT: Final = 10
PLACE_TRIES: Final = 200


class Full:
    """A cluster that has been full for some hours; the same seed gives the same one."""

    def __init__(self, nodes: int, seed: int, racks: int, kinds: Sequence[tuple[int, int]]) -> None:
        self.nodes, self.state, self.turns = nodes, ClusterState(), Turns()
        self.draw, self.now_us = random.Random(seed), Micros(1)
        self.free = [GPUS] * nodes
        for number in range(nodes):
            one = _inventory(number, number * racks // nodes)
            evolve(self.state, NodeJoined(self.now_us, NodeId(one.name), one))
            evolve(self.state, NodeConnected(self.now_us, NodeId(one.name), "boot", 1))
        self._fill(kinds)
        self.now_us = Micros(self.now_us + HOUR_US)

    def _fill(self, kinds: Sequence[tuple[int, int]]) -> None:
        """Gangs while they find nodes, then single tasks into every hole."""
        for number in count(1):
            tasks, gpus = self.draw.choice(kinds)
            fits = [node for node, free in enumerate(self.free) if free >= gpus]
            if len(fits) < tasks:
                tasks, holes = 1, [node for node, free in enumerate(self.free) if free]
                if not holes:
                    return
                fits = [holes[0]]
                gpus = min(gpus, self.free[holes[0]])
            self._run(JobId(number), self.draw.sample(fits, tasks), gpus)

    def _run(self, number: JobId, nodes: Sequence[int], gpus: int) -> None:
        """It was placed there some time ago, and has saved or not."""
        tasks, elastic = len(nodes), len(nodes) > 1 and self.draw.random() < 0.5
        least = max(1, tasks // 2) if elastic else tasks
        demand = GangDemand(Resources(gpus=gpus), tasks, instance_count_min=least, instance_count_max=tasks)
        at_us = self.now_us = Micros(self.now_us + self.draw.randrange(1_000_000))
        evolve(self.state, JobSubmitted(at_us, number, "job", "ann", 0, Shape(demand)))
        places = []
        for node in nodes:
            first = GPUS - self.free[node]
            places.append(Place(NodeId(_name(node)), tuple(range(first, first + gpus))))
            self.free[node] -= gpus
        evolve(self.state, AttemptStarted(at_us, number, Attempt(1), tuple(places)))
        for task in range(tasks):
            evolve(self.state, TaskStarted(at_us, TaskKey(number, Attempt(1), task), 1))
        if self.draw.random() < 0.7:
            stall_us, persist_us = self.draw.randrange(1_000_000), self.draw.randrange(60_000_000)
            key = TaskKey(number, Attempt(1), 0)
            saved = CheckpointAccepted(at_us, key, 2, 1, "p", "h", stall_us=stall_us, persist_us=persist_us)
            evolve(self.state, saved)

    def ask(self, tasks: int) -> JobId:
        """The gang that makes room for itself."""
        shape = Shape(
            GangDemand(
                Resources(gpus=GPUS),
                tasks,
                instance_count_min=tasks,
                instance_count_max=tasks,
                constraints=Constraints(within="rack"),
            )
        )
        asked = s.Submit("", "bob", (s.NewJob("urgent", URGENT, shape, "{}"),))
        plan = on_submit(self.state, asked, self.now_us, None)
        for event in plan.events:
            evolve(self.state, event)
        return plan.answer.jobs[0]

    def victims(self) -> tuple[tuple[JobId, ...], int]:
        """Whom the next walk gives notice, and how many of them go on smaller."""
        plan = next(iter(self.turns.walk(self.state, self.now_us)))
        [claim] = [event for event in plan.events if isinstance(event, PlacesClaimed)]
        return claim.victims, sum(isinstance(one, StopRequested) and one.stop.goes_on for one in plan.events)

    def case(self, tasks: int) -> Case:
        """The same for the exhaustive search."""
        jobs = [self.state.jobs[number] for number in sorted(self.state.placed)]
        held = [Held(loss_us(job, self.now_us), frozenset(task.node for task in job.tasks)) for job in jobs]
        racks: dict[str, list[str]] = {}
        for node in self.state.nodes.values():
            racks.setdefault(dict(node.inventory.labels)["rack"], []).append(node.node)
        return Case(tuple(held), tuple(map(tuple, racks.values())), tasks)


def _name(number: int) -> str:
    return f"n{number:05}"


def _inventory(number: int, rack: int) -> NodeInventory:
    capacity = Resources(128_000, 1 << 40, GPUS)
    gpus = tuple(NodeGpu(index, "H100") for index in range(GPUS))
    return NodeInventory(_name(number), _name(number), capacity, gpus, labels=(("rack", f"r{rack}"),))


KINDS: Final = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8), (8, 8))
SMALL_KINDS: Final = ((1, 4), (1, 8), (2, 4), (2, 8), (3, 8))


def decided(full: Full) -> tuple[float, int, int]:
    """Seconds, how many get notice, and how many of them go on smaller."""
    full.ask(full.nodes // 4)
    began_s = perf_counter()
    victims, smaller = full.victims()
    return perf_counter() - began_s, len(victims), smaller


def compared(cases: int) -> Iterator[tuple[float, float, float, float]]:
    """On small clusters: what is lost by ours and at least, in GPU-seconds; seconds of both."""
    for seed in range(cases):
        full, tasks = Full(SMALL_NODES, seed, 2, SMALL_KINDS), SMALL_NODES // 4
        full.ask(tasks)
        case = full.case(tasks)
        began_s = perf_counter()
        victims, _ = full.victims()
        ours_s = perf_counter() - began_s
        lost_us = sum(loss_us(full.state.jobs[number], full.now_us) for number in victims)
        began_s = perf_counter()
        least_us = least_loss(case)
        yield lost_us / 1e9, least_us / 1e9, ours_s, perf_counter() - began_s


def main(argv: Sequence[str] | None = None) -> None:
    given = options("reclaim", __doc__.partition("\n")[0], argv)
    report = Report("reclaim", versions={"paceline": version()})
    progress = Console(stderr=True)
    found = list(compared(QUICK_CASES if given.quick else SMALL_CASES))
    ours, least, ours_s, search_s = (Sample(tuple(each)) for each in zip(*found, strict=True))
    case = f"{SMALL_NODES} nodes, {len(found)} clusters"
    report.rows.append(Row(case, "lost", "GPU-s", ours, "exhaustive", least, "least", least))
    report.rows.append(Row(case, "decision", "s", ours_s, "exhaustive", search_s))
    more = sum(ours.values) / sum(least.values) - 1
    best = sum(mine <= 1.0001 * other for mine, other in zip(ours.values, least.values, strict=True))
    report.notes.append(f"{case}: {more:.1%} more lost in all than the least; the least in {best} of them")
    for nodes in QUICK_SIZES if given.quick else SIZES:
        taken = []
        for pair in range(given.pairs):
            progress.print(f"{nodes:,} nodes: {pair + 1} of {given.pairs} ...")
            taken.append(decided(Full(nodes, pair, RACKS, KINDS)))
        case = f"{nodes:,} nodes x {GPUS}, {nodes // 4:,} wanted"
        report.rows.append(Row(case, "decision", "s", Sample(tuple(time_s for time_s, _, _ in taken))))
        _, left, smaller = taken[0]
        report.notes.append(f"{case}: {left:,} jobs give up nodes, {smaller:,} of them go on smaller")
    report.finish(given)


if __name__ == "__main__":
    main()
