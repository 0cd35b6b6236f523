"""Who sent what brought a bug of ours to light, and how often: a poison that is sent for ever is barred.

The loop recovers from its store each time; without this it would do nothing else. Whoever is barred hears
why; all others go on. After a while it is listened to once more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..spec.errors import Unavailable
from .core.admin_stimuli import ApplyPolicy, HoldJob, ReleaseJob, SetPriority
from .core.stimuli import (
    AskCheckpoint,
    Cancel,
    ContactLost,
    CordonNodes,
    Preempt,
    Restore,
    Submit,
    Tick,
    TrustCluster,
    UncordonNodes,
)
from .endpoints.stimuli import EndpointStimulus
from .loop_step import Asked
from .registry.ops import Collected, DeleteAsset, MoveAlias, Register
from .sweeps.driving import ChangeSweep, Judged, StartTrial, StartWorker, SubmitSweep
from .sweeps.ops import CreateStudy, DeleteStudy, OpenStudy, StudyOps

TIMES_MAX: Final = 3
BARRED_US: Final = 600_000_000
SOURCES_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class _Record:
    times: int
    at_us: int
    why: str


class PoisonWatch:
    """Counts per source: a node, a submit's key, a cancelled job, a study."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._records: dict[str, _Record] = {}

    def note(self, stimulus: Asked, error: BaseException) -> str:
        """One more; what is to be logged when it is barred from now on, else empty."""
        source = _source(stimulus)
        if not source:
            return ""
        standing = self._records.pop(source, None)
        times = 1 if standing is None else standing.times + 1
        if len(self._records) >= SOURCES_MAX:
            del self._records[next(iter(self._records))]
        why = f"{type(error).__name__}: {error}".split("\n")[0][:500]
        self._records[source] = _Record(times, self._now_us(), why)
        return self._text(source) if times >= TIMES_MAX else ""

    def check(self, stimulus: Asked) -> None:
        """Raises Unavailable for a source that is barred."""
        if not self._records:
            return
        source = _source(stimulus)
        record = self._records.get(source)
        if record is None or record.times < TIMES_MAX or self._now_us() >= record.at_us + BARRED_US:
            return
        raise Unavailable(
            self._text(source), hint="this is a bug of the scheduler: see its log, and report it"
        )

    def _text(self, source: str) -> str:
        record = self._records[source]
        return (
            f"what {source} sent has stopped the scheduler {record.times} times ({record.why}); "
            f"it is not listened to for {BARRED_US // 60_000_000} min"
        )


def _source(stimulus: Asked) -> str:
    if isinstance(stimulus, EndpointStimulus):
        return f"the {type(stimulus).__name__} of endpoint {stimulus.endpoint}"
    match stimulus:
        case Submit():
            return f"submit {stimulus.key}"
        case Cancel():
            return f"cancel of job {stimulus.job}"
        case HoldJob() | ReleaseJob() | SetPriority():
            return f"{type(stimulus).__name__.lower()} of job {stimulus.job}"
        case (
            Preempt()
            | Restore()
            | AskCheckpoint()
            | CordonNodes()
            | UncordonNodes()
            | ApplyPolicy()
            | Register()
            | MoveAlias()
        ):
            return f"{type(stimulus).__name__.lower()} {stimulus.key}"
        case CreateStudy():
            return f"the making of study {stimulus.name!r}"
        case SubmitSweep():
            return f"the submit of sweep {stimulus.key}"
        case (
            DeleteStudy() | OpenStudy() | StudyOps() | StartTrial() | StartWorker() | Judged() | ChangeSweep()
        ):
            return f"the {type(stimulus).__name__} of study {stimulus.study}"
        case DeleteAsset():
            return f"the deletion of {stimulus.kind} {stimulus.name}:{stimulus.version}"
        case Collected():
            return f"the outputs of job {stimulus.job}"
        case ContactLost() | TrustCluster() | Tick():
            return ""
    return f"node {stimulus.node}"
