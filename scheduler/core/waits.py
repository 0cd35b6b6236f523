"""What those in line ask for together that have waited for longer than some time.

Each stands there with the moment from which it would have waited, had it waited in one piece. A question
costs who has come past that time since the last one; what is asked for may also be earlier than the last.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from ...spec.ids import JobId


@dataclass(slots=True)
class Share:
    """Of jobs that ask for the same."""

    milli: int
    """What each of them counts as."""
    past: int = 0
    """How many have waited so long."""
    counts: bool = True
    """Those that can never run do not."""


@dataclass(slots=True)
class Waits:
    """All that wait. Times in microseconds."""

    standing: dict[JobId, tuple[int, Share]] = field(default_factory=dict)
    """Since when, and among whom."""
    coming: list[tuple[int, JobId]] = field(default_factory=list)
    """Heap; an entry that is not as in `standing` is stale."""
    past: set[JobId] = field(default_factory=set)
    milli: int = 0
    """Of these, those that count."""
    before_us: int = 0
    """The last that was asked for."""

    def add(self, jobs: Iterable[tuple[int, JobId]], share: Share) -> None:
        """Since when each of them waits. None may be there already."""
        added = list(jobs)
        for since_us, number in added:
            self.standing[number] = since_us, share
        if len(added) == 1:
            heappush(self.coming, added[0])
        else:
            self.coming += added
            heapify(self.coming)

    def drop(self, number: JobId) -> None:
        """It waits no longer, if it did."""
        _, share = self.standing.pop(number, (0, None))
        if share is not None and number in self.past:
            self.past.remove(number)
            self._count(share, -1)
        if len(self.coming) > 2 * len(self.standing) + 64:
            self.coming = [
                (since_us, job) for job, (since_us, _) in self.standing.items() if job not in self.past
            ]
            heapify(self.coming)

    def asked_milli(self, before_us: int) -> int:
        """By those that have waited since then, or for longer."""
        while self.coming and self.coming[0][0] <= before_us:
            since_us, number = heappop(self.coming)
            known_us, share = self.standing.get(number, (None, None))
            if share is not None and known_us == since_us and number not in self.past:
                self.past.add(number)
                self._count(share, 1)
        if before_us < self.before_us:
            for number in [job for job in self.past if self.standing[job][0] > before_us]:
                since_us, share = self.standing[number]
                self.past.remove(number)
                self._count(share, -1)
                heappush(self.coming, (since_us, number))
        self.before_us = before_us
        return self.milli

    def set_counts(self, share: Share, *, counts: bool) -> None:
        if share.counts is not counts:
            share.counts = counts
            self.milli += share.past * (share.milli if counts else -share.milli)

    def _count(self, share: Share, more: int) -> None:
        share.past += more
        if share.counts:
            self.milli += more * share.milli
