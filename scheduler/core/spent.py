"""What a job has used of the cluster, from its events: the ledger's parts, weighted with what it held.

An amount is counted in thousandths of a GPU (or of a cpu) times microseconds. `allocated` is what attempts
held, from their placement to their end; `productive` and `lost` are as in ledger.py; what is left of it went
into starts, stalls of saves, and gangs that hung.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ...spec.ids import Micros
from ...spec.resources import Resources
from .attempt_events import AttemptEnded, AttemptStarted
from .events import Event
from .ledger import Book


@dataclass(frozen=True, slots=True)
class Spent:
    jobs: int = 0
    """That held something in that time."""
    allocated: int = 0
    productive: int = 0
    lost: int = 0
    cpus: int = 0
    """Allocated, in thousandths of a cpu."""

    @property
    def other(self) -> int:
        return self.allocated - self.productive - self.lost

    def plus(self, other: "Spent") -> "Spent":
        return Spent(
            self.jobs + other.jobs,
            self.allocated + other.allocated,
            self.productive + other.productive,
            self.lost + other.lost,
            self.cpus + other.cpus,
        )


NOTHING_SPENT = Spent()


def spent_by(events: Iterable[Event], need: Resources, since_us: Micros, now_us: Micros) -> Spent:
    """`events`: all of one job, in order; `need`: of each of its tasks. Counted from `since_us` on.

    Work that was productive before and is lost since then counts as lost, and is taken off what was
    productive: so the sums of two stretches are that of the whole.
    """
    meter = _Meter()
    for event in events:
        if event.at_us > since_us:
            meter.begin(since_us)
        meter.enter(event)
    meter.begin(since_us)
    meter.pass_to(now_us)
    held = sum(meter.sums.values())
    gpu_milli = need.gpus_milli
    productive, lost = meter.sums["productive_us"], meter.sums["lost_us"]
    return Spent(
        int(held > 0), held * gpu_milli, productive * gpu_milli, lost * gpu_milli, held * need.cpu_milli
    )


class _Meter:
    """The book's accounts, each movement times the tasks that were placed then."""

    def __init__(self) -> None:
        self._book = Book()
        self._tasks = 0
        self._begun = False
        self.sums: Counter[str] = Counter()

    def begin(self, since_us: Micros) -> None:
        """What was before does not count."""
        if not self._begun:
            self.pass_to(since_us)
            self.sums.clear()
            self._begun = True

    def enter(self, event: Event) -> None:
        before = dict(self._book.accounts)
        self._book.enter(event)
        self._add(before)
        if isinstance(event, AttemptStarted):
            self._tasks = len(event.places)
        elif isinstance(event, AttemptEnded):
            self._tasks = 0

    def pass_to(self, at_us: Micros) -> None:
        before = dict(self._book.accounts)
        self._book.pass_to(at_us)
        self._add(before)

    def _add(self, before: dict[str, int]) -> None:
        if self._tasks:
            for part, value in self._book.accounts.items():
                self.sums[part] += (value - before[part]) * self._tasks
