"""A job that a fault test can hold to account: who started, when it lived, and whether its output is whole.

counting = Counting(tmp_path / "a", instances=2)
job = cluster.submit_text(counting.text)
counting.wait_running(1)
...                                   # faults
counting.stop()
counting.check(cluster, job, attempts=2)
"""

import json
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from paceline.client import views

from .cluster import Cluster, wait_until

SCRIPT = Path(__file__).with_name("counted_rank.py")


class Start(NamedTuple):
    """One line of the start file."""

    attempt: int
    rank: int
    pid: int


class Counting:
    """`instances` ranks, one each; every one counts until `stop` and then exits with `exit_code`."""

    def __init__(
        self,
        folder: Path,
        *,
        instances: int = 1,
        period_s: float = 0.02,
        exit_code: int = 0,
        cpus: float = 1,
        **keys: Any,
    ) -> None:
        """`keys` go into the job file as they are (`exclusive=True`, `retry={...}`)."""
        self.folder = folder
        self.instances = instances
        self.exit_code = exit_code
        (folder / "lives").mkdir(parents=True)
        command = f"{sys.executable} -SE {SCRIPT} {folder} {period_s} {exit_code}"
        resources = {"instance_count": instances, "cpus": cpus}
        self.text = json.dumps({"name": folder.name, "command": command, "resources": resources, **keys})

    def stop(self) -> None:
        """Enough: every rank ends by itself."""
        (self.folder / "enough").touch()

    def starts(self) -> list[Start]:
        try:
            lines = (self.folder / "starts").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [Start(*(int(word) for word in line.split())) for line in lines]

    def pids(self, attempt: int) -> list[int]:
        """Of the attempt's ranks, in their order."""
        return [start.pid for start in sorted(self.starts()) if start.attempt == attempt]

    def wait_running(self, attempt: int, timeout_s: float = 60.0) -> list[int]:
        """Until every rank of the attempt counts; their pids."""
        wait_until(
            f"attempt {attempt} of {self.folder.name} counts, started so far: {self.starts()}",
            lambda: (
                len(self.pids(attempt)) == self.instances and all(self.life(attempt, r) for r in self.ranks)
            ),
            timeout_s,
        )
        return self.pids(attempt)

    def wait_counting_on(self, attempt: int, timeout_s: float = 60.0) -> None:
        """Until every rank of the attempt has counted further than it had."""
        before = [self.life(attempt, rank) for rank in self.ranks]
        wait_until(
            f"attempt {attempt} of {self.folder.name} counts on",
            lambda: all(self.life(attempt, rank) > before[rank] for rank in self.ranks),
            timeout_s,
        )

    @property
    def ranks(self) -> range:
        return range(self.instances)

    def life(self, attempt: int, rank: int) -> tuple[float, ...]:
        """From when to when it lived; empty: never."""
        try:
            data = (self.folder / "lives" / f"{attempt}.{rank}").read_bytes()
        except FileNotFoundError:
            return ()
        return struct.unpack("<dd", data) if len(data) == 16 else ()

    def check(
        self, cluster: Cluster, job: int, *, attempts: int = 1, state: str = "SUCCEEDED", alone: bool = False
    ) -> views.Job:
        """The job ended in `state` after so many attempts, each rank started once in each, no line of output
        is lost or doubled in any. `alone` (exclusive jobs): no two attempts of a rank ever lived at once."""
        found = cluster.wait_state(job, state)
        assert found.attempt == attempts, cluster.story(job, f"{found.attempt} attempts, not {attempts}")
        doubled = {key: n for key, n in Counter(start[:2] for start in self.starts()).items() if n > 1}
        assert not doubled, f"(attempt, rank) that started more than once: {doubled}"
        if alone:
            assert not (self.folder / "twice").exists(), (self.folder / "twice").read_text()
        by_itself = found.exit_code == self.exit_code
        assert not by_itself or len(self.pids(attempts)) == self.instances, cluster.story(
            job, f"ranks of attempt {attempts} that started: {self.starts()}"
        )
        for attempt in range(1, attempts + 1):
            for rank in self.ranks:
                self._check_output(cluster, job, attempt, rank, whole=attempt == attempts and by_itself)
        return found

    def _check_output(self, cluster: Cluster, job: int, attempt: int, rank: int, *, whole: bool) -> None:
        chunks = cluster.client.logs(job, attempt=attempt, rank=rank, follow=True)
        output = b"".join(chunk.data for chunk in chunks)
        *lines, rest = output.split(b"\n")
        ended = lines[-1:] == [b"over"]
        assert not whole or (ended and not rest), cluster.story(
            job, f"rank {rank} ends with {output[-80:]!r}"
        )
        lines = lines[:-1] if ended else lines
        expected = [b"line %d" % number for number in range(1, len(lines) + 1)]
        wrong = [(had, wanted) for had, wanted in zip(lines, expected, strict=True) if had != wanted]
        assert not wrong, f"attempt {attempt} rank {rank}: {wrong[:3]} of {len(lines)} lines"
