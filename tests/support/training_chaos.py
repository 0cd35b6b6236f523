"""One round of chaos over training: a gang of two nodes that saves as it goes, and a random mix of faults.

Faults hit ranks, shims, persisters, agents, whole nodes, the scheduler, the copies in memory and the files in
storage; some ranks are stopped, which only the watch for hangs can see, nodes fall silent until they are
missed, and the gang is told to make way. It is one that restarts, one whose ranks stay up in the loop, or
an elastic one. When it is over, every step that any attempt made has the loss of the run that nobody
disturbed, and of its samples each rank its own; nothing damaged was restored, and the ledger adds up.
"""

import contextlib
import functools
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from paceline.client import process
from paceline.client.process import Identity
from paceline.proto.marks import agent_mark
from paceline.spec.errors import Conflict
from paceline.spec.lifecycle import NodeContact

from .cluster import Cluster, wait_until
from .rank_scripts import persisters_of

FAULTS = 4
HANG_S = 10
STILL_S = 180.0
NOTICE_S = 2.0
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
    """A way to train. Its script is given a folder and `arguments`, makes at most `steps`, and hurries to its
    end when FOLDER/enough is there.
    """

    name: str
    script: str
    arguments: str
    steps: int
    read: Callable[[Path], Losses]
    loss_is_of_rank: bool = True
    """Else it is the gang's, the same at all ranks and with any number of them."""
    instances_min: int = 2
    batches: Callable[[Path], Batches] = _no_batches

    def submit(self, cluster: Cluster, folder: Path) -> int:
        folder.mkdir()
        script = Path(__file__).with_name(self.script)
        document = {
            "command": f"{sys.executable} {script} {folder} {self.arguments}",
            "distribution": {"type": "pytorch"},
            "environment_variables": {"OMP_NUM_THREADS": "1"},
            "resources": {"instance_count": 2, "min_instance_count": self.instances_min, "cpus": 1},
            "limits": {"hang_timeout": HANG_S},
            "retry": {"max_attempts": 1000, "backoff": {"start_s": 0}},
            "checkpoint": {"keep_last": 3},
        }
        return cluster.submit_text(json.dumps(document))

    def ride(self, cluster: Cluster, job: int, folder: Path, *, to: float = math.inf) -> None:
        """Until it is over, or has told of so many losses: for as long as it tells of more. How many it makes
        in a minute is the machine's affair.
        """

        def told() -> int:
            return len(self.read(folder))

        def more(before: int) -> bool:
            return told() > before or cluster.client.job(job).is_over

        while told() < to and not cluster.client.job(job).is_over:
            wait_until("more steps are made", functools.partial(more, told()), timeout_s=STILL_S)


COURSES = (
    Course("restarts", "saving_rank.py", "150 4 0.02", 150, _read_saving),
    Course("stays", "looping_rank.py", "1500 10", 1500, _read_looping),
    Course("elastic", "elastic_rank.py", "600 0.03", 600, _read_elastic, False, 1, _read_batches),
)


class TrainingRound:
    """`seed` decides which faults come, whom they hit, and when."""

    def __init__(self, cluster: Cluster, course: Course, folder: Path, seed: int) -> None:
        self._cluster = cluster
        self._course = course
        self._folder = folder
        self._luck = random.Random(seed)
        self._seed = seed
        self._did: list[str] = []
        self._damaged: set[str] = set()
        self._job = 0

    def run(self, undisturbed: Losses, batches: Batches) -> None:
        """Ride, then compare with the losses and the samples of the run that nobody disturbed."""
        try:
            self._job = self._course.submit(self._cluster, self._folder)
            for _ in range(FAULTS):
                self._wait_for_progress()
                fault = self._luck.choice(self._faults())
                self._did.append(fault.__name__.strip("_"))
                time.sleep(self._luck.uniform(0, 0.3))  # the fault's own moment, not a wait
                fault()
            self._cluster.wait_state(self._job, "RUNNING", "SUCCEEDED")
            (self._folder / "enough").touch()
            self._course.ride(self._cluster, self._job, self._folder)
            self._cluster.wait_state(self._job, "SUCCEEDED")
            self._check(undisturbed)
            self._check_samples(batches)
        except BaseException as error:
            error.add_note(f"training chaos of seed {self._seed}: {'; '.join(self._did)}")
            if self._job:
                with contextlib.suppress(Conflict):  # it is over
                    self._cluster.client.cancel(self._job)  # the next round has the nodes to itself
            raise

    def _wait_for_progress(self) -> None:
        """The newest attempt trains, and has saved since the last fault."""
        read, steps = self._course.read, self._course.steps
        before = len(read(self._folder))

        def moved() -> bool:
            told = read(self._folder)
            return len(told) >= before + 16 or max((step for _, _, step in told), default=0) >= steps

        wait_until("the gang goes on", moved, timeout_s=STILL_S)
        wait_until("a checkpoint is accepted", lambda: bool(self._cluster.client.job(self._job).checkpoints))

    def _faults(self) -> list[Callable[[], None]]:
        return [
            self._kill_rank,
            self._kill_both_ranks,
            self._kill_shim,
            self._kill_persister,
            self._stop_rank,
            self._kill_agent,
            self._kill_node,
            self._kill_scheduler,
            self._forget_memory,
            self._damage_storage,
            self._swap_storage,
            self._damage_memory,
            self._silence_node,
            self._preempt,
        ]

    def _kill_rank(self) -> None:
        self._hit(self._luck.choice([0, 1]), signal.SIGKILL)

    def _kill_both_ranks(self) -> None:
        for rank in (0, 1):
            self._hit(rank, signal.SIGKILL)

    def _kill_shim(self) -> None:
        for found in self._ranks()[:1]:
            self._send(process.parent_of(found), signal.SIGKILL)

    def _kill_persister(self) -> None:
        for found in self._ranks():
            for pid in persisters_of(found.pid):
                self._send(pid, signal.SIGKILL)

    def _stop_rank(self) -> None:
        self._hit(self._luck.choice([0, 1]), signal.SIGSTOP)

    def _kill_agent(self) -> None:
        index = self._luck.choice([0, 1])
        self._cluster.kill_agent(index)
        self._cluster.start_agent(index)

    def _kill_node(self) -> None:
        index = self._luck.choice([0, 1])
        state = str(self._cluster.agent_state(index))
        tasks = process.with_environment("PACELINE_TASK_FOLDER", lambda value: value.startswith(state))
        for found in [
            self._cluster.agents[index].identity,
            *process.descendants(self._cluster.agents[index].identity),
            *tasks,
        ]:
            process.send(found, signal.SIGKILL)
        self._cluster.kill_agent(index)
        self._cluster.start_agent(index)

    def _kill_scheduler(self) -> None:
        self._cluster.kill_scheduler()
        self._cluster.start_scheduler()

    def _forget_memory(self) -> None:
        """Both nodes lose what they hold in memory, and the gang falls."""
        self._kill_both_ranks()
        for folder in self._memory():
            shutil.rmtree(folder, ignore_errors=True)

    def _damage_storage(self) -> None:
        """The newest checkpoint rots where it lies, memory is lost, and the gang falls: the one before is
        taken.
        """
        newest = max(self._cluster.client.job(self._job).checkpoints, key=lambda one: one.accepted_us)
        files = sorted(Path(newest.path).glob("*.distcp")) if Path(newest.path).exists() else []
        if files:  # else retention was faster, and this is no damage
            self._damaged.add(newest.path)
            self._spoil(self._luck.choice(files))
        self._forget_memory()

    def _swap_storage(self) -> None:
        """The two newest checkpoints get each other's files, memory is lost, and the gang falls."""
        by_age = sorted(self._cluster.client.job(self._job).checkpoints, key=lambda one: one.accepted_us)
        newest, before = ([*map(Path, (one.path for one in reversed(by_age)))] * 2)[:2]
        names = [file.name for file in newest.glob("*.distcp") if (before / file.name).exists()]
        if newest != before and names:
            for name in names:
                (newest / name).rename(newest / "swapped")
                (before / name).rename(newest / name)
                (newest / "swapped").rename(before / name)
            self._damaged |= {str(newest), str(before)}
        self._forget_memory()

    def _silence_node(self) -> None:
        """Its agent says nothing until it is taken for lost; what it runs goes on, as far as it is let."""
        index = self._luck.choice([0, 1])
        agent, name = self._cluster.agents[index], f"local-{index}"
        agent.send(signal.SIGSTOP)
        try:
            wait_until(f"{name} is missed", lambda: self._contact(name) is not NodeContact.CONNECTED)
        finally:
            agent.send(signal.SIGCONT)
        wait_until(f"{name} is back", lambda: self._contact(name) is NodeContact.CONNECTED)

    def _contact(self, name: str) -> NodeContact:
        return next(node.contact for node in self._cluster.client.nodes().nodes if node.name == name)

    def _preempt(self) -> None:
        """It saves and leaves, or is killed when its time is over, and comes back."""
        with contextlib.suppress(Conflict):  # it has no nodes at this moment
            self._cluster.client.preempt(self._job, grace_s=NOTICE_S)

    def _damage_memory(self) -> None:
        images = [path for folder in self._memory() for path in folder.glob("**/*.distcp")]
        for path in images:
            self._spoil(path)
        self._kill_both_ranks()

    def _spoil(self, path: Path) -> None:
        """A bit turns over, or the end is missing."""
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if self._luck.random() < 0.5 or size < 2:
                file.truncate(size // 2)
                return
            at = self._luck.randrange(size)
            file.seek(at)
            bits = file.read(1)[0] ^ (1 << self._luck.randrange(8))
            file.seek(at)
            file.write(bytes([bits]))

    def _memory(self) -> list[Path]:
        marks = [agent_mark(self._cluster.agent_state(index) / "tasks")[1:] for index in (0, 1)]
        return [Path(f"/dev/shm/paceline-{mark}") / str(self._job) for mark in marks]

    def _ranks(self) -> list[Identity]:
        found = [process.identify(pid) for pid in self._cluster.task_pids(self._job)]
        return [one for one in found if one is not None]

    def _hit(self, rank: int, signum: int) -> None:
        pids = self._cluster.task_pids(self._job)
        if rank < len(pids):
            self._send(pids[rank], signum)

    def _send(self, pid: int | None, signum: int) -> None:
        found = process.identify(pid) if pid else None
        if found is not None:
            process.send(found, signum)

    def _check(self, undisturbed: Losses) -> None:
        told = self._course.read(self._folder)
        for (attempt, rank, step), loss in told.items():
            expected = undisturbed[1, rank if self._course.loss_is_of_rank else 0, step]
            assert loss == pytest.approx(expected, rel=1e-5), (attempt, rank, step)
        made = {step for _, _, step in told}
        assert made == set(range(1, max(made) + 1)), "a step that nobody made"
        timeline = self._cluster.client.timeline(self._job)
        for entry in timeline.entries:
            if entry.kind == "CheckpointRestored":
                body = json.loads(entry.body)
                assert not (body["path"] in self._damaged and body["tier"] == "storage"), entry.text
        assert timeline.ledger.wall_us == sum(part for _, part in timeline.ledger.parts)

    def _check_samples(self, undisturbed: Batches) -> None:
        """Of a step's samples no rank has one that is not in it, and no two ranks of an attempt the same."""
        whole: dict[int, list[int]] = {}
        for (_, _, step), samples in undisturbed.items():
            whole.setdefault(step, []).extend(samples)
        had: dict[tuple[int, int], list[int]] = {}
        for (attempt, _, step), samples in self._course.batches(self._folder).items():
            had.setdefault((attempt, step), []).extend(samples)
        for (attempt, step), samples in had.items():
            assert not Counter(samples) - Counter(whole[step]), (attempt, step, samples, whole[step])
