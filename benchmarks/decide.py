"""decide: placement decisions a second on a full cluster of 100, 1,000 and 10,000 nodes of 8 GPUs.

Rounds of 10 ms: some jobs end, and whoever may start does; for each that has started another of its kind
comes, so that a line of 1,000 always waits. Jobs of 1 to 8 GPUs and gangs of 16 to 512, of 100 users in 20
queues with guarantees and limits. Five times a second a job comes that no node could ever run, and the one
before it is cancelled.

What is timed is the core's decision: the events of the end, of the submission and of the start applied to the
state with all its indexes, and the walk along the line that finds who starts where (turns.py). No rows are
encoded and nothing is stored; a further row has the whole step of the engine with its rows, in which the
nodes' reports of starts and ends are decided, too.
"""

import gc
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, Protocol, cast

import numpy as np
from paceline.scheduler.collector import THRESHOLDS
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.admin_stimuli import ApplyPolicy
from paceline.scheduler.core.attempt_events import AttemptEnded, AttemptStarted
from paceline.scheduler.core.cluster_policy import Amount, ClusterPolicy, QueuePolicy, UserAmount
from paceline.scheduler.core.effects import Submitted
from paceline.scheduler.core.events import Event
from paceline.scheduler.core.evolve import evolve
from paceline.scheduler.core.job import Ending, Job, Shape
from paceline.scheduler.core.node import NodeGpu, NodeInventory
from paceline.scheduler.core.node_events import NodeConnected, NodeJoined
from paceline.scheduler.core.policy_events import PolicyChanged
from paceline.scheduler.core.settings import Settings
from paceline.scheduler.core.state import ClusterState
from paceline.scheduler.core.submit import on_cancel, on_submit
from paceline.scheduler.core.turns import Turns
from paceline.scheduler.loop_engine import Engine
from paceline.scheduler.rehearsal import silent
from paceline.scheduler.store.base import Loaded
from paceline.spec.ids import JobId, Micros, NodeId
from paceline.spec.lifecycle import AttemptOutcome, JobState
from paceline.spec.resources import GangDemand, Resources
from rich.console import Console

from .cluster import version
from .harness import Report, Row, Sample, alternate, options, quantile
from .peers.best_fit import Ask, BestFit

GPUS: Final = 8
SIZES: Final = (100, 1_000, 10_000)
ROUNDS: Final = 20
QUICK_SIZES, QUICK_ROUNDS = (20,), 3
PASSES: Final = 1_000
ROUND_US: Final = 10_000
ENDS: Final = 32
"""Jobs that end in a round."""
LINE: Final = 1_000
Kind = tuple[int, int]
"""Tasks, and GPUs of each."""
Start = tuple[int, Kind]
"""Its number, and what it is."""
SMALL: Final[tuple[Kind, ...]] = ((1, 1), (1, 2), (1, 4), (1, 8))
GANGS: Final[tuple[Kind, ...]] = tuple((tasks, GPUS) for tasks in (2, 4, 8, 16, 32, 64))
GANG_SHARE: Final = 0.05
UNSATISFIABLE_ROUNDS: Final = 20
"""One in so many rounds: 5 a second."""
DEPARTMENTS, TEAMS, USERS = 4, 5, 5
WELL: Final = Ending(AttemptOutcome.SUCCEEDED, "exit", "exited with 0")


@dataclass(frozen=True, slots=True)
class New:
    tasks: int
    gpus: int
    user: str
    queue: str


UNSATISFIABLE: Final = New(1, GPUS + 1, "u0-0-0", "d0/t0")


def kinds(nodes: int, draw: random.Random) -> Iterator[Kind]:
    """Without end; gangs of more than a quarter of the cluster are left out."""
    gangs = [kind for kind in GANGS if kind[0] * 4 <= nodes]
    while True:
        yield draw.choice(gangs if draw.random() < GANG_SHARE else SMALL)


def new(kind: Kind, draw: random.Random) -> New:
    """Somebody's."""
    department, team, user = draw.randrange(DEPARTMENTS), draw.randrange(TEAMS), draw.randrange(USERS)
    return New(*kind, f"u{department}-{team}-{user}", f"d{department}/t{team}")


def policy(nodes: int) -> ClusterPolicy:
    """Half of the cluster is guaranteed, in equal parts; nobody has more than four times their part."""
    milli = nodes * GPUS * 1000
    queues: dict[str, QueuePolicy] = {}
    for department in range(DEPARTMENTS):
        part = milli // DEPARTMENTS
        queues[f"d{department}"] = QueuePolicy(1.0 + department, Amount(part // 2))
        for team in range(TEAMS):
            own = part // TEAMS
            queues[f"d{department}/t{team}"] = QueuePolicy(
                1.0 + team, Amount(own // 2), Amount(max(512_000, 4 * own)), UserAmount(max(512_000, 2 * own))
            )
    return ClusterPolicy(queues)


def demand(one: New) -> GangDemand:
    count = one.tasks
    return GangDemand(Resources(gpus=one.gpus), count, instance_count_min=count, instance_count_max=count)


def inventory(number: int) -> NodeInventory:
    name = f"n{number:05}"
    capacity = Resources(128_000, 1 << 40, GPUS)
    return NodeInventory(name, name, capacity, tuple(NodeGpu(index, "H100") for index in range(GPUS)))


class Side(Protocol):
    """Whoever decides."""

    def round(self, ended: Sequence[int], arrived: Sequence[New], *, never: bool) -> Iterator[Start]:
        """Who starts, one by one, applied. `never`: one comes that can never run."""


class Ours:
    """The core, by itself."""

    def __init__(self, nodes: int) -> None:
        self.now_us = Micros(1)
        self.state = ClusterState()
        self.turns = Turns()
        self.never: JobId | None = None
        for number in range(nodes):
            one = inventory(number)
            evolve(self.state, NodeJoined(self.now_us, NodeId(one.name), one))
            evolve(self.state, NodeConnected(self.now_us, NodeId(one.name), "boot", 1))
        evolve(self.state, PolicyChanged(self.now_us, "admin", policy(nodes)))

    def round(self, ended: Sequence[int], arrived: Sequence[New], *, never: bool) -> Iterator[Start]:
        self.now_us = now_us = Micros(self.now_us + ROUND_US)
        state = self.state
        for number in ended:
            job = state.jobs[JobId(number)]
            evolve(state, AttemptEnded(now_us, job.number, job.attempt, JobState.SUCCEEDED, WELL))
        for one in arrived:
            self._submit(one)
        if never:
            if self.never is not None:
                self._apply(on_cancel(state, s.Cancel(self.never), now_us).events)
            self.never = self._submit(UNSATISFIABLE)
        moved = True
        while moved:
            moved = False
            for plan in self.turns.walk(state, now_us):
                moved = True
                self._apply(plan.events)
                yield from starts(plan.events, state.jobs)

    def _submit(self, one: New) -> JobId:
        plan = on_submit(self.state, submission("", one), self.now_us, None)
        self._apply(plan.events)
        return plan.answer.jobs[0]

    def _apply(self, events: Sequence[Event]) -> None:
        for event in events:
            evolve(self.state, event)


class Whole:
    """The engine, rows encoded; nodes tell of starts and ends in the round after."""

    def __init__(self, nodes: int) -> None:
        self.now_us = Micros(1)
        self.engine = Engine(Loaded(0, JobId(0), Micros(0), ()), silent(Settings()))
        self.count = 0
        self.never: JobId | None = None
        self.started: list[int] = []
        one_by_one = (inventory(number) for number in range(nodes))
        hellos = [s.Hello(NodeId(one.name), 1, "boot", one) for one in one_by_one]
        self.engine.step([*hellos, ApplyPolicy("policy", "admin", policy(nodes))], self.now_us, {})

    def round(self, ended: Sequence[int], arrived: Sequence[New], *, never: bool) -> Iterator[Start]:
        self.now_us = Micros(self.now_us + ROUND_US)
        told: list[s.Stimulus] = [*self._reports(self.started, (1, s.Started((1,))))]
        told += self._reports(ended, (2, s.Exited(0, 0)), (3, s.Ended((0,))))
        if never and self.never is not None:
            told.append(s.Cancel(self.never))
        self.count += len(arrived)
        told += [submission(f"{self.count}-{at}", one) for at, one in enumerate(arrived)]
        told += [submission(f"never-{self.count}", UNSATISFIABLE)] if never else []
        self.started, more = [], True
        while more:
            step = self.engine.step(told, self.now_us, {})
            if told and never:
                (self.never,) = cast(Submitted, step.answers[-1]).jobs
            told, more = [], step.more
            begun = list(starts([one.event for one in step.committed], self.engine.state.jobs))
            self.started += [number for number, _ in begun]
            yield from begun

    def _reports(self, numbers: Sequence[int], *said: tuple[int, s.Said]) -> Iterator[s.Reports]:
        for number in numbers:
            job = self.engine.state.jobs[JobId(number)]
            for task in job.tasks:
                key = job.key(task.task)
                yield s.Reports(task.node, tuple(s.Entry(key, seq, one) for seq, one in said))


class Peer:
    """Best fit by a full scan; it numbers its jobs by itself."""

    def __init__(self, nodes: int) -> None:
        self.fit = BestFit(nodes, GPUS)
        self.last = 0

    def round(self, ended: Sequence[int], arrived: Sequence[New], *, never: bool) -> Iterator[Start]:
        self.fit.end(ended)
        asks = [Ask(self.last + at, one.tasks, one.gpus) for at, one in enumerate(arrived, 1)]
        self.last += len(asks)
        for number in self.fit.round(asks):
            ask, _ = self.fit.placed[number]
            yield number, (ask.tasks, ask.gpus)


def submission(key: str, one: New) -> s.Submit:
    return s.Submit(key, one.user, (s.NewJob("job", 0, Shape(demand(one), queue=one.queue), "{}"),))


def starts(events: Sequence[Event], jobs: Mapping[JobId, Job]) -> Iterator[Start]:
    for event in events:
        if isinstance(event, AttemptStarted):
            yield event.job, (len(event.places), jobs[event.job].demand.per_task.gpus)


@dataclass(slots=True)
class Course:
    """One side, from the full cluster on. The same seed gives both sides the same jobs."""

    side: Side
    nodes: int
    draw: random.Random
    placed: list[int] = field(default_factory=list)
    coming: list[New] = field(default_factory=list)
    rounds: int = 0
    gaps_s: list[float] = field(default_factory=list)
    """From one start to the next, or from the begin of a round to its first."""
    spent_s: float = 0.0
    gangs: int = 0
    """Of those that started."""

    def fill(self) -> None:
        """Until the cluster is full and the line is LINE long."""
        mix, waiting, gpus = kinds(self.nodes, self.draw), 0, 0
        while waiting < LINE:
            self.coming = [new(next(mix), self.draw) for _ in range(ENDS)]
            gpus += sum(one.tasks * one.gpus for one in self.coming)
            waiting += len(self.coming) - self.round(0) if gpus > self.nodes * GPUS else 0
        self.gaps_s.clear()
        self.spent_s, self.rounds, self.gangs = 0.0, 0, 0

    def round(self, ends: int) -> int:
        """How many started."""
        ended = [self._leaver() for _ in range(min(ends, len(self.placed)))]
        arrived, self.coming = self.coming, []
        self.rounds += 1
        never = self.rounds % UNSATISFIABLE_ROUNDS == 0
        begun: list[Start] = []
        began_s = last_s = perf_counter()
        for one in self.side.round(ended, arrived, never=never):
            now_s = perf_counter()
            self.gaps_s.append(now_s - last_s)
            begun.append(one)
            last_s = now_s
        self.spent_s += perf_counter() - began_s
        for number, kind in begun:
            self.placed.append(number)
            self.coming.append(new(kind, self.draw))
            self.gangs += kind[0] > 1
        return len(begun)

    def _leaver(self) -> int:
        at = self.draw.randrange(len(self.placed))
        self.placed[at], self.placed[-1] = self.placed[-1], self.placed[at]
        return self.placed.pop()

    def run(self, rounds: int) -> tuple[float, float]:
        """Starts a second, and the 99th percentile of what one takes, in seconds."""
        self.gaps_s.clear()
        self.spent_s = 0.0
        for _ in range(rounds):
            self.round(ENDS)
        return len(self.gaps_s) / self.spent_s, quantile(self.gaps_s, 0.99)


def floor(nodes: int) -> float:
    """Passes of numpy over what is free on the nodes, a second: those that fit, and the best of them."""
    free = np.random.default_rng(1).integers(0, GPUS + 1, nodes)
    began_s = perf_counter()
    for _ in range(PASSES):
        np.where(free >= GPUS // 2, free, GPUS + 1).argmin()
    return PASSES / (perf_counter() - began_s)


def main(argv: Sequence[str] | None = None) -> None:
    given = options("decide", __doc__.partition("\n")[0], argv)
    report = Report("decide", versions={"paceline": version(), "numpy": np.__version__})
    for nodes in QUICK_SIZES if given.quick else SIZES:
        _measure(report, nodes, given.pairs, QUICK_ROUNDS if given.quick else ROUNDS)
    report.notes += [
        "timed: the core's decision (end, submission, walk along the line, start), all indexes kept",
        "not timed: encoding and storing rows; `whole step` has rows encoded, and the nodes' reports decided",
        "the peer knows neither queues nor limits: whoever comes first and fits starts",
        "the clock of a run is short: no job has run long enough to be stopped for another, see reclaim",
    ]
    report.finish(given)


def _measure(report: Report, nodes: int, pairs: int, rounds: int) -> None:
    case, progress = f"{nodes:,} nodes x {GPUS}", Console(stderr=True)
    courses = [Course(side(nodes), nodes, random.Random(1)) for side in (Ours, Peer, Whole)]
    for course in courses:
        progress.print(f"{case}: filling ({type(course.side).__name__}) ...")
        course.fill()
    gc.collect()
    gc.freeze()  # as the scheduler does when it has read its store, and so is the next line
    gc.set_threshold(*THRESHOLDS)
    tails_s: list[list[float]] = [[], [], []]

    def rate(at: int) -> float:
        starts_s, tail_s = courses[at].run(rounds)
        tails_s[at].append(tail_s)
        return starts_s

    mine, theirs, whole, least = alternate(
        pairs, lambda: rate(0), lambda: rate(1), lambda: rate(2), lambda: floor(nodes)
    )
    tails = [Sample(tuple(1000 * each for each in tail)) for tail in tails_s]
    name = "full scan"
    report.rows.append(Row(case, "decisions", "1/s", mine, name, theirs, "numpy pass", least))
    report.rows.append(Row(case, "one decision, p99", "ms", tails[0], name, tails[1]))
    report.rows.append(Row(case, "whole step, rows encoded", "1/s", whole))
    line, gangs = len(cast(Ours, courses[0].side).state.queue.lanes), courses[0].gangs
    report.notes.append(f"{case}: {line} lanes wait; {gangs} of ours that started were gangs")


if __name__ == "__main__":
    main()
