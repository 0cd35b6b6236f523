"""GPU hours by user, queue or project, from the ledgers of all jobs in the store, those that run included.

Jobs are read a few at a time, each one's history page by page: what is in memory is the sums.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Final

import msgspec

from ...proto.generated import answers_pb2
from ...spec.ids import JobId, Micros
from ..core import attempt_events, checkpoint_events, progress_events, task_events
from ..core.events import Event
from ..core.spent import NOTHING_SPENT, Spent, spent_by
from ..records import event_from_row, job_from_row, shape_from_text
from ..store.base import JobRow, Store

JOBS_AT_ONCE: Final = 50
ROWS_MAX: Final = 10_000
_EVENTS_AT_ONCE: Final = 1000
_KINDS: Final = frozenset(
    kind.__name__
    for kind in (
        attempt_events.JobSubmitted,
        attempt_events.AttemptStarted,
        attempt_events.StopRequested,
        attempt_events.AttemptEnded,
        attempt_events.JobEnded,
        task_events.TaskStarted,
        task_events.GangReformed,
        checkpoint_events.CheckpointAccepted,
        progress_events.GangHung,
    )
)
"""What the ledger goes by."""
_UNIT: Final = 1e9
"""Thousandths times microseconds, in whole ones times seconds."""


class _Said(msgspec.Struct):
    """What of a job's document says whose it is."""

    experiment_name: str = ""


_said_of: Final = msgspec.json.Decoder(_Said).decode


class UsageReader:
    """One sum over all jobs; `more` goes on with it, in a thread of its own."""

    def __init__(self, store: Store, by: str, since_us: Micros, now_us: Micros) -> None:
        self._store, self._by = store, by
        self._since_us, self._now_us = since_us, now_us
        self._before: JobId | None = None
        self._sums: defaultdict[str, Spent] = defaultdict(lambda: NOTHING_SPENT)
        self.jobs_read = 0
        self.jobs = 0

    async def more(self) -> bool:
        """False: all are read."""
        return await asyncio.to_thread(self._more)

    def rows(self) -> list[answers_pb2.UsageRow]:
        used = sorted(self._sums.items(), key=lambda item: (-item[1].allocated, -item[1].cpus, item[0]))
        return [_row(name, usage) for name, usage in used[:ROWS_MAX]]

    def _more(self) -> bool:
        rows = self._store.jobs(before=self._before, limit=JOBS_AT_ONCE)
        if not rows:
            return False
        self.jobs = self.jobs or rows[0].job
        self._before = rows[-1].job
        self.jobs_read = self.jobs - self._before + 1
        wanted = [row for row in rows if row.finished_us is None or row.finished_us > self._since_us]
        names = self._names(wanted)
        for row in wanted:
            usage = self._usage(row)
            if usage.jobs:
                self._sums[names(row)] = self._sums[names(row)].plus(usage)
        return True

    def _names(self, rows: Sequence[JobRow]) -> Callable[[JobRow], str]:
        if self._by == "user":
            return lambda row: row.user
        if self._by == "queue":  # where it came to: its file may name none
            return lambda row: shape_from_text(row.demand).queue
        said = {job: _said_of(text) for job, text in self._store.documents([row.job for row in rows]).items()}
        unsaid = _Said()
        return lambda row: said.get(row.job, unsaid).experiment_name

    def _usage(self, row: JobRow) -> Spent:
        job = job_from_row(row)
        if not job.attempt:
            return NOTHING_SPENT
        events = takewhile(lambda event: event.at_us <= self._now_us, self._history(row.job))
        return spent_by(events, job.demand.per_task, self._since_us, self._now_us)

    def _history(self, job: JobId) -> Iterator[Event]:
        after_seq = 0
        while True:
            rows = self._store.events(job=job, after_seq=after_seq, limit=_EVENTS_AT_ONCE)
            yield from (event_from_row(row) for row in rows if row.kind in _KINDS)
            if len(rows) < _EVENTS_AT_ONCE:
                return
            after_seq = rows[-1].seq


def _row(name: str, usage: Spent) -> answers_pb2.UsageRow:
    return answers_pb2.UsageRow(
        name=name,
        jobs=usage.jobs,
        allocated_gpu_s=usage.allocated / _UNIT,
        productive_gpu_s=usage.productive / _UNIT,
        lost_gpu_s=usage.lost / _UNIT,
        other_gpu_s=usage.other / _UNIT,
        allocated_cpu_s=usage.cpus / _UNIT,
    )
