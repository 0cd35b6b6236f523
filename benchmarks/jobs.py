"""jobs: N jobs of `true` through gRPC: durable, real processes; and from submit to start at half that load.

Two ways in, each beside the peer's own: all at once (Slurm's array, HyperQueue's job of many tasks) and one
by one (sbatch after sbatch, a HyperQueue job each). Jobs are over when the scheduler knows their exit codes.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

import psutil
from paceline import AsyncClient, Client
from paceline.spec.lifecycle import TERMINAL, JobState

from . import floors
from .cluster import Cluster
from .cluster import version as our_version
from .harness import Report, Row, Sample, alternate, options, quantile
from .peers import hyperqueue, slurm
from .peers.work.driver import Driver
from .peers.work.waiting import wait_until

SLOTS = 64
"""Jobs that run at once, per node, here and there; two nodes each."""
IN_FLIGHT = 64
DOCUMENT = {"command": "true", "code": "/", "code_in_place": True, "resources": {"cpus": 1}}


@dataclass(frozen=True, slots=True)
class Size:
    """How many jobs one measure submits."""

    ours: int
    slurm: int
    hyperqueue: int
    starts: int


FULL = Size(ours=1000, slurm=200, hyperqueue=1000, starts=300)
QUICK = Size(ours=50, slurm=20, hyperqueue=50, starts=20)


def main(argv: Sequence[str] | None = None) -> None:
    given = options(
        "jobs", "Jobs of `true` a second, and submit to start, beside Slurm and HyperQueue.", argv
    )
    size = QUICK if given.quick else FULL
    report = Report("jobs", versions={"paceline": our_version()})
    with tempfile.TemporaryDirectory(prefix="bench-jobs-") as name:
        folder = Path(name)
        floor = floor_of(folder, size, given.pairs, report)
        with Cluster(folder, agents=2, slots=SLOTS) as cluster:
            ours = Ours(cluster, size)
            ours.at_once()
            match = Match(report, given.pairs, ours, floor)
            beside_slurm(match, size, folder)
            beside_hyperqueue(match, size, folder)
            if not report.rows:
                match.alone()
            report.notes.append(ours.cpu.told)
    report.left_out("Ray jobs: about one a second, and they need its dashboard")
    report.finish(given)


def floor_of(folder: Path, size: Size, pairs: int, report: Report) -> Sample:
    """The least of what the machine does of each part alone; all three are said."""
    spawns, commits, calls = alternate(
        pairs,
        lambda: floors.spawns_per_s(size.ours),
        lambda: floors.commits_per_s(folder, size.ours * 10),
        lambda: floors.calls_per_s(size.ours * 2),
    )
    told = {"posix_spawn": spawns, "group-committed rows": commits, "gRPC unary calls": calls}
    parts = ", ".join(f"{name} {sample.median:,.0f}/s" for name, sample in told.items())
    report.notes.append(f"floors: {parts}; the least is the floor")
    return min(told.values(), key=lambda sample: sample.median)


def beside_slurm(match: "Match", size: Size, folder: Path) -> None:
    if why := slurm.missing():
        match.report.left_out(why)
        return
    match.report.versions["slurm"] = slurm.version().split()[-1]
    here = folder / "slurm"
    here.mkdir()
    with slurm.Slurm(here, nodes=2, cpus=SLOTS) as cluster:
        match.beside("Slurm", BySlurm(cluster, size))


def beside_hyperqueue(match: "Match", size: Size, folder: Path) -> None:
    if why := hyperqueue.missing():
        match.report.left_out(why)
        return
    match.report.versions["hyperqueue"] = hyperqueue.version()
    with hyperqueue.start(folder, workers=2, cores=SLOTS) as server:
        match.beside("HyperQueue", ByHyperQueue(server, size))


class Side(Protocol):
    """One contestant: jobs a second in two ways, and the seconds from submit to start at half load."""

    def at_once(self) -> float: ...

    def one_by_one(self) -> float: ...

    def starts(self) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class Match:
    """Ours against one peer after the other."""

    report: Report
    pairs: int
    ours: Side
    floor: Sample

    def beside(self, peer: str, theirs: Side) -> None:
        self._rate("all at once", peer, *alternate(self.pairs, self.ours.at_once, theirs.at_once))
        self._rate("one by one", peer, *alternate(self.pairs, self.ours.one_by_one, theirs.one_by_one))
        runs = [(self.ours.starts(), theirs.starts()) for _ in range(self.pairs)]
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            mine, others = ([quantile(run, share) * 1e3 for run in side] for side in zip(*runs, strict=True))
            metric = f"submit to start, {name}"
            self.report.rows.append(
                Row("half load", metric, "ms", Sample(tuple(mine)), peer, Sample(tuple(others)))
            )

    def alone(self) -> None:
        self._rate("all at once", "", *alternate(self.pairs, self.ours.at_once))
        self._rate("one by one", "", *alternate(self.pairs, self.ours.one_by_one))

    def _rate(self, case: str, peer: str, ours: Sample, theirs: Sample | None = None) -> None:
        self.report.rows.append(
            Row(case, "end to end", "jobs/s", ours, peer, theirs, "least floor", self.floor)
        )


class Cpu:
    """Where a job's CPU time goes: the whole machine's, and what each process of ours took of it."""

    def __init__(self, cluster: Cluster) -> None:
        agents = [cluster.agent_pid(f"local-{index}") for index in range(2)]
        self._parts = {"scheduler": [cluster.scheduler_pid()], "agents": agents, "client": [os.getpid()]}
        self._spent_s: Counter[str] = Counter()
        self._jobs = 0

    @contextmanager
    def of(self, jobs: int) -> Iterator[None]:
        """Account what is done inside to that many jobs."""
        before = self._seconds()
        yield
        self._spent_s.update({part: spent - before[part] for part, spent in self._seconds().items()})
        self._jobs += jobs

    def _seconds(self) -> dict[str, float]:
        machine = psutil.cpu_times()
        told = {"all": sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice}
        for part, pids in self._parts.items():
            times = [psutil.Process(pid).cpu_times() for pid in pids]
            told[part] = sum(spent.user + spent.system for spent in times)
        return told

    @property
    def told(self) -> str:
        """One line; the machine's limit is what its cores give at that price."""
        ms = {part: spent * 1e3 / self._jobs for part, spent in self._spent_s.items()}
        rest = 2 * ms["all"] - sum(ms.values())
        parts = ", ".join(f"{part} {ms[part]:.2f}" for part in self._parts)
        return (
            f"CPU of a job, all at once: {ms['all']:.2f} ms of the machine's; {parts}, shims, `true` and "
            f"whatever else ran {rest:.2f}; at that price {psutil.cpu_count()} cores give "
            f"{1e3 * (psutil.cpu_count() or 1) / ms['all']:.0f} jobs/s"
        )


class Ours:
    """Jobs through our SDK."""

    def __init__(self, cluster: Cluster, size: Size) -> None:
        self._cluster = cluster
        self._client: Client = cluster.client
        self._size = size
        self._rates: list[float] = []
        self.cpu = Cpu(cluster)

    def at_once(self) -> float:
        with self.cpu.of(self._size.ours):
            return self._at_once()

    def _at_once(self) -> float:
        began = time.monotonic()
        self._client.submit_many([DOCUMENT] * self._size.ours)
        self._wait()
        return self._size.ours / (time.monotonic() - began)

    def one_by_one(self) -> float:
        began = time.monotonic()
        asyncio.run(self._submit_all(self._size.ours))
        self._wait()
        self._rates.append(self._size.ours / (time.monotonic() - began))
        return self._rates[-1]

    def starts(self) -> list[float]:
        """Seconds from before the submit to what the scheduler recorded as the start."""
        rate = (sum(self._rates) / len(self._rates) if self._rates else self.one_by_one()) / 2
        submitted = asyncio.run(self._submit_paced(self._size.starts, rate))
        self._wait()
        return [self._started_at(job) - at for job, at in submitted.items()]

    def _started_at(self, job: int) -> float:
        told = self._client.job(job)
        assert told.started_us is not None, told
        return told.started_us / 1e6

    async def _submit_all(self, jobs: int) -> None:
        left = iter(range(jobs))

        async def submitter(client: AsyncClient) -> None:
            for _ in left:
                await client.submit(DOCUMENT)

        async with AsyncClient(state=self._cluster.state) as client:
            await asyncio.gather(*(submitter(client) for _ in range(IN_FLIGHT)))

    async def _submit_paced(self, jobs: int, rate: float) -> dict[int, float]:
        submitted: dict[int, float] = {}

        async def one(client: AsyncClient) -> None:
            at = time.time()
            submitted[await client.submit(DOCUMENT)] = at

        async with AsyncClient(state=self._cluster.state) as client, asyncio.TaskGroup() as group:
            begin = time.monotonic()
            for index in range(jobs):
                await asyncio.sleep(begin + index / rate - time.monotonic())
                group.create_task(one(client))
        return submitted

    def _wait(self) -> None:
        live = [state for state in JobState if state not in TERMINAL]
        wait_until(
            lambda: not self._client.jobs(states=live, limit=1), "all jobs over", timeout_s=300, every_s=0.02
        )
        failed = self._client.jobs(states=[JobState.FAILED], limit=1)
        if failed:
            raise RuntimeError(f"job {failed[0].job} failed: {failed[0].reason}")


class BySlurm:
    """Jobs through sbatch; output goes nowhere, so that no file system stands in its way."""

    def __init__(self, cluster: slurm.Slurm, size: Size) -> None:
        self._cluster = cluster
        self._size = size
        self._numbers = count()
        self._rates: list[float] = []

    def at_once(self) -> float:
        began = time.monotonic()
        self._sbatch(f"--array=1-{self._size.slurm}", "--wrap", "true")
        self._wait()
        return self._size.slurm / (time.monotonic() - began)

    def one_by_one(self) -> float:
        """Two sbatch at a time: one per core."""
        began = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: self._sbatch("--wrap", "true"), range(self._size.slurm)))
        self._wait()
        self._rates.append(self._size.slurm / (time.monotonic() - began))
        return self._rates[-1]

    def starts(self) -> list[float]:
        """Seconds from before the sbatch to the job script's own first action."""
        rate = (sum(self._rates) / len(self._rates) if self._rates else self.one_by_one()) / 2
        jobs = max(10, self._size.starts // 5)
        out = self._cluster.folder / f"starts-{next(self._numbers)}"
        out.mkdir()
        begin, submitted = time.monotonic(), []
        for index in range(jobs):
            time.sleep(max(0.0, begin + index / rate - time.monotonic()))
            submitted.append(time.time())
            self._sbatch("--wrap", f"bash -c 'echo $EPOCHREALTIME > {out}/{index}'")
        self._wait()
        return [float((out / str(index)).read_text()) - at for index, at in enumerate(submitted)]

    def _sbatch(self, *arguments: str) -> None:
        self._cluster.run("sbatch", "-Q", "-o", "/dev/null", "-e", "/dev/null", *arguments)

    def _wait(self) -> None:
        wait_until(lambda: not self._cluster.queued(), "Slurm's jobs over", timeout_s=300, every_s=0.1)


class ByHyperQueue:
    def __init__(self, server: Driver, size: Size) -> None:
        self._server = server
        self._size = size
        self._rates: list[float] = []

    def at_once(self) -> float:
        return self._size.hyperqueue / float(self._server.ask("array", tasks=self._size.hyperqueue))

    def one_by_one(self) -> float:
        self._rates.append(
            self._size.hyperqueue / float(self._server.ask("jobs", count=self._size.hyperqueue))
        )
        return self._rates[-1]

    def starts(self) -> list[float]:
        rate = (sum(self._rates) / len(self._rates) if self._rates else self.one_by_one()) / 2
        return [float(value) for value in self._server.ask("starts", count=self._size.starts, rate=rate)]


if __name__ == "__main__":
    main(sys.argv[1:])
