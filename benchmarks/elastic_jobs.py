"""Elastic jobs with measured profiles (pollux.py), placed by the scheduler's own engine.

Its clock jumps from one arrival, save or end to the next. A GPU is a task; a job asks for what its user has
chosen, and goes on with fewer or more. Each start is charged, the first included. Jobs save once a minute: as
often as the published rounds look at sizes. What the engine knows of a job is what it would be told in
production: the step at each save. With the users' batch size a step is a step; where the batch size follows
the number of GPUs, jobs count samples.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.job import Job, Shape
from paceline.scheduler.core.node import NodeGpu, NodeInventory
from paceline.scheduler.core.settings import SECOND_US, Settings
from paceline.scheduler.loop_step import Step
from paceline.scheduler.rehearsal import Course, DryEngine, PitStop, Rehearsal, silent
from paceline.scheduler.store.base import Loaded
from paceline.spec.ids import JobId, Micros, NodeId
from paceline.spec.resources import Constraints, GangDemand, Resources

from .pollux import NODE_GPUS, NODES, START_S, Batch, Placement, PolluxJob, Profile, Progress

LEVEL: Final = "node"
"""The GPUs of a job stand on as few nodes as will do: each node is a domain of its own."""
PIT_STOP: Final = PitStop(0, 0, round(START_S) * SECOND_US, save_every_us=60 * SECOND_US)
"""The start is charged by the work itself, for the first one, too."""
FOREVER_US: Final = 10**18
STEPS: Final = 1000
"""Of the engine, whole numbers, for one of training."""


@dataclass(slots=True)
class Replayed:
    """`jct_s`: from each job's submission to its end."""

    jct_s: list[float]
    course: Course
    steps_s: list[float]
    """Of a cpu, each of the engine's."""


class Training:
    """What the jobs have to do (rehearsal.Work)."""

    def __init__(self, jobs: Sequence[PolluxJob], profiles: dict[str, Profile], *, follows: bool) -> None:
        self._jobs = jobs
        self._profiles = profiles
        self._follows = follows
        self._progress = [Progress(profiles[job.application]) for job in jobs]
        self._steps: dict[JobId, float] = defaultdict(float)

    def left_us(self, job: Job) -> int:
        placement, batch = self._how(job)
        return round((START_S + self._progress[job.number - 1].left_s(placement, batch)) * SECOND_US)

    def done(self, job: Job, ran_us: int) -> None:
        placement, batch = self._how(job)
        seconds = max(0.0, ran_us / SECOND_US - START_S)
        self._steps[job.number] += self._counted(job, seconds)
        self._progress[job.number - 1].run(placement, batch, seconds)

    def saved(self, job: Job, ran_us: int) -> tuple[s.Said, ...]:
        """The first time, when it has started, only where it stands."""
        step = self._step(job, max(0.0, ran_us / SECOND_US - START_S))
        if ran_us <= START_S * SECOND_US:
            return (s.Metrics(0, step, {}),)
        return (s.Published(step, "", ""),)

    def _step(self, job: Job, seconds: float) -> int:
        return round(self._steps[job.number] + self._counted(job, seconds))

    def _counted(self, job: Job, seconds: float) -> float:
        """Steps, in thousandths, or samples."""
        placement, batch = self._how(job)
        steps = seconds / self._profile(job).step_s(placement, batch)
        return steps * (batch.size if self._follows else STEPS)

    def _profile(self, job: Job) -> Profile:
        return self._profiles[self._jobs[job.number - 1].application]

    def _how(self, job: Job) -> tuple[Placement, Batch]:
        of = self._jobs[job.number - 1]
        placement = tuple(Counter(task.node for task in job.tasks).values())
        return placement, batch_of(of, self._profiles[of.application], len(job.tasks), follows=self._follows)


def batch_of(job: PolluxJob, profile: Profile, gpus: int, *, follows: bool) -> Batch:
    """Kept as its user has chosen it, or as many samples on each GPU, as far as was measured."""
    size = job.batch_size
    if follows and profile.gpus_max > 1:
        size = min(max(size * gpus // job.gpus, profile.sizes[0]), profile.sizes[-1])
    return profile.batch(size, gpus)


class _Timed(DryEngine):
    """Knows how long its steps took."""

    def __init__(self, loaded: Loaded, settings: Settings) -> None:
        super().__init__(loaded, settings)
        self.steps_s: list[float] = []

    def step(self, *args: object, **more: object) -> Step:
        begun_s = time.thread_time()
        done = super().step(*args, **more)  # type: ignore[arg-type]
        self.steps_s.append(time.thread_time() - begun_s)
        return done


def replay(
    jobs: Sequence[PolluxJob], profiles: dict[str, Profile], *, follows: bool, elastic: bool = True
) -> Replayed:
    """All of them, to the last one's end."""
    settings = replace(silent(Settings()), topology_levels=(LEVEL,))
    engine = _Timed(Loaded(0, JobId(0), Micros(0), ()), settings)
    rehearsal = Rehearsal(engine, Micros(0), Training(jobs, profiles, follows=follows), PIT_STOP)
    rehearsal.tell(*(_hello(number) for number in range(1, NODES + 1)))
    for job in jobs:
        arrival_us = Micros(round(job.submit_s * SECOND_US))
        while (next_us := rehearsal.next_us) is not None and next_us <= arrival_us:
            if not rehearsal.advance(arrival_us):
                break
        rehearsal.go_to(arrival_us)
        shape = Shape(_demand(job, profiles[job.application], follows=follows, elastic=elastic))
        rehearsal.tell(s.Submit(job.name, "trace", (s.NewJob(job.application, 0, shape, "{}"),)))
    while rehearsal.engine.state.jobs:
        assert rehearsal.advance(FOREVER_US), "somebody waits for ever"
    ended_us = rehearsal.course.ended_us
    jct_s = [ended_us[JobId(job.number)] / SECOND_US - job.submit_s for job in jobs]
    return Replayed(jct_s, rehearsal.course, engine.steps_s)


def _demand(job: PolluxJob, profile: Profile, *, follows: bool, elastic: bool) -> GangDemand:
    least = most = job.gpus
    if elastic:
        kept_max = job.batch_size // profile.local_min
        least, most = 1, max(job.gpus, profile.gpus_max if follows else min(profile.gpus_max, kept_max))
    together = Constraints(within=LEVEL, within_preferred=True)
    return GangDemand(
        Resources(gpus=1),
        job.gpus,
        instance_count_min=least,
        instance_count_max=most,
        constraints=together,
    )


def _hello(number: int) -> s.Hello:
    name = f"node-{number:02}"
    inventory = NodeInventory(
        name,
        f"{name}.test",
        Resources(cpu_milli=1_000_000, memory_bytes=1 << 50, gpus=NODE_GPUS),
        tuple(NodeGpu(index, "GPU") for index in range(NODE_GPUS)),
        labels=((LEVEL, name),),
    )
    return s.Hello(NodeId(name), number, "boot", inventory)
