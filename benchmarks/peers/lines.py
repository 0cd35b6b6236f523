"""How others order a line of jobs, as they are known from the literature: each on nodes of 8 GPUs, a task on
the node that has the least room for it.

    fifo    the first in line starts, or nobody does (Slurm without backfill, Kueue's StrictFIFO)
    skip    whoever fits starts (Kueue's BestEffortFIFO): large gangs may wait for ever
    easy    who fits starts, unless that would delay the first in line (Lifka, "The ANL/IBM SP Scheduling
            System", JSSPP 1995), given the true durations
    oracle  the shortest first, given the true durations; whoever fits starts

Nobody is preempted. Durations are known to the last two only.
"""

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush

from ..philly import NODE_GPUS, TraceJob

Placement = list[int]
"""The node of each task."""


class Nodes:
    """What is free on each."""

    def __init__(self, free: Sequence[int]) -> None:
        self.free = list(free)
        self._by_free: list[list[int]] = [[] for _ in range(NODE_GPUS + 1)]
        for node, gpus in enumerate(self.free):
            self._by_free[gpus].append(node)

    def fit(self, job: TraceJob) -> Placement | None:
        """For each task the node with the least room that will do; of equals the first."""
        found: Placement = []
        for nodes in self._by_free[job.gpus :]:
            found += nodes[: job.tasks - len(found)]
            if len(found) == job.tasks:
                return found
        return None

    def take(self, job: TraceJob, placement: Placement) -> None:
        for node in placement:
            self._change(node, -job.gpus)

    def give(self, job: TraceJob, placement: Placement) -> None:
        for node in placement:
            self._change(node, job.gpus)

    def _change(self, node: int, gpus: int) -> None:
        self._by_free[self.free[node]].remove(node)
        self.free[node] += gpus
        insort(self._by_free[self.free[node]], node)


class Cluster:
    """The line, and who runs until when."""

    def __init__(self, nodes: int) -> None:
        self.nodes = Nodes([NODE_GPUS] * nodes)
        self.line: list[TraceJob] = []
        self.running: list[tuple[float, int, TraceJob, Placement]] = []
        self.started_s: dict[int, float] = {}

    def start(self, job: TraceJob, placement: Placement, now_s: float) -> None:
        self.nodes.take(job, placement)
        self.started_s[job.number] = now_s
        heappush(self.running, (now_s + job.duration_s, job.number, job, placement))

    def end_until(self, now_s: float) -> None:
        while self.running and self.running[0][0] <= now_s:
            _, _, job, placement = heappop(self.running)
            self.nodes.give(job, placement)

    def start_whoever_fits(self, line: Sequence[TraceJob], now_s: float) -> None:
        """In that order; the line keeps the others."""
        failed: set[tuple[int, int]] = set()
        started = set()
        for job in line:
            if (job.tasks, job.gpus) in failed:
                continue
            placement = self.nodes.fit(job)
            if placement is None:
                failed.add((job.tasks, job.gpus))
            else:
                self.start(job, placement, now_s)
                started.add(job.number)
        if started:
            self.line = [job for job in self.line if job.number not in started]


def fifo(cluster: Cluster, now_s: float) -> None:
    at = 0
    for at, job in enumerate(cluster.line):  # noqa: B007 - how many have left
        placement = cluster.nodes.fit(job)
        if placement is None:
            break
        cluster.start(job, placement, now_s)
    else:
        at = len(cluster.line)
    del cluster.line[:at]


def skip(cluster: Cluster, now_s: float) -> None:
    cluster.start_whoever_fits(cluster.line, now_s)


def oracle(cluster: Cluster, now_s: float) -> None:
    cluster.start_whoever_fits(sorted(cluster.line, key=lambda job: job.duration_s), now_s)


def easy(cluster: Cluster, now_s: float) -> None:
    fifo(cluster, now_s)
    if not cluster.line:
        return
    shadow_s, spare = _reservation(cluster)
    started = set()
    for job in cluster.line[1:]:
        placement = cluster.nodes.fit(job)
        if placement is not None and now_s + job.duration_s > shadow_s:
            placement = Nodes(
                [max(0, min(pair)) for pair in zip(cluster.nodes.free, spare, strict=True)]
            ).fit(job)
            for node in placement or ():
                spare[node] -= job.gpus
        if placement is not None:
            cluster.start(job, placement, now_s)
            started.add(job.number)
    if started:
        cluster.line = [job for job in cluster.line if job.number not in started]


def _reservation(cluster: Cluster) -> tuple[float, list[int]]:
    """When the first in line can start, and what is free on each node then, beside it."""
    job, later = cluster.line[0], Nodes(cluster.nodes.free)
    for end_s, _, ended, placement in sorted(cluster.running):
        later.give(ended, placement)
        reserved = later.fit(job)
        if reserved is not None:
            later.take(job, reserved)
            return end_s, later.free
    raise AssertionError(f"job {job.number} does not fit on the empty cluster")


POLICIES: dict[str, Callable[[Cluster, float], None]] = {
    "FIFO": fifo,
    "FIFO + skip": skip,
    "EASY, true durations": easy,
    "shortest first, true durations": oracle,
}


def replay(jobs: Sequence[TraceJob], nodes: int, policy: Callable[[Cluster, float], None]) -> list[float]:
    """The seconds that each job has waited for its start."""
    cluster = Cluster(nodes)
    for now_s in _moments(jobs, cluster):
        cluster.end_until(now_s)
        policy(cluster, now_s)
    return [cluster.started_s[job.number] - job.submit_s for job in jobs]


def _moments(jobs: Sequence[TraceJob], cluster: Cluster) -> Iterator[float]:
    """Whenever a job arrives (it is in the line then) or ends."""
    at = 0
    while at < len(jobs) or cluster.running:
        arrival_s = jobs[at].submit_s if at < len(jobs) else float("inf")
        end_s = cluster.running[0][0] if cluster.running else float("inf")
        if arrival_s <= end_s:
            cluster.line.append(jobs[at])
            at += 1
        yield min(arrival_s, end_s)
