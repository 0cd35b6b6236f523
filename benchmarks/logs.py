"""logs: the output of 100 tasks to one follower: how fast, how late, nothing lost when an agent reconnects.

The floor is the same 100 writers with one process that copies their pipes to files: no more is done to a byte
than must be. Every run checks what arrived, byte by byte: each line names its rank and number.
"""

import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cluster import Cluster
from .cluster import version as our_version
from .harness import Options, Report, Row, Sample, alternate, options, quantile
from .peers import ray_train
from .peers.work.driver import Driver

LINE = "%03d %08d " + "x" * 87
WRITER = (
    "awk 'BEGIN { for (i = 0; i < %d; i++) printf \""
    + LINE.replace("%", "%%")
    + '\\n", ENVIRON["RANK"], i }\''
)
"""100 bytes a line, as fast as they go."""
TICKER = (
    "bash -c 'exec {idle}<> <(:); for ((i = 0; i < %d; i++)); do"
    ' printf "%%s %%08d\\n" $EPOCHREALTIME $i; read -t 0.1 -u $idle; done; true\''
)
"""Ten lines a second that say when they were written; no process is started for the wait."""


@dataclass(frozen=True, slots=True)
class Size:
    """Tasks, lines each, and for the lag how many ticks."""

    tasks: int
    lines: int
    ticks: int


FULL = Size(tasks=100, lines=10_000, ticks=50)
QUICK = Size(tasks=10, lines=1_000, ticks=10)


def main(argv: Sequence[str] | None = None) -> None:
    given = options("logs", "Output of 100 tasks to one follower, beside Ray's driver log.", argv)
    size = QUICK if given.quick else FULL
    report = Report("logs", versions={"paceline": our_version()})
    with tempfile.TemporaryDirectory(prefix="bench-logs-") as name:
        folder = Path(name)
        with Cluster(folder, agents=2, slots=size.tasks) as cluster:
            ours = Ours(cluster, size)
            rate(report, given, size, ours, folder)
            beside_ray(report, given, size, ours, folder)
            lags = [ours.lags_s() for _ in range(given.pairs)]
            for word, share in (("p50", 0.5), ("p99", 0.99)):
                taken = Sample(tuple(quantile(run, share) * 1e3 for run in lags))
                report.rows.append(Row(f"{size.tasks} tasks, 10 lines/s each", f"lag, {word}", "ms", taken))
            report.notes.append(ours.reconnect())
    report.left_out(
        "HyperQueue streaming: its wheel has no `hq` command, and its Python interface no streams"
    )
    report.finish(given)


def rate(report: Report, given: Options, size: Size, ours: "Ours", folder: Path) -> None:
    taken = alternate(given.pairs, ours.megabytes_per_s, lambda: copy_megabytes_per_s(folder, size))
    name = "pipe-to-file copy"
    report.rows.append(Row(case(size), "submit to last byte", "MB/s", taken[0], "", None, name, taken[1]))


def beside_ray(report: Report, given: Options, size: Size, ours: "Ours", folder: Path) -> None:
    if why := "Ray driver logs: not with --quick" if given.quick else ray_train.missing():
        report.left_out(why)
        return
    report.versions["ray"] = ray_train.version()
    with ray_train.start(folder) as ray:
        theirs = report.patient("Ray", lambda: ray_megabytes_per_s(ray, size))
        taken = alternate(given.pairs, ours.megabytes_per_s, theirs)
    report.rows.append(Row(case(size), "submit to last byte", "MB/s", taken[0], "Ray driver logs", taken[1]))


def case(size: Size) -> str:
    return f"{size.tasks} tasks, {size.lines * 100 / 1e6:g} MB each"


class Ours:
    """Jobs of many ranks, followed by one client."""

    def __init__(self, cluster: Cluster, size: Size) -> None:
        self._cluster = cluster
        self._size = size

    def megabytes_per_s(self) -> float:
        began = time.monotonic()
        job = self._cluster.client.submit(self._document(WRITER % self._size.lines))
        seen: dict[int, bytearray] = defaultdict(bytearray)
        for chunk in self._cluster.client.logs(job, follow=True):
            seen[chunk.rank] += chunk.data
        took = time.monotonic() - began
        self._check(seen, self._size.lines)
        return sum(map(len, seen.values())) / 1e6 / took

    def lags_s(self) -> list[float]:
        """Of each line, seconds from its writing to its arrival."""
        job = self._cluster.client.submit(self._document(TICKER % self._size.ticks))
        lags = [now - float(line.split()[0]) for now, _, line in self._lines(job)]
        assert len(lags) == self._size.tasks * self._size.ticks, f"{len(lags)} lines arrived"
        return lags

    def reconnect(self) -> str:
        """Follow while an agent dies and comes back; raises unless each line came once and in order."""
        job = self._cluster.client.submit(self._document(TICKER % (self._size.ticks * 2)))
        counts: dict[int, list[int]] = defaultdict(list)
        killed = False
        for _, rank, line in self._lines(job):
            counts[rank].append(int(line.split()[1]))
            if not killed and sum(map(len, counts.values())) > self._size.tasks * self._size.ticks // 2:
                killed = self._bounce_agent(job)
        expected = list(range(self._size.ticks * 2))
        wrong = [rank for rank in range(self._size.tasks) if counts[rank] != expected]
        if wrong:
            raise AssertionError(
                f"after an agent's death: lines of ranks {wrong} lost, doubled or out of order"
            )
        lines = sum(map(len, counts.values()))
        return f"an agent was killed and came back meanwhile: all {lines} lines arrived once, in order"

    def _bounce_agent(self, job: int) -> bool:
        self._cluster.kill_agent(self._cluster.client.job(job).tasks[0].node)
        self._cluster.start_dead()
        return True

    def _document(self, command: str) -> dict[str, Any]:
        return {
            "code": "/",
            "code_in_place": True,
            "command": command,
            "distribution": {"type": "pytorch", "process_count_per_instance": self._size.tasks // 2},
            "resources": {"instance_count": 2, "cpus": self._size.tasks // 2},
        }

    def _lines(self, job: int) -> Iterator[tuple[float, int, bytes]]:
        rest: dict[int, bytes] = defaultdict(bytes)
        for chunk in self._cluster.client.logs(job, follow=True):
            now = time.time()
            *whole, rest[chunk.rank] = (rest[chunk.rank] + chunk.data).split(b"\n")
            for line in whole:
                yield now, chunk.rank, line

    def _check(self, seen: dict[int, bytearray], lines: int) -> None:
        for rank in range(self._size.tasks):
            expected = "".join(LINE % (rank, number) + "\n" for number in range(lines)).encode()
            if bytes(seen[rank]) != expected:
                raise AssertionError(
                    f"rank {rank}: {len(seen[rank])} bytes arrived, not the {len(expected)} written"
                )


def copy_megabytes_per_s(folder: Path, size: Size) -> float:
    """The same writers; one process copies each pipe to a file."""
    began = time.monotonic()
    with selectors.DefaultSelector() as pipes:
        writers = [_start_writer(rank, size, folder, pipes) for rank in range(size.tasks)]
        copied = 0
        while pipes.get_map():
            for key, _ in pipes.select():
                data = os.read(key.fd, 1 << 16)
                copied += os.write(key.data, data)
                if not data:
                    pipes.unregister(key.fileobj)
                    os.close(key.data)
    for writer in writers:
        writer.wait()
        assert writer.stdout
        writer.stdout.close()
    return copied / 1e6 / (time.monotonic() - began)


def _start_writer(
    rank: int, size: Size, folder: Path, pipes: selectors.BaseSelector
) -> "subprocess.Popen[bytes]":
    writer = subprocess.Popen(
        ["sh", "-c", WRITER % size.lines], stdout=subprocess.PIPE, env={**os.environ, "RANK": str(rank)}
    )
    assert writer.stdout
    target = os.open(folder / f"copy-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    pipes.register(writer.stdout, selectors.EVENT_READ, target)
    return writer


def ray_megabytes_per_s(ray: Driver, size: Size) -> float:
    took = float(ray.ask("logs", tasks=size.tasks, lines=size.lines // 10, timeout_s=300))
    return size.tasks * (size.lines // 10) * 100 / 1e6 / took


if __name__ == "__main__":
    main(sys.argv[1:])
