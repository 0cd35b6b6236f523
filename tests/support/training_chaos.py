"""One round of chaos over training: a gang of two nodes that saves as it goes, and a random mix of faults.

Faults hit ranks, shims, persisters, agents, whole nodes, the scheduler, the copies in memory and the files in
storage; some ranks are stopped, which only the watch for hangs can see, or slow, or take all memory; nodes
fall silent until they are missed, GPUs break, the disk of the checkpoints is full for a while, and the gang
is told to make way. It is one that restarts, one whose ranks stay up in the loop, or an elastic one. When it
is over, every step that any attempt made has the loss of the run that nobody disturbed, and of its samples
each rank its own; nothing damaged was restored, and the ledger adds up.

The kinds of fault are dealt like cards, shuffled anew for as many rounds as there are ways to train: seeds 1
to 3 meet each kind once, and so do the next three, each way to train with others.
"""

import contextlib
import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from paceline.scheduler.core.failure import AFTER_A_PEER
from paceline.spec.errors import Conflict

from .cluster import wait_until
from .training_cluster import TrainingCluster
from .training_courses import COURSES, STILL_S, Batches, Course, Losses
from .training_faults import Fault, Faults

CAUSES = ("signal", "hang", "node-lost", "preempted", "out-of-memory")
"""What these faults end attempts of; no save that fails ends one of an exception."""
KILLED_EARLY = "the task's shim died before it had started the ranks"
"""So ends the start of the next attempt, where it comes while a fault kills what is there."""


def course_of(seed: int) -> Course:
    return COURSES[seed % len(COURSES)]


def _dealt(seed: int, kinds: list[Fault]) -> list[Fault]:
    """This round's share of them."""
    game, hand = divmod(seed - 1, len(COURSES))
    random.Random(game).shuffle(kinds)
    return kinds[hand :: len(COURSES)]


class TrainingRound:
    """`seed` decides which faults come, whom they hit, and when."""

    def __init__(self, cluster: TrainingCluster, folder: Path, seed: int) -> None:
        self._cluster = cluster
        self._course = course_of(seed)
        self._folder = folder
        self._luck = random.Random(seed)
        self._seed = seed
        self._did: list[str] = []

    def run(self, undisturbed: Losses, batches: Batches) -> None:
        """Ride, then compare with the losses and the samples of the run that nobody disturbed."""
        self._job = self._course.submit(self._cluster, self._folder)
        self._faults = Faults(self._cluster, self._job, self._folder, self._luck, self._ride_on)
        try:
            for fault in _dealt(self._seed, self._faults.all()):
                self._ride_on()
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
            error.add_note(self._cluster.story(self._job, "its story:"))
            with contextlib.suppress(Conflict):  # it is over
                self._cluster.client.cancel(self._job)  # the next round has the nodes to itself
            raise
        finally:
            for checkpoint in self._cluster.client.job(self._job).checkpoints:
                shutil.rmtree(checkpoint.path, ignore_errors=True)  # the next round has the disk to itself

    def _ride_on(self) -> None:
        """Until the gang has made steps from now on, and has saved at all."""
        before = len(self._course.read(self._folder))

        def moved() -> bool:
            job = self._cluster.client.job(self._job)
            assert not job.is_over, "it is over, and there are faults left"
            return bool(job.checkpoints) and len(self._course.read(self._folder)) >= before + 16

        wait_until("the gang goes on", moved, timeout_s=STILL_S)

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
                assert not (body["path"] in self._faults.damaged and body["tier"] == "storage"), entry.text
            if entry.kind == "AttemptEnded" and (failure := json.loads(entry.body)["ending"]["failure"]):
                excused = failure["doubt"] == AFTER_A_PEER or KILLED_EARLY in entry.text
                assert failure["kind"] in CAUSES or excused, entry.text
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
