"""What a decision asks for: events to apply, messages to send after the commit, and the caller's answer."""

from typing import Generic, TypeVar

from msgspec import Struct

from ...spec.ids import Attempt, JobId, NodeId, TaskKey
from .events import Event
from .job import Job

T = TypeVar("T")


class StartTask(Struct, frozen=True):
    """`job` is the job as it was placed: ranks, GPUs, port and checkpoints are in it. Idempotent by key."""

    node: NodeId
    key: TaskKey
    job: Job
    master_address: str
    timeout_us: int
    """What is left of the job's timeout for this attempt; 0: none."""
    mtbf_us: int = 0
    """Expected time between two faults of this gang."""


class StopTask(Struct, frozen=True):
    """`grace_us` 0: SIGKILL at once. Idempotent; also for a task that the node does not know."""

    node: NodeId
    key: TaskKey
    grace_us: int
    why: str
    keep_us: int = 0
    """> 0: ranks that can go on in the next attempt may wait so long for it instead."""


class InspectTask(Struct, frozen=True):
    """Say where the task's ranks are. An answer that never comes is news, too: there is a deadline."""

    node: NodeId
    key: TaskKey


class AskSave(Struct, frozen=True):
    """Save at the next step, and tell of it with this number. Told again to an agent that dials in anew."""

    node: NodeId
    key: TaskKey
    number: int


Effect = StartTask | StopTask | InspectTask | AskSave


class SaveAsked(Struct, frozen=True):
    """`number`: the request's, also the seq of its event."""

    number: int
    attempt: Attempt


class Submitted(Struct, frozen=True):
    jobs: tuple[JobId, ...]
    repeated: bool = False
    """The key was known: nothing new was made."""


class Position(Struct, frozen=True):
    task: TaskKey
    seq: int


class Welcome(Struct, frozen=True):
    """Answer to Hello: where each live task's journal stands, and which tasks are nobody's any more."""

    positions: tuple[Position, ...] = ()
    forget: tuple[TaskKey, ...] = ()


class Acked(Struct, frozen=True):
    """Answer to Reports: committed up to these. Stale tasks are acked too, so that their folders can go."""

    positions: tuple[Position, ...] = ()


class Plan(Struct, Generic[T], frozen=True):
    """Nothing has happened yet: the loop applies `events`, commits, then answers and sends."""

    answer: T
    events: tuple[Event, ...] = ()
    effects: tuple[Effect, ...] = ()
