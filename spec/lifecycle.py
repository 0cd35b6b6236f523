"""The states of a job and the legal moves between them: one table, nothing else decides.

An illegal move raises with the job's story, because it is a bug of ours.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    """Where a job stands. A transient RPC failure never leads to a terminal state."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    __hash__ = str.__hash__  # Enum's own is no builtin, and states are looked up with every fact


TERMINAL: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.FAILED, JobState.CANCELLED}),
    JobState.STARTING: frozenset({JobState.RUNNING, JobState.QUEUED, *TERMINAL}),
    JobState.RUNNING: frozenset({JobState.QUEUED, *TERMINAL}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


class IllegalTransition(AssertionError):
    """A bug of ours: an event asked for a move that the table does not hold."""


def check_transition(old: JobState, new: JobState, story: Callable[[], str]) -> None:
    """Raise IllegalTransition, with the job's `story`, unless `old -> new` is in the table."""
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(f"{old} -> {new} is not a legal transition\n{story()}")


class AttemptOutcome(StrEnum):
    """How one attempt ended."""

    SUCCEEDED = "succeeded"
    WORKER_FAILED = "worker-failed"
    NODE_LOST = "node-lost"
    START_FAILED = "start-failed"
    TIMED_OUT = "timed-out"
    PREEMPTED = "preempted"
    RESTORED = "restored"
    RESIZED = "resized"
    """Stopped at a checkpoint, to go on with more instances."""
    CANCELLED = "cancelled"


class NodeContact(StrEnum):
    """What the scheduler knows of a node. UNKNOWN is a state of its own: losing contact is not failing."""

    CONNECTED = "connected"
    UNKNOWN = "unknown"
    LOST = "lost"
