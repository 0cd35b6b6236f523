"""scale: 10,000 agents and 100,000 waiting jobs: does the control plane still answer, and what does it hold?

The scheduler is a process of its own, started as users start it, with SQLite. The agents are simulated: each
speaks the agents' protocol over a connection of its own, several thousand to a process; they dial a few at a
time and send heartbeats. Every node is busy; jobs end all the time, and others start. Meanwhile one job after
the other is submitted, and `why` is asked for the first in line, one from its middle and the last, with the
patience of the command line; and now and then `queues`. No node may be taken for dead.
"""

import asyncio
import json
import sqlite3
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, Final

import psutil
from paceline import AsyncClient
from paceline.client.cli.jobs import PATIENCE_S
from paceline.client.documents import Prepared, prepare

from .cluster import PACE, version
from .harness import Report, Row, Sample, parser, quantile, read
from .peers.processes import Crew, free_port
from .recovery import until

NODES_PER_PROCESS: Final = 2_500
DIALS_AT_ONCE: Final = 25
"""Of each process."""
PAUSE_S: Final = 0.1
"""Of who submits and of who asks why, after each answer."""
QUEUES_PAUSE_S: Final = 1.0
PATIENT_S: Final = 120.0
"""Of the client, while the line and the nodes are filled."""
COMMON: Final = {"command": "true", "code": "/", "code_in_place": True}
SMALL: Final = [{"name": f"small-{number}", "priority": number % 3} for number in range(6)]
GANGS: Final = [{"name": f"gang-{size}", "resources": {"instance_count": size}} for size in (2, 4, 8, 16)]
"""A node has room for one task of any job."""
DEATHS: Final = ("NodeLost", "ClusterSuspected")


@dataclass(frozen=True, slots=True)
class Size:
    agents: int
    jobs: int
    """That wait, at the least, when all nodes are busy."""
    seconds: float
    """Of the measurement."""
    heartbeat_s: float
    ends_per_s: float
    """Tasks."""

    @property
    def case(self) -> str:
        return f"{self.agents:,} agents, {self.jobs:,} jobs wait"


FULL: Final = Size(agents=10_000, jobs=100_000, seconds=60.0, heartbeat_s=10.0, ends_per_s=20.0)
QUICK: Final = Size(agents=20, jobs=400, seconds=3.0, heartbeat_s=5.0, ends_per_s=5.0)


def main(argv: Sequence[str] | None = None) -> None:
    made = parser("scale", "Answers of a scheduler with 10,000 agents and 100,000 waiting jobs.")
    for known in fields(Size):
        kind = int if known.name in ("agents", "jobs") else float
        option = f"--{known.name.replace('_', '-')}"
        made.add_argument(option, type=kind, help=f"(default {getattr(FULL, known.name):,g})")
    parsed = made.parse_args(argv)
    given = read(made, parsed)
    asked = {known.name: getattr(parsed, known.name) for known in fields(Size)}
    asked = {name: one for name, one in asked.items() if one is not None}
    size = replace(QUICK if given.quick else FULL, **asked)
    report = Report("scale", versions={"paceline": version()})
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as name, Crew(Path(name)) as crew:
        asyncio.run(Scale(Path(name), crew, size).run(report))
    report.finish(given)


class Scale:
    """One scheduler and its fleet."""

    def __init__(self, folder: Path, crew: Crew, size: Size) -> None:
        self._folder, self._crew, self._size = folder, crew, size
        self._state = folder / "state"
        self._address = f"127.0.0.1:{free_port()}"
        self._told: list[Path] = []
        self._took_ms: defaultdict[str, list[float]] = defaultdict(list)
        self._rss_mb: list[float] = []
        self._first_job = self._last_job = 0

    async def run(self, report: Report) -> None:
        command = [PACE, "scheduler", "--state", str(self._state), "--listen", self._address]
        command += ["--heartbeat", f"{self._size.heartbeat_s:g}"]
        self._scheduler = psutil.Process(self._crew.start("scheduler", command).pid)
        await until((self._state / "scheduler.json").exists, "the scheduler serves")
        watching = asyncio.create_task(self._watch_memory())
        async with AsyncClient(state=self._state, patience_s=PATIENT_S) as client:
            phases = [f"alone {self._rss():,.0f} MB"]
            connected_s = await self._connect()
            phases.append(f"with all agents {self._rss():,.0f} MB")
            rate = await self._fill(client)
            phases.append(f"with all jobs {self._rss():,.0f} MB")
            busy = await self._measure(client)
            phases.append(f"in the end {self._rss():,.0f} MB")
            report.notes.append(await self._verdict(client))
        watching.cancel()
        self._report(report, connected_s, rate)
        report.notes += [f"the scheduler holds: {', '.join(phases)}", busy]

    async def _connect(self) -> float:
        """Seconds until all agents are."""
        size, began_s = self._size, time.monotonic()
        mean_s = size.agents / size.ends_per_s
        for first in range(0, size.agents, NODES_PER_PROCESS):
            nodes = min(NODES_PER_PROCESS, size.agents - first)
            told = self._folder / f"fleet-{first}.json"
            args = (self._state, self._address, first, nodes, DIALS_AT_ONCE, mean_s, told)
            command = [sys.executable, "-m", "benchmarks.work.fleet_process", *map(str, args)]
            self._crew.start(f"fleet-{first}", command)
            self._told.append(told)
        await until(lambda: self._sum("connected") == size.agents, "all agents connected", timeout_s=600)
        return time.monotonic() - began_s

    async def _fill(self, client: AsyncClient) -> float:
        """Submissions a second; waits until nearly every node is busy: some are kept for gangs."""
        began_s = time.monotonic()
        made = await client.submit_prepared(list(islice(_jobs(), self._size.jobs + self._size.agents)))
        rate = len(made) / (time.monotonic() - began_s)
        self._first_job, self._last_job = made[0], made[-1]
        enough = 0.9 * self._size.agents
        await until(lambda: self._sum("running") >= enough, "the nodes are busy", timeout_s=300)
        return rate

    async def _measure(self, client: AsyncClient) -> str:
        """One caller of each kind. A line on what the scheduler's process did meanwhile."""
        cpu_s, began_s, ended = _cpu_s(self._scheduler), time.monotonic(), self._sum("ended")
        until_s = began_s + self._size.seconds
        callers = self._submits(client, until_s), self._whys(client, until_s), self._queues(client, until_s)
        await asyncio.gather(*callers)
        took_s = time.monotonic() - began_s
        share = (_cpu_s(self._scheduler) - cpu_s) / took_s
        beats, ends = self._size.agents / self._size.heartbeat_s, (self._sum("ended") - ended) / took_s
        return (
            f"in {took_s:.0f} s: {beats:,.0f} heartbeats were due a second and {ends:.1f} tasks ended;"
            f" the scheduler's process had {share:.0%} of a core"
        )

    async def _submits(self, client: AsyncClient, until_s: float) -> None:
        jobs = _jobs()
        while time.monotonic() < until_s:
            [self._last_job] = await self._timed("submit", client.submit_prepared([next(jobs)]))
            await asyncio.sleep(PAUSE_S)

    async def _whys(self, client: AsyncClient, until_s: float) -> None:
        first = self._first_job
        while time.monotonic() < until_s:
            asked = (("first", first), ("middle", (first + self._last_job) // 2), ("last", self._last_job))
            for name, job in asked:
                found = await self._timed(f"why, {name} in line", client.why(job, patience_s=PATIENCE_S))
                behind = next((one for one in found.reasons if one.code == "behind"), None)
                first = int(behind.fields["first"]) if behind is not None else first
                await asyncio.sleep(PAUSE_S)

    async def _queues(self, client: AsyncClient, until_s: float) -> None:
        while time.monotonic() < until_s:
            await self._timed("queues", client.queues())
            await asyncio.sleep(QUEUES_PAUSE_S)

    async def _timed(self, name: str, asked: Awaitable[Any]) -> Any:
        began_s = time.perf_counter()
        found = await asked
        self._took_ms[name].append(1000 * (time.perf_counter() - began_s))
        return found

    async def _verdict(self, client: AsyncClient) -> str:
        """Raises where a node was taken for dead, or a task was started twice."""
        nodes = (await client.nodes()).nodes
        connected = sum(node.contact == "connected" for node in nodes)
        with closing(sqlite3.connect(f"file:{self._state / 'paceline.db'}?mode=ro", uri=True)) as store:
            events = dict(store.execute("SELECT kind, count(*) FROM events GROUP BY kind").fetchall())
            states = dict(store.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        dead = {kind: events[kind] for kind in DEATHS if kind in events}
        if dead or connected != self._size.agents or self._sum("doubled"):
            raise AssertionError(f"{connected} of {self._size.agents} are connected; {dead}")
        redialled, silent = self._sum("dials") - self._size.agents, events.get("NodeUnknown", 0)
        jobs = ", ".join(f"{number:,} {state}" for state, number in sorted(states.items()))
        return (
            f"0 nodes taken for dead, {silent} times one was thought silent, {redialled} dialled again,"
            f" 0 tasks started twice; jobs: {jobs}"
        )

    async def _watch_memory(self) -> None:
        while True:
            self._rss_mb.append(self._rss())
            await asyncio.sleep(1.0)

    def _rss(self) -> float:
        return float(self._scheduler.memory_info().rss / 1e6)

    def _sum(self, name: str) -> int:
        """Over all parts of the fleet, as of their last word."""
        return sum(json.loads(told.read_text())[name] for told in self._told if told.exists())

    def _report(self, report: Report, connected_s: float, rate: float) -> None:
        rows = [("all agents connected", "s", connected_s), ("submitted, 1,000 in a call", "jobs/s", rate)]
        report.rows += [Row(self._size.case, name, unit, Sample((value,))) for name, unit, value in rows]
        for name, took_ms in sorted(self._took_ms.items()):
            p99 = Sample((quantile(took_ms, 0.99),))
            report.rows.append(Row(self._size.case, f"{name} ({len(took_ms)})", "ms", Sample(tuple(took_ms))))
            report.rows.append(Row(self._size.case, f"{name}, p99", "ms", p99))
        most = Sample((max(self._rss_mb),))
        report.rows.append(Row(self._size.case, "memory of the scheduler, most", "MB", most))


def _cpu_s(process: psutil.Process) -> float:
    """Of the process itself; the forecaster is one of its own."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _jobs() -> Iterator[Prepared]:
    """Without end, in turns: one in ten is a gang."""
    small, gangs = ([prepare({**COMMON, **kind}) for kind in kinds] for kinds in (SMALL, GANGS))
    for number in count():
        kinds = gangs if number % 10 == 0 else small
        yield kinds[number // 10 % len(kinds)]


if __name__ == "__main__":
    main()
