"""Ways to train through chaos: a script, what it is told, and how its losses are read."""

import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.spec.ids import JobId

from .cluster import Cluster, wait_until

HANG_S = 10
STILL_S = 180.0
Losses = dict[tuple[int, int, int], float]
"""(Attempt, rank, step) -> loss."""
Batches = dict[tuple[int, int, int], list[int]]
"""The same -> the samples that this rank had in the step."""


def _read_saving(folder: Path) -> Losses:
    return {
        (int(attempt), int(rank), int(step)): float(loss)
        for attempt, rank, step, loss in _words(folder / "losses")
    }


def _read_looping(folder: Path) -> Losses:
    return {
        (int(attempt), int(rank), int(step)): float(loss)
        for attempt, rank, step, _pid, loss in _words(folder / "steps")
    }


def _read_elastic(folder: Path) -> Losses:
    return {key: said["loss"] for key, said in _told_elastic(folder)}


def _read_batches(folder: Path) -> Batches:
    return {key: said["samples"] for key, said in _told_elastic(folder)}


def _told_elastic(folder: Path) -> Iterator[tuple[tuple[int, int, int], dict[str, Any]]]:
    for path in folder.glob("*.jsonl"):
        attempt, rank, _ = path.name.split(".")
        for line in _lines(path):
            said = json.loads(line)
            yield (int(attempt), int(rank), said["step"]), said


def _no_batches(_: Path) -> Batches:
    return {}


def _words(path: Path) -> Iterator[list[str]]:
    return (line.split() for line in _lines(path))


def _lines(path: Path) -> list[str]:
    """Whole ones: a rank may be killed while it writes its last."""
    text = path.read_text() if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


@dataclass(frozen=True, slots=True)
class Course:
    """A way to train. Its script is given a folder and `arguments`, makes at most `steps`, which take longer
    than a round's faults do on a busy machine, and hurries to its end when FOLDER/enough is there.
    """

    name: str
    script: str
    arguments: str
    hurried: str
    """Instead, for all the steps without a pause, and seldom saved."""
    steps: int
    read: Callable[[Path], Losses]
    loss_is_of_rank: bool = True
    """Else it is the gang's, the same at all ranks and with any number of them."""
    instances_min: int = 2
    batches: Callable[[Path], Batches] = _no_batches

    def submit(self, cluster: Cluster, folder: Path) -> JobId:
        return self._submit(cluster, folder, self.arguments)

    def undisturbed(self, cluster: Cluster, folder: Path) -> tuple[Losses, Batches]:
        """What all steps are like when nothing happens."""
        job = self._submit(cluster, folder, self.hurried)
        self.ride(cluster, job, folder, to=2 * self.steps)
        (folder / "enough").touch()
        self.ride(cluster, job, folder)
        cluster.wait_state(job, "SUCCEEDED")
        return self.read(folder), self.batches(folder)

    def _submit(self, cluster: Cluster, folder: Path, arguments: str) -> JobId:
        folder.mkdir()
        scripts = Path(__file__).parent
        program = f"{sys.executable} {scripts}/hungry_rank.py {scripts}/{self.script}"
        document = {
            "command": f"{program} {folder} {arguments}",
            "distribution": {"type": "pytorch"},
            "environment_variables": {"OMP_NUM_THREADS": "1"},
            "resources": {
                "instance_count": 2,
                "min_instance_count": self.instances_min,
                "cpus": 1,
                "gpus": 1,
            },
            "limits": {"hang_timeout": HANG_S},
            "retry": {"max_attempts": 1000, "backoff": {"start_s": 0}},
            "checkpoint": {"keep_last": 3},
        }
        return cluster.submit_text(json.dumps(document))

    def ride(self, cluster: Cluster, job: JobId, folder: Path, *, to: float = math.inf) -> None:
        """Until it is over, or has told of so many losses: for as long as it tells of more. How many it makes
        in a minute is the machine's affair.
        """

        def told() -> int:
            return len(self.read(folder))

        def more(before: int) -> bool:
            return told() > before or cluster.client.job(job).is_over

        while (before := told()) < to and not cluster.client.job(job).is_over:
            wait_until("more steps are made", functools.partial(more, before), timeout_s=STILL_S)


COURSES = (
    Course("restarts", "saving_rank.py", "3000 4 0.03 early", "3000 1000 0", 3000, _read_saving),
    Course("stays", "looping_rank.py", "2500 10 0.03", "2500 500 0", 2500, _read_looping),
    Course("elastic", "elastic_rank.py", "2500 0.04", "2500", 2500, _read_elastic, False, 1, _read_batches),
)
