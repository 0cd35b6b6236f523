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
from pathlib import Path
from typing import Any, Final

import psutil
from paceline import AsyncClient
from paceline.client.cli.jobs import PATIENCE_S

from .cluster import PACE, version
from .harness import Report, Row, Sample, parser, quantile, read
from .peers.processes import Crew, free_port
from .recovery import until

NODES_PER_PROCESS: Final = 2_500
DIALS_AT_ONCE: Final = 25
"""Of each process."""
SUBMITS_PER_S, WHYS_PER_S, QUEUES_PER_S = 10, 10, 1
KINDS: Final = (
    *({"name": f"small-{number}", "priority": number % 3} for number in range(6)),
    *({"name": f"gang-{count}", "resources": {"instance_count": count}} for count in (2, 4, 8, 16)),
)
"""Each node has room for one task of any of them."""
TENTHS_SMALL: Final = 9
"""Of the jobs; the others are gangs."""
AWAY: Final = ("NodeUnknown", "NodeLost", "ClusterSuspected")


@dataclass(frozen=True, slots=True)
class Size:
    agents: int
    jobs: int
    """That wait when all nodes are busy."""
    seconds: float
    """Of the measurement."""
    heartbeat_s: float
    ends_per_s: float
    """Tasks."""

    @property
    def case(self) -> str:
        return f"{self.agents:,} agents, {self.jobs:,} jobs wait"


FULL = Size(agents=10_000, jobs=100_000, seconds=60.0, heartbeat_s=10.0, ends_per_s=20.0)
QUICK = Size(agents=20, jobs=400, seconds=3.0, heartbeat_s=1.0, ends_per_s=5.0)


def main(argv: Sequence[str] | None = None) -> None:
    made = parser("scale", "Answers of a scheduler with 10,000 agents and 100,000 waiting jobs.")
    for known in fields(Size):
        kind = int if known.name in ("agents", "jobs") else float
        option = f"--{known.name.replace('_', '-')}"
        made.add_argument(option, type=kind, help=f"(default {getattr(FULL, known.name):,g})")
    parsed = made.parse_args(argv)
    given = read(made, parsed)
    asked = {known.name: getattr(parsed, known.name) for known in fields(Size)}
    size = replace(
        QUICK if given.quick else FULL, **{name: one for name, one in asked.items() if one is not None}
    )
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
        self._last_job = 0
        self._first_job = 0

    async def run(self, report: Report) -> None:
        size, command = (
            self._size,
            [PACE, "scheduler", "--state", str(self._state), "--listen", self._address],
        )
        command += ["--heartbeat", f"{size.heartbeat_s:g}"]
        self._scheduler = psutil.Process(self._crew.start("scheduler", command).pid)
        await until((self._state / "scheduler.json").exists, "the scheduler serves")
        watching = asyncio.create_task(self._watch_memory())
        async with AsyncClient(state=self._state) as client:
            phases = [f"scheduler alone {self._rss():.0f} MB"]
            connected_s = await self._connect()
            phases.append(f"all agents connected {self._rss():.0f} MB")
            submitted_s = await self._fill(client)
            phases.append(f"all jobs submitted, nodes busy {self._rss():.0f} MB")
            busy = await self._measure(client)
            phases.append(f"after the measurement {self._rss():.0f} MB")
            report.notes.append(await self._verdict(client))
        watching.cancel()
        self._report(report, connected_s, submitted_s)
        report.notes += [f"resident: {', '.join(phases)}", busy]

    async def _connect(self) -> float:
        """Seconds until all agents are."""
        size, began_s = self._size, time.monotonic()
        for first in range(0, size.agents, NODES_PER_PROCESS):
            count = min(NODES_PER_PROCESS, size.agents - first)
            self._told.append(self._folder / f"fleet-{first}.json")
            args = [
                str(self._state),
                self._address,
                first,
                count,
                DIALS_AT_ONCE,
                self._mean_s,
                self._told[-1],
            ]
            command = [sys.executable, "-m", "benchmarks.work.fleet_process", *map(str, args)]
            self._crew.start(f"fleet-{first}", command)
        await until(lambda: self._sum("connected") == size.agents, "all agents connected", timeout_s=600)
        return time.monotonic() - began_s

    @property
    def _mean_s(self) -> float:
        return self._size.agents / self._size.ends_per_s

    async def _fill(self, client: AsyncClient) -> float:
        """Seconds for the submissions; then until every node is busy."""
        began_s = time.monotonic()
        documents, tasks = [], 0
        for document in _documents():
            tasks += document.get("resources", {}).get("instance_count", 1)
            documents.append(document)
            if tasks >= self._size.agents and len(documents) >= self._size.jobs:
                break
        made = await client.submit_many(documents)
        self._first_job, self._last_job = made[0], made[-1]
        took_s = time.monotonic() - began_s
        self._submitted = len(made)
        enough = 0.9 * self._size.agents
        await until(lambda: self._sum("running") >= enough, "the nodes are busy", timeout_s=300)
        return took_s

    async def _measure(self, client: AsyncClient) -> str:
        """One caller of each kind. A line on what the scheduler's process did meanwhile."""
        cpu_s, began_s, ended = _cpu_s(self._scheduler), time.monotonic(), self._sum("ended")
        until_s = began_s + self._size.seconds
        await asyncio.gather(
            self._submits(client, until_s), self._whys(client, until_s), self._queues(client, until_s)
        )
        took_s = time.monotonic() - began_s
        share = (_cpu_s(self._scheduler) - cpu_s) / took_s
        rate = (self._sum("ended") - ended) / took_s
        beats = self._size.agents / self._size.heartbeat_s
        return (
            f"in {took_s:.0f} s: {rate:.1f} tasks ended a second, {beats:,.0f} heartbeats were due a second;"
            f" the scheduler's process had {share:.0%} of a core"
        )

    async def _submits(self, client: AsyncClient, until_s: float) -> None:
        documents = _documents()
        while time.monotonic() < until_s:
            self._last_job = await self._timed("submit", client.submit(next(documents)))
            await asyncio.sleep(1 / SUBMITS_PER_S)

    async def _whys(self, client: AsyncClient, until_s: float) -> None:
        first = self._first_job
        while time.monotonic() < until_s:
            asked = (("first", first), ("middle", (first + self._last_job) // 2), ("last", self._last_job))
            for name, job in asked:
                found = await self._timed(f"why of the {name}", client.why(job, patience_s=PATIENCE_S))
                behind = next((one for one in found.reasons if one.code == "behind"), None)
                first = int(behind.fields["first"]) if behind is not None else first
                await asyncio.sleep(1 / WHYS_PER_S)

    async def _queues(self, client: AsyncClient, until_s: float) -> None:
        while time.monotonic() < until_s:
            await self._timed("queues", client.queues())
            await asyncio.sleep(1 / QUEUES_PER_S)

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
            marks = ", ".join("?" * len(AWAY))
            told = f"SELECT kind, count(*) FROM events WHERE kind IN ({marks}) GROUP BY kind"
            away = dict(store.execute(told, AWAY).fetchall())
            told = "SELECT state, count(*) FROM jobs GROUP BY state ORDER BY state"
            states = dict(store.execute(told).fetchall())
        if away or connected != self._size.agents or self._sum("doubled"):
            raise AssertionError(f"{connected} of {self._size.agents} are connected; {away}")
        redialled = self._sum("dials") - self._size.agents
        jobs = ", ".join(f"{count:,} {state}" for state, count in states.items())
        return f"0 nodes taken for dead, {redialled} dialled again, 0 tasks started twice; jobs: {jobs}"

    async def _watch_memory(self) -> None:
        while True:
            self._rss_mb.append(self._rss())
            await asyncio.sleep(1.0)

    def _rss(self) -> float:
        return float(self._scheduler.memory_info().rss / 1e6)

    def _sum(self, name: str) -> int:
        """Over all parts of the fleet, as of their last word."""
        return sum(json.loads(told.read_text())[name] for told in self._told if told.exists())

    def _report(self, report: Report, connected_s: float, submitted_s: float) -> None:
        case = self._size.case
        rows = report.rows
        rows.append(Row(case, "all agents connected", "s", Sample((connected_s,))))
        rows.append(Row(case, "submitted in batches", "jobs/s", Sample((self._submitted / submitted_s,))))
        for name, took_ms in self._took_ms.items():
            rows.append(Row(case, name, "ms", Sample(tuple(took_ms))))
            rows.append(Row(case, f"{name}, p99", "ms", Sample((quantile(took_ms, 0.99),))))
            report.notes.append(f"{name}: {len(took_ms)} calls")
        rows.append(Row(case, "scheduler's resident memory, most", "MB", Sample((max(self._rss_mb),))))


def _cpu_s(process: psutil.Process) -> float:
    """Of the process itself; the forecaster is one of its own."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _documents() -> Iterator[dict[str, Any]]:
    """Without end, in turns."""
    common = {"command": "true", "code": "/"}
    number = 0
    while True:
        number += 1
        small, gang = number % (len(KINDS) - 4), len(KINDS) - 1 - number // 10 % 4
        yield {**common, **KINDS[small if number % 10 < TENTHS_SMALL else gang]}


if __name__ == "__main__":
    main()
