"""The engine ahead of its clock: nodes do at once what they are told, and time jumps to what comes next.

The code that places jobs in production, driven through the same stimuli; what it does not know is how long a
job runs, which its `Work` says. A stopped attempt leaves when it has saved, and goes on where it was, at the
cost of a pit stop. Deterministic: the same engine and the same work give the same course.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Final, Literal, NamedTuple, Protocol

from ..spec.errors import PacelineError
from ..spec.ids import Attempt, JobId, Micros, NodeId, TaskKey
from ..spec.lifecycle import JobState
from .core import stimuli as s
from .core.attempt_events import AttemptEnded, AttemptStarted, JobEnded, Place, StopRequested
from .core.effects import Effect, StartTask, StopTask
from .core.job import Job, Stop, TaskState
from .core.settings import SECOND_US, Settings
from .core.task_events import TaskStarted
from .loop_engine import Engine
from .loop_step import Committed, Step
from .store.base import Batch

SIGTERM_CODE: Final = -15


def silent(settings: Settings) -> Settings:
    """The same without heartbeats: no silence is long enough for a node to be lost."""
    return replace(settings, heartbeat_us=10**18)


class DryEngine(Engine):
    """Nothing of it is stored."""

    def _batch(self, draft: object) -> Batch:
        return Batch()


@dataclass(frozen=True, slots=True)
class PitStop:
    """What it costs to stop an attempt and start the next: the GPUs are held while it saves."""

    save_us: int = 10 * SECOND_US
    restart_us: int = 20 * SECOND_US
    saves_after_us: int = 300 * SECOND_US
    """A run makes its first checkpoint so long after its start: before, it is not stopped for an equal."""
    save_every_us: int = 0
    """And more, so often; 0: no more, for they rarely change what is worth the time."""


PIT_STOP: Final = PitStop()


class Start(NamedTuple):
    at_us: Micros
    job: JobId
    places: tuple[Place, ...]


class Stopping(NamedTuple):
    at_us: Micros
    job: JobId
    stop: Stop


@dataclass(slots=True)
class Course:
    """What has happened so far."""

    starts: list[Start] = field(default_factory=list)
    """Of all attempts, in order."""
    stops: list[Stopping] = field(default_factory=list)
    started_us: dict[JobId, Micros] = field(default_factory=dict)
    """The first start of each."""
    ended_us: dict[JobId, Micros] = field(default_factory=dict)
    after: dict[JobId, JobId] = field(default_factory=dict)
    """Whose end, at the same moment, made room for a job's first start."""
    gpu_milli: int = 0
    """Held now."""
    gpu_milli_us: int = 0
    """Held, times how long."""
    filled: tuple[Micros, int] = (Micros(0), 0)
    """When a job last started, and `gpu_milli_us` then."""
    events: int = 0


class Work(Protocol):
    """What jobs have to do, and how fast they do it where they are."""

    def left_us(self, job: Job) -> int:
        """An attempt of it runs now: how long until its end."""

    def done(self, job: Job, ran_us: int) -> None:
        """Its attempt has run so long, and is stopped."""

    def saved(self, job: Job, ran_us: int) -> tuple[s.Said, ...]:
        """What its first rank says when it saves, after so long."""


class Steady:
    """Each runs for `lasts_us` (asked once) in a gang of the size that was asked for; twice the instances do
    twice the work."""

    def __init__(self, lasts_us: Callable[[Job], int], pit_stop: PitStop = PIT_STOP) -> None:
        self._lasts_us, self._pit_stop = lasts_us, pit_stop
        self._left_us: dict[JobId, float] = {}

    def left_us(self, job: Job) -> int:
        return round(self._left_of(job) * job.demand.instance_count / len(job.tasks))

    def done(self, job: Job, ran_us: int) -> None:
        done_us = ran_us * len(job.tasks) / job.demand.instance_count
        cost_us = self._pit_stop.save_us + self._pit_stop.restart_us
        self._left_us[job.number] = max(0, self._left_of(job) - done_us) + cost_us

    def saved(self, job: Job, ran_us: int) -> tuple[s.Said, ...]:
        step = job.course.step + 1
        return (s.Published(step, f"rehearsed/{step}", "", persist_us=self._pit_stop.save_us),)

    def _left_of(self, job: Job) -> float:
        if job.number not in self._left_us:
            self._left_us[job.number] = self._lasts_us(job)
        return self._left_us[job.number]


@dataclass(slots=True)
class _Run:
    """The attempt of a job that is placed."""

    tasks: int
    began_us: int | None = None
    """None: not all of it has started."""


class _Moment(NamedTuple):
    at_us: int
    order: int
    what: Literal["end", "leave", "save"]
    job: JobId
    attempt: Attempt


class Rehearsal:
    """Begins with what the engine's state says is placed; `work`: what is left of its jobs."""

    def __init__(self, engine: Engine, now_us: Micros, work: Work, pit_stop: PitStop = PIT_STOP) -> None:
        self.engine = engine
        self.now_us = now_us
        self.course = Course()
        self._work = work
        self._pit_stop = pit_stop
        self._moments: list[_Moment] = []
        self._order = 0
        self._runs: dict[JobId, _Run] = {}
        self._ending: list[JobId] = []
        self._take_over()

    @property
    def next_us(self) -> int | None:
        """When something happens by itself."""
        due_us = self.engine.next_due_us()
        if not self._moments:
            return due_us
        return self._moments[0].at_us if due_us is None else min(due_us, self._moments[0].at_us)

    @property
    def busy(self) -> bool:
        """Somebody runs or comes back into line, or nodes will open: else nobody who waits ever starts."""
        state = self.engine.state
        return bool(self._moments or state.held or state.closed or state.spans)

    def tell(self, *told: s.Stimulus) -> list[object]:
        """The answers. What it starts has started before the next moment. Raises the first refusal."""
        answers: list[object] = []
        stimuli, more = list(told), True
        while stimuli or more:
            step = self.engine.step(stimuli, self.now_us, {})
            answers = answers or list(step.answers)
            stimuli, more = self._on_step(step), step.more
        for answer in answers:
            if isinstance(answer, PacelineError):
                raise answer
        return answers

    def go_to(self, at_us: Micros) -> None:
        """Nothing happens before."""
        self.course.gpu_milli_us += self.course.gpu_milli * (at_us - self.now_us)
        self.now_us = at_us

    def advance(self, until_us: int) -> bool:
        """On to the next moment at which something happens; False: not until then, or not `busy`."""
        next_us = self.next_us
        if next_us is None or next_us > until_us or not self.busy:
            return False
        self.go_to(Micros(max(self.now_us, next_us)))
        told: list[s.Stimulus] = []
        self._ending = []
        while self._moments and self._moments[0].at_us <= self.now_us:
            told += self._happens(heappop(self._moments))
        self.tell(*told)
        self._ending = []
        return True

    def _take_over(self) -> None:
        told: list[s.Stimulus] = []
        for job in self.engine.state.jobs.values():
            if not job.placed:
                continue
            self._hold(job, len(job.tasks))
            fresh = [task for task in job.tasks if task.state is TaskState.ASSIGNED]
            told += (_says(job, task.task, s.Started((1,), "warm")) for task in fresh)
            if not fresh:
                self._begin(job)
            if job.course.stop is not None:
                self._put(self._pit_stop.save_us, "leave", job)
        self.tell(*told)

    def _on_step(self, step: Step) -> list[s.Stimulus]:
        self.course.events += len(step.committed)
        for committed in step.committed:
            self._note(committed)
        return [said for effect in step.effects for said in self._answer(effect)]

    def _answer(self, effect: Effect) -> Iterable[s.Stimulus]:
        if isinstance(effect, StartTask):
            yield _entries(effect.node, effect.key, 1, s.Started((1,), "warm"))
        elif isinstance(effect, StopTask):
            job = self.engine.state.jobs.get(effect.key.job)
            if job is None:
                return
            if job.placed and job.attempt == effect.key.attempt:
                if effect.key.task == min(_open_tasks(job)):
                    self._put(min(self._pit_stop.save_us, effect.grace_us), "leave", job)
            elif job.course.lingering:
                yield _entries(effect.node, effect.key, 1 << 30, s.Ended((SIGTERM_CODE,), (0,)))

    def _note(self, committed: Committed) -> None:
        event, job = committed.event, committed.job
        if job is None:
            return
        match event:
            case AttemptStarted():
                self._on_started(job, event)
            case TaskStarted():
                if job.state is JobState.RUNNING and self._runs[job.number].began_us is None:
                    self._begin(job)
            case StopRequested():
                self.course.stops.append(Stopping(event.at_us, job.number, event.stop))
            case AttemptEnded() | JobEnded():
                self._on_ended(job, event)

    def _on_started(self, job: Job, event: AttemptStarted) -> None:
        self.course.starts.append(Start(event.at_us, job.number, event.places))
        self._hold(job, len(event.places))
        self.course.filled = (event.at_us, self.course.gpu_milli_us)
        if job.number not in self.course.started_us:
            self.course.started_us[job.number] = event.at_us
            if self._ending:
                self.course.after[job.number] = self._ending[-1]

    def _hold(self, job: Job, tasks: int) -> None:
        self.course.gpu_milli += job.demand.per_task.gpus_milli * tasks
        self._runs[job.number] = _Run(tasks)

    def _begin(self, job: Job) -> None:
        self._runs[job.number].began_us = self.now_us
        left_us = self._work.left_us(job)
        self._put(left_us, "end", job)
        if self._pit_stop.saves_after_us < left_us:
            self._put(self._pit_stop.saves_after_us, "save", job)

    def _on_ended(self, job: Job, event: AttemptEnded | JobEnded) -> None:
        run = self._runs.pop(job.number, None)
        if isinstance(event, AttemptEnded):
            assert run is not None
            self.course.gpu_milli -= job.demand.per_task.gpus_milli * run.tasks
            if event.then is JobState.QUEUED:
                if run.began_us is not None:
                    self._work.done(job, event.at_us - run.began_us)
                return
        self.course.ended_us[job.number] = event.at_us

    def _put(self, after_us: int, what: Literal["end", "leave", "save"], job: Job) -> None:
        self._order += 1
        heappush(self._moments, _Moment(self.now_us + after_us, self._order, what, job.number, job.attempt))

    def _happens(self, moment: _Moment) -> list[s.Stimulus]:
        job = self.engine.state.jobs.get(moment.job)
        if job is None or job.attempt != moment.attempt or not job.placed:
            return []
        if moment.what == "save":
            began_us = self._runs[job.number].began_us
            assert began_us is not None
            if self._pit_stop.save_every_us:
                self._put(self._pit_stop.save_every_us, "save", job)
            return [_says(job, 0, *self._work.saved(job, self.now_us - began_us))]
        self._ending.append(job.number)
        code = 0 if moment.what == "end" else SIGTERM_CODE
        ends = (s.Exited(0, code), s.Ended((code,), (0,)))
        return [_says(job, task, *ends) for task in _open_tasks(job)]


def _open_tasks(job: Job) -> list[int]:
    return [task.task for task in job.tasks if task.state is not TaskState.ENDED]


def _says(job: Job, task: int, *said: s.Said) -> s.Reports:
    run = job.tasks[task]
    return _entries(run.node, job.key(task), run.applied_seq + 1, *said)


def _entries(node: NodeId, key: TaskKey, first_seq: int, *said: s.Said) -> s.Reports:
    return s.Reports(node, tuple(s.Entry(key, seq, each) for seq, each in enumerate(said, first_seq)))
