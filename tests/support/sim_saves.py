"""What users of the simulated cluster ask of checkpoints, and what must be true of what comes of it.

Each asks as clients do: the same key until an answer comes, some messages lost or doubled. A preempt or a
restore whose answer was committed is never carried out twice; after a restore no attempt is given a
checkpoint that was set aside; a request for a save is not lost with a stream.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec.structs import replace
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.attempt_events import AttemptStarted, JobSubmitted
from paceline.scheduler.core.checkpoint_events import CheckpointAccepted, RestoreRequested
from paceline.scheduler.core.effects import AskSave, StartTask
from paceline.scheduler.core.events import Event
from paceline.scheduler.core.job import Parent
from paceline.spec.ids import Attempt, JobId
from support.paddock import shape
from support.sim_world import MS, SECOND

if TYPE_CHECKING:
    from support.sim_agent import Node
    from support.sim_run import Run


class Saves:
    """Users who care for checkpoints, in one run."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.world = run.world
        self._asked = 0
        self._waiting: set[str] = set()
        self._restores: set[str] = set()
        self._given: dict[tuple[JobId, Attempt], set[str]] = {}
        for _ in range(self.world.die.randint(2, 12)):
            self.world.later(self.world.between(SECOND, run.faults_us), self._wish)

    def _wish(self) -> None:
        """Somebody wants something of a job that has saved."""
        scheduler, die = self.run.scheduler, self.world.die
        if self.world.calm or not scheduler.alive:
            return
        jobs = [job for job in scheduler.engine.state.jobs.values() if job.course.checkpoints or job.placed]
        if not jobs:
            return
        job = die.choice(jobs)
        self._asked += 1
        key = f"wish-{self._asked}"
        kinds = ["preempt", "ask"] + (["restore", "fork"] if job.course.checkpoints else [])
        match die.choice(kinds):
            case "preempt":
                wish: s.Stimulus = s.Preempt(key, job.number, die.choice([None, 500 * MS]), "ann")
            case "ask":
                wish = s.AskCheckpoint(key, job.number, "ann")
            case "restore":
                self._restores.add(key)
                wish = s.Restore(key, job.number, die.choice(job.course.checkpoints).step, "ann")
            case _:
                chosen = die.choice(job.course.checkpoints)
                first = replace(chosen, path=f"{key}/{chosen.path}", job=job.number)
                new = s.NewJob(key, 0, shape(1, cpus=0.5, grace_s=1), "{}")
                wish = s.Submit(key, "ann", (new,), Parent(job.number, first.step), first)
        self.world.tell(f"wish: {wish}")
        self._waiting.add(key)
        self._ask(key, wish, tries=20)

    def _ask(self, key: str, wish: s.Stimulus, tries: int) -> None:
        if key not in self._waiting or not tries:
            return
        for _ in range(2 if self.world.chance(0.3) else 1):
            if self.world.chance(0.8):
                call = self.run.scheduler.call
                self.world.later(self.world.between(50, 20 * MS), call, wish, lambda _: self._heard(key))
        self.world.later(SECOND, self._ask, key, wish, tries - 1)

    def _heard(self, key: str) -> None:
        if self.world.chance(0.8):
            self._waiting.discard(key)

    # --- laws

    def starts(self, start: StartTask) -> None:
        """A start that an agent gets, maybe late."""
        paths = {one.path for one in start.job.course.checkpoints}
        self._given.setdefault((start.key.job, start.key.attempt), set()).update(paths)

    def judge(self, events: Iterable[Event]) -> None:
        """The whole history: an attempt was given what counted at its start, or it made itself, and nothing
        that was set aside; a wish to go back was carried out once."""
        counts: dict[JobId, list[tuple[int, str]]] = {}
        may: dict[tuple[JobId, Attempt], set[str]] = {}
        restores = 0
        for event in events:
            match event:
                case JobSubmitted(job=job, checkpoint=first):
                    counts[job] = [] if first is None else [(first.step, first.path)]
                case AttemptStarted(job=job):
                    may[job, event.attempt] = {path for _, path in counts[job]}
                case CheckpointAccepted(task=task):
                    gone = event.removed_steps
                    counts[task.job] = [one for one in counts[task.job] if one[0] not in gone]
                    counts[task.job].append((event.step, event.path))
                    may[task.job, task.attempt].add(event.path)
                case RestoreRequested(job=job):
                    restores += 1
                    at = counts[job].index((event.step, event.path))
                    del counts[job][at + 1 :]
        for attempt, paths in self._given.items():
            assert paths <= may[attempt], f"{attempt} was given {paths - may[attempt]}"
        kept = self.run.store.key_rows.keys() & self._restores
        assert restores == len(kept), f"{restores} restores for {len(kept)} wishes"

    def asked(self, node: "Node", ask: AskSave) -> None:
        """The shim has heard; the script saves at its next step, or after its next few."""
        folder = node.folders.get(ask.key)
        if folder is None or folder.ended or ask.key.task or folder.asked >= ask.number:
            return
        folder.asked = ask.number
        self.world.later(self.world.between(MS, 2 * SECOND), self._saves, node, folder, ask.number)

    def _saves(self, node: "Node", folder, number: int) -> None:  # type: ignore[no-untyped-def]
        if not folder.running:
            return
        if self.world.chance(0.1):
            node.write(folder, s.SaveFailed(5, "No space left on device", number))
            return
        self.run.world.tell(f"{folder.key} answers {number}")
        path = f"step-5.a{folder.key.attempt}.{number}"
        at_us = self.world.now_us
        node.write(folder, s.Published(5, path, "hash", 1, MS, {}, (), 20 * MS, at_us, "asked for", number))
