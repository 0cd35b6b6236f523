"""A job as the scheduler holds it: what never changes (`Shape`) and what does (`Course`).

All frozen: `evolve` puts a new Job in the place of the old one, so whoever read one keeps a true picture.
A job that waits shares its Shape with all equal jobs and its Course with all fresh ones.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct, field
from msgspec.structs import replace

from ...spec.failures import FAILURES, RETRIED, FailureClass
from ...spec.ids import Attempt, JobId, Micros, NodeId, TaskKey
from ...spec.lifecycle import TERMINAL, AttemptOutcome, JobState
from ...spec.resources import GangDemand
from .failure import Failure
from .hang import Suspicion
from .rates import NO_RATE, FaultRate

NEVER: Final = Micros(0)
"""The time of what has not happened."""
NO_ATTEMPT: Final = Attempt(0)


class Policy(Struct, frozen=True):
    """What the job's document says on retries and times."""

    retries_max: int = 0
    timeout_us: int = 0
    """Of the whole job, from the moment it first ran; 0: none."""
    grace_us: int = 30_000_000
    """Between the notice to stop and SIGKILL, unless a cancel says otherwise."""
    retry_on: tuple[FailureClass, ...] = RETRIED
    backoff_start_us: int = 1_000_000
    """Before the second retry in a row; the first comes at once, each further one waits twice as long."""
    backoff_max_us: int = 60_000_000

    @property
    def outlasts_preemption(self) -> bool:
        """A job that was stopped for another one is tried again."""
        return not FAILURES[FailureClass.PREEMPTED].choice or FailureClass.PREEMPTED in self.retry_on


class Shape(Struct, frozen=True, cache_hash=True):
    """What a job asks. Equal shapes are one object."""

    demand: GangDemand
    policy: Policy = Policy()
    queue: str = ""
    """Of the cluster's policy; its user has a line of their own below it, see queues.py."""


class TaskState(StrEnum):
    """Where a task of the current attempt stands, as far as its node has said."""

    ASSIGNED = "assigned"
    RUNNING = "running"
    ENDED = "ended"


class TaskRun(Struct, frozen=True):
    """One node's part of the current (or last) attempt."""

    task: int
    node: NodeId
    gpu_indices: tuple[int, ...] = ()
    state: TaskState = TaskState.ASSIGNED
    applied_seq: int = 0
    """The task's journal is committed up to this entry."""
    start_mode: str = ""
    pids: tuple[int, ...] = ()
    exit_codes: tuple[int, ...] = ()
    log_bytes: tuple[int, ...] = ()
    ended_why: str = ""
    url: str = ""
    """Where it answers requests, if it does."""
    record: str = ""
    """Hash of what it runs with; empty: that is not recorded."""


class Checkpoint(Struct, frozen=True):
    """A checkpoint that was accepted from the attempt that was current."""

    step: int
    attempt: Attempt
    path: str
    manifest_hash: str
    size_bytes: int
    accepted_us: Micros
    metrics: Mapping[str, float] = field(default_factory=dict)
    stall_us: int = 0
    persist_us: int = 0
    """From the end of the copy until it was on disk."""
    why: str = ""
    """What it was made for; empty: the script's own."""
    job: JobId | None = None
    """Of another job, which this one was forked from."""
    url: str = ""
    """Where it was uploaded, too; empty: it was not."""
    image: str = ""
    """Where rank 0's image of it was made: "memory", "disk"; empty: not known."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Copies that were found so (see copies.py), and what is wrong with each."""


class Stop(Struct, frozen=True):
    """A stop under way: the tasks have notice; the attempt ends with the last of them, or at the deadline."""

    outcome: AttemptOutcome
    requested_us: Micros
    grace_us: int
    by: str = ""
    why: str = ""
    """What for, where the outcome does not say it all."""
    for_job: JobId | None = None
    """Whom the scheduler stops it for."""
    goes_on: bool = False
    """It has where to go on at once: it does not give way to the other in line."""
    to: int = 0
    """Instances that it goes on with; 0: as many as there is room for."""


class Growth(Struct, frozen=True):
    """There is room for more of an elastic gang: at its next checkpoint it goes on with more instances."""

    planned_us: Micros
    to: int
    """Instances, when it was planned."""


class Reported(Struct, frozen=True):
    """A step that was told, and when."""

    step: int
    at_us: Micros


class Speed(Struct, frozen=True):
    """Measured: the mean time of a step with so many instances, see speeds.py."""

    instances: int
    step_us: float


class Move(Struct, frozen=True):
    """A running job that leaves to make room, and where it goes on."""

    job: JobId
    nodes: tuple[NodeId, ...]
    """Of each task."""


class Claim(Struct, frozen=True):
    """Nodes that are kept for a waiting job until all of it fits there."""

    since_us: Micros
    nodes: tuple[NodeId, ...]
    """Of each task."""
    victims: tuple[JobId, ...] = ()
    """Who was told to make room."""
    moves: tuple[Move, ...] = ()
    """Those of them that have room kept for them, too."""

    @property
    def kept(self) -> tuple[NodeId, ...]:
        """All of its nodes, each once."""
        moved = (name for move in self.moves for name in move.nodes)
        return tuple(dict.fromkeys((*self.nodes, *moved)))


class Loan(Struct, frozen=True):
    """Nodes that are kept for another job are this one's until that can have them, see backfill.py."""

    job: JobId
    until_us: Micros
    """When that one was expected to have them all."""


class Hold(Struct, frozen=True):
    """An admin's word that a job is not to start until it is released."""

    by: str
    since_us: Micros
    why: str = ""


class SaveAsk(Struct, frozen=True):
    """Somebody wants a checkpoint of the current attempt; `pending` until it is there, or could not be
    made."""

    number: int
    key: str
    pending: bool = True


class Parent(Struct, frozen=True):
    """The job and step that a fork goes on from."""

    job: JobId
    step: int


class Lingering(Struct, frozen=True):
    """A task of an ended attempt of an exclusive job, not known to be gone. No new attempt before."""

    key: TaskKey
    node: NodeId


class Ending(Struct, frozen=True):
    """How the last attempt, or the job, ended."""

    outcome: AttemptOutcome
    code: str
    text: str
    hint: str = ""
    exit_code: int = 0
    node: NodeId | None = None
    rank: int | None = None
    failure: Failure | None = None
    """Of every attempt that failed, once it is over."""


class Course(Struct, frozen=True):
    """The changing part of a job; kept as JSON in JobRow.record."""

    state: JobState = JobState.QUEUED
    attempt: Attempt = NO_ATTEMPT
    tasks: tuple[TaskRun, ...] = ()
    rendezvous_port: int = 0
    checkpoints: tuple[Checkpoint, ...] = ()
    """Newest first."""
    step: int = -1
    attempt_step: int = -1
    """The last that the current attempt has reported."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last reported value of each."""
    metric_rows: int = 0
    retries_used: int = 0
    failed_in_row: int = 0
    """Retries since the job last made progress."""
    free_restarts: int = 0
    avoid: tuple[NodeId, ...] = ()
    """Nodes that refused a start of this job; empty again after a start that worked."""
    held_until_us: Micros = NEVER
    lingering: tuple[Lingering, ...] = ()
    suspicion: Suspicion | None = None
    """That the current attempt hangs: its nodes are being asked."""
    hangs: int = 0
    """Attempts that did."""
    growth: Growth | None = None
    first: Reported | None = None
    """Of the current attempt."""
    speeds: tuple[Speed, ...] = ()
    """Of an elastic gang, by instances, ascending."""
    aim: int = 0
    """Of one that waits: the instances that it is to go on with; 0: as many as there is room for."""
    stop: Stop | None = None
    save_ask: SaveAsk | None = None
    """The last one."""
    parent: Parent | None = None
    rate: FaultRate = NO_RATE
    """Of its attempts that are over."""
    claim: Claim | None = None
    loan: Loan | None = None
    """Of the current attempt."""
    hold: Hold | None = None
    gave_way_to: JobId | None = None
    """Of one that waits: whom it was stopped for."""
    served_us: int = 0
    """GPU-microseconds of the attempts that are over, see order.py."""
    service: int = 0
    """Of one that waits: its class of service."""
    queued_us: int = 0
    """What it has waited, up to its last start."""
    waits_since_us: Micros = NEVER
    """When its last attempt ended; 0: it waits since its submission."""
    lifted: int = 0
    """Classes of service that its patience had lifted it by when it was placed."""
    attempt_us: Micros = NEVER
    """When the current attempt was placed."""
    started_us: Micros = NEVER
    """When the job first was RUNNING; 0: not yet."""
    finished_us: Micros = NEVER
    ending: Ending | None = None
    """Of the last attempt that ended; of the job when it is over."""


FRESH: Final = Course()
PLACED: Final = (JobState.STARTING, JobState.RUNNING)


class Job(Struct, frozen=True):
    """Names and numbers as submitted, the shape, and the course so far."""

    number: JobId
    name: str
    user: str
    priority: int
    submitted_us: Micros
    shape: Shape
    course: Course = FRESH

    @property
    def state(self) -> JobState:
        return self.course.state

    @property
    def attempt(self) -> Attempt:
        return self.course.attempt

    @property
    def tasks(self) -> tuple[TaskRun, ...]:
        return self.course.tasks

    @property
    def demand(self) -> GangDemand:
        return self.shape.demand

    @property
    def over(self) -> bool:
        return self.course.state in TERMINAL

    @property
    def placed(self) -> bool:
        """True while an attempt holds resources."""
        return self.course.state in PLACED

    @property
    def world_size(self) -> int:
        return len(self.course.tasks) * self.shape.demand.processes_per_task

    def key(self, task: int) -> TaskKey:
        return TaskKey(self.number, self.course.attempt, task)

    def first_rank(self, task: int) -> int:
        return task * self.shape.demand.processes_per_task

    def with_task_ended(self, task: int) -> "Job":
        """This job as it will be when `task` has ended."""
        tasks = tuple(replace(one, state=TaskState.ENDED) if one.task == task else one for one in self.tasks)
        return replace(self, course=replace(self.course, tasks=tasks))


def with_course(job: Job, **changes: Any) -> Job:
    """This job with that much of its course changed. Raises TypeError for what a course has not."""
    return replace(job, course=replace(job.course, **changes))


def may_grow(job: Job) -> bool:
    """It runs, with fewer instances than it may have."""
    return job.state is JobState.RUNNING and len(job.tasks) < job.demand.instance_count_max
