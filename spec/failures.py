"""What a job can fail of: one word for each class, what it means, and what follows from it.

Everybody speaks of failures in these words: the job document's `retry.on`, the scheduler's decisions, the
timeline, `pace show`, the SDK. What tells them apart is in scheduler/core/failures.py.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class FailureClass(StrEnum):
    """Why an attempt failed, in a word."""

    OUT_OF_MEMORY = "out-of-memory"
    USER_ERROR = "user-error"
    EXCEPTION = "exception"
    EXIT_CODE = "exit-code"
    SIGNAL = "signal"
    HANG = "hang"
    NODE_LOST = "node-lost"
    PREEMPTED = "preempted"
    START_FAILED = "start-failed"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class FailureRule:
    """What holds for every failure of a class, unless the job's document says otherwise."""

    meaning: str
    hint: str
    retried: bool
    """Another attempt may go well: it is in `retry.on` unless the document says otherwise."""
    counted: bool
    """An attempt that ends so is one of `retry.max_attempts`: the job's own doing."""
    choice: bool = True
    """`retry.on` may name it."""


FAILURES: Final[dict[FailureClass, FailureRule]] = {
    FailureClass.OUT_OF_MEMORY: FailureRule(
        "the device, or the node, had no memory left for it",
        "lower what it needs at once (the batch size), or ask for more memory",
        retried=True,
        counted=True,
    ),
    FailureClass.USER_ERROR: FailureRule(
        "an error before training that comes again: of syntax, an import, the command, or the same one twice",
        "correct it and submit again",
        retried=False,
        counted=True,
    ),
    FailureClass.EXCEPTION: FailureRule(
        "an exception that a Python program did not handle",
        "its traceback says where",
        retried=True,
        counted=True,
    ),
    FailureClass.EXIT_CODE: FailureRule(
        "a process ended with an exit code other than 0",
        "its last lines may say why",
        retried=True,
        counted=True,
    ),
    FailureClass.SIGNAL: FailureRule(
        "a process was ended by a signal: a crash, or somebody outside",
        "its last lines may say why",
        retried=True,
        counted=True,
    ),
    FailureClass.HANG: FailureRule(
        "the gang stopped making progress",
        "see which rank did not arrive",
        retried=True,
        counted=True,
    ),
    FailureClass.NODE_LOST: FailureRule(
        "a node was lost, or lost the job's part on it",
        "see `pace nodes`",
        retried=True,
        counted=False,
    ),
    FailureClass.PREEMPTED: FailureRule(
        "it had to make room",
        "it goes on when there is room again",
        retried=True,
        counted=False,
    ),
    FailureClass.START_FAILED: FailureRule(
        "a node refused to start it",
        "see `pace nodes`",
        retried=True,
        counted=False,
        choice=False,
    ),
    FailureClass.TIMEOUT: FailureRule(
        "it ran longer than limits.timeout",
        "raise limits.timeout",
        retried=False,
        counted=False,
        choice=False,
    ),
}

RETRY_CHOICES: Final = tuple(kind for kind, rule in FAILURES.items() if rule.choice)
"""What `retry.on` may name."""
RETRIED: Final = tuple(kind for kind in RETRY_CHOICES if FAILURES[kind].retried)
"""`retry.on` where the document says nothing."""
