"""recovery: SIGKILL of the scheduler with 100,000 jobs, 10,000 of them running; time until it decides.

The store's content comes about as in life: submitted through gRPC, placed, reported as started by simulated
nodes over real agent streams. Timed twice: from the start of the new process to the first job that it places,
on a node that was not there before and dials when the scheduler serves; and from the kill to that job, on a
node that was connected and dials again when an agent would. Then all nodes come back: every job must be
there, none started twice.
"""

import asyncio
import json
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
from paceline import AsyncClient
from paceline.agent.streams import SETTLED_S
from paceline.spec.lifecycle import JobState

from .cluster import PACE
from .cluster import version as our_version
from .harness import Options, Report, Row, Sample, options
from .peers import slurm
from .peers.processes import Crew, free_port, run
from .peers.work.waiting import wait_until
from .work.fleet import Fleet, SimNode

DOCUMENT = {"command": "true", "code": "/", "code_in_place": True, "resources": {"cpus": 1}}
NEW_CPUS = 8
START = "process start to first decision"
KILL = "kill to first decision, agent dials again"
PHASES = """
import gc, sys, time
from concurrent.futures import ThreadPoolExecutor
gc.disable()
def timed(act, *given):
    began = time.perf_counter()
    return act(*given), time.perf_counter() - began
def imports():
    import paceline.scheduler.server
def rebuild(store):
    recover(store.load())
_, first = timed(__import__, "paceline.scheduler.main")
from paceline.scheduler.records import recover
from paceline.scheduler.store import open_store
with ThreadPoolExecutor() as threads:
    opening = threads.submit(timed, open_store, sys.argv[1])
    _, rest = timed(imports)
    (store, opened), waited = timed(opening.result)
_, rebuilt = timed(rebuild, store)
print(first + rest, opened, waited, rebuilt)
"""


@dataclass(frozen=True, slots=True)
class Size:
    """Jobs in the store, and those of them that run."""

    jobs: int
    running: int
    nodes: int

    @property
    def case(self) -> str:
        return f"{self.jobs:,} jobs, {self.running:,} running"


FULL = Size(jobs=100_000, running=10_000, nodes=100)
QUICK = Size(jobs=2_000, running=200, nodes=10)


def main(argv: Sequence[str] | None = None) -> None:
    given = options("recovery", "SIGKILL of the scheduler to its first new decision, beside slurmctld.", argv)
    size = QUICK if given.quick else FULL
    report = Report("recovery", versions={"paceline": our_version()})
    with tempfile.TemporaryDirectory(prefix="bench-recovery-") as name, Crew(Path(name)) as crew:
        asyncio.run(Recovery(Path(name), crew, size).run(report, given))
    report.finish(given)


class Recovery:
    """Our scheduler with a full store, killed again and again."""

    def __init__(self, folder: Path, crew: Crew, size: Size) -> None:
        self._folder = folder
        self._state = folder / "state"
        self._crew = crew
        self._size = size
        self._address = f"127.0.0.1:{free_port()}"
        self._fleet = Fleet(self._state, self._address)

    async def run(self, report: Report, given: Options) -> None:
        await self._fill()
        theirs = SlurmRecovery.prepare(report, given, self._size, self._folder)
        ours, dialled, floor, slurms = [], [], [], []
        try:
            for _ in range(given.pairs):
                ours.append(await self._start_to_decision())
                dialled.append(await self._kill_to_decision())
                floor.append(await asyncio.to_thread(read_and_decode_s, self._state / "paceline.db"))
                if theirs is not None:
                    slurms.append(await asyncio.to_thread(theirs.once))
        finally:
            if theirs is not None:
                theirs.close()
            await self._fleet.hang_up()
        taken, floors = Sample(tuple(ours)), Sample(tuple(floor))
        peer, beside = ("slurmctld", Sample(tuple(slurms))) if slurms else ("", None)
        report.rows.append(Row(self._size.case, START, "s", taken, peer, beside, "read+decode", floors))
        again = Sample(tuple(dialled))
        report.rows.append(Row(self._size.case, KILL, "s", again, "", None, "read+decode", floors))
        report.notes.append(await self._verdict())
        report.notes.append(f"the fill: {self._filled}")
        self._kill()
        report.notes.append(self._phases(given.pairs))

    async def _fill(self) -> None:
        self._start()
        wait_until((self._state / "scheduler.json").exists, "the scheduler serves")
        self._fleet.dial(self._fleet.add(self._size.nodes, self._size.running // self._size.nodes))
        began = time.monotonic()
        async with AsyncClient(state=self._state) as client:
            await client.submit_many([DOCUMENT] * self._size.jobs)
            submitted = time.monotonic()
            await until(lambda: self._fleet.started == self._size.running, "all nodes full", timeout_s=300)
            await until(lambda: self._running(client), "all starts known", timeout_s=300)
        took = (submitted - began, time.monotonic() - began)
        self._filled = f"{self._size.jobs / took[0]:,.0f} submits/s, all running after {took[1]:.1f} s"

    async def _running(self, client: AsyncClient) -> bool:
        return not await client.jobs(states=[JobState.STARTING], limit=1)

    def _start(self) -> float:
        command = [PACE, "scheduler", "--state", str(self._state), "--listen", self._address]
        began = time.time()
        self._process = self._crew.start("scheduler", command)
        return began

    async def _start_to_decision(self) -> float:
        """Kill, start, and the seconds until a new node is given a job; then wait for all the others."""
        await self._fleet.hang_up()
        self._kill()
        began = self._start()
        [new] = self._fleet.add(1, NEW_CPUS)
        await until(self._serves, "the scheduler serves")
        self._fleet.dial([new])
        return await self._all_back(new) - began

    async def _kill_to_decision(self) -> float:
        """The same, with a node that was there, without anything to give, and dials as an agent does."""
        [spare] = self._fleet.add(1, cpus=0)
        self._fleet.dial_as_agents_do(spare)
        await until(spare.connected.is_set, "the spare node connected")
        await asyncio.sleep(SETTLED_S)  # an agent's stream of that age is worth dialling for
        await self._fleet.hang_up(but=spare)
        spare.cpus = NEW_CPUS
        began = time.time()
        self._kill()
        self._start()
        return await self._all_back(spare) - began

    async def _all_back(self, new: SimNode) -> float:
        """When that node was given its first job; waits for all the others after that."""
        await until(lambda: new.tasks, "a job on the new node")
        self._fleet.dial([node for node in self._fleet.nodes if node is not new])
        await until(lambda: all(node.connected.is_set() for node in self._fleet.nodes), "all nodes back")
        await until(lambda: len(new.tasks) == NEW_CPUS, "the new node full")
        return min(new.tasks.values())

    def _kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _phases(self, count: int) -> str:
        """What a start's time is made of: of so many, the one in the middle."""
        command = [sys.executable, "-c", PHASES, str(self._state / "paceline.db")]
        taken = [[float(each) for each in run(command).split()] for _ in range(count)]
        imports, opened, waited, rebuilt = sorted(taken, key=lambda took: took[0] + took[2] + took[3])[
            count // 2
        ]
        return (
            f"of it imports {imports:.2f} s, beside them opening and checking the store {opened:.2f} s"
            f" (waited for: {waited:.2f} s), then load and rebuild {rebuilt:.2f} s"
        )

    def _serves(self) -> bool:
        record = self._state / "scheduler.json"
        return record.exists() and json.loads(record.read_text())["pid"] == self._process.pid

    async def _verdict(self) -> str:
        """One line on what is in the store; raises when a job is lost or was started twice."""
        async with AsyncClient(state=self._state) as client:
            await until(lambda: self._running(client), "all starts known")
            jobs = await client.jobs(limit=self._size.jobs + 1)
        states = Counter(str(job.state) for job in jobs)
        again = [job.job for job in jobs if job.attempt > 1]
        if len(jobs) != self._size.jobs or again or self._fleet.doubled:
            raise AssertionError(
                f"{len(jobs)} of {self._size.jobs} jobs are there, {states};"
                f" started again: {again[:10]}, doubled: {self._fleet.doubled[:10]}"
            )
        counts = ", ".join(f"{count:,} {state}" for state, count in states.items())
        return f"0 lost, 0 started twice: {counts}, each at its first attempt"


def read_and_decode_s(file: Path) -> float:
    """Read all live jobs and nodes with plain sqlite3 and decode their records: no less can be done."""
    decode = msgspec.json.Decoder().decode
    began = time.monotonic()
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
        live = "SELECT * FROM jobs WHERE state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED') ORDER BY job"
        for row in store.execute(live):
            decode(row[-1])
            decode(row[-2])
        for _, record in store.execute("SELECT * FROM nodes"):
            decode(record)
    return time.monotonic() - began


class SlurmRecovery:
    """slurmctld with as many jobs: those that run are on nodes that only allocate (State=CLOUD)."""

    def __init__(self, cluster: slurm.Slurm, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._runs = 0

    @classmethod
    def prepare(cls, report: Report, given: Options, size: Size, folder: Path) -> "SlurmRecovery | None":
        why = "slurmctld: not with --quick" if given.quick else slurm.missing()
        if why:
            report.left_out(why)
            return None
        report.versions["slurm"] = slurm.version().split()[-1]
        report.notes.append(
            "slurmctld: its pending jobs are elements of one array, which it keeps as one record; the running"
            " ones were placed on nodes that only allocate; its time includes the launch by a real slurmd"
        )
        here = folder / "slurm"
        here.mkdir()
        each = size.running // size.nodes
        cluster = slurm.Slurm(here, nodes=1, cpus=NEW_CPUS, cloud=size.nodes, cloud_cpus=each)
        cluster.__enter__()
        made = cls(cluster, here)
        try:
            made._fill(size)
        except BaseException:
            made.close()
            raise
        return made

    def _fill(self, size: Size) -> None:
        array = f"--array=1-{size.jobs}"
        self._cluster.run("sbatch", "-Q", "-p", "cloud", "-o", "/dev/null", array, "--wrap", "true")
        wait_until(lambda: self._allocated() >= size.running, "Slurm's nodes full", timeout_s=600, every_s=2)

    def _allocated(self) -> int:
        return len(self._cluster.run("squeue", "-h", "-r", "-t", "R,CF", "-o", "%A").split())

    def once(self) -> float:
        """Kill, start, and the seconds until a job submitted as soon as it listens runs on the real node."""
        self._runs += 1
        told = self._folder / f"decided-{self._runs}"
        self._cluster.controller.kill()
        self._cluster.controller.wait()
        began = time.time()
        self._cluster.start_controller()
        wait_until(self._listens, "slurmctld listens", timeout_s=120)
        script = f"bash -c 'echo $EPOCHREALTIME > {told}'"
        self._cluster.run("sbatch", "-Q", "-p", "main", "-o", "/dev/null", "--wrap", script)
        wait_until(lambda: told.exists() and told.read_text(), "Slurm's new job", timeout_s=120)
        return float(told.read_text()) - began

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._cluster.port)) == 0

    def close(self) -> None:
        self._cluster.__exit__(None, None, None)


async def until(
    condition: Callable[[], object | Awaitable[object]], what: str, *, timeout_s: float = 60.0
) -> None:
    """`wait_until` for asyncio; the condition may be a coroutine."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if await found if isinstance(found, Awaitable) else found:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {timeout_s} s")
        await asyncio.sleep(0.005)


if __name__ == "__main__":
    main(sys.argv[1:])
