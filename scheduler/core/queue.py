"""The line of waiting jobs: restarts first, then by priority, then by number.

Jobs of one priority with equal demands share a lane: when the first of a lane can never run, none of them
can, and the lane steps aside (is parked) until the nodes change. Each operation is O(log lanes) amortised,
whatever the line's length.
"""

from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

from ...spec.ids import JobId
from ...spec.resources import GangDemand
from .job import Job

RESTART, FIRST_TIME = 0, 1


class LaneKey(NamedTuple):
    turn: int
    """RESTART or FIRST_TIME."""
    minus_priority: int
    demand: GangDemand


class Standing(NamedTuple):
    """Sorts as the line stands."""

    turn: int
    minus_priority: int
    job: JobId


@dataclass(slots=True)
class Lane:
    jobs: deque[JobId] = field(default_factory=deque)
    gone: set[JobId] = field(default_factory=set)
    """Left from the middle (cancelled); taken out when they come to the front, or when they are many."""
    parked: bool = False

    def __len__(self) -> int:
        return len(self.jobs) - len(self.gone)


def lane_key(job: Job) -> LaneKey:
    turn = RESTART if job.course.attempt else FIRST_TIME
    return LaneKey(turn, -job.priority, job.shape.demand)


@dataclass(slots=True)
class Queue:
    lanes: dict[LaneKey, Lane] = field(default_factory=dict)
    order: list[tuple[Standing, LaneKey]] = field(default_factory=list)
    """Heap of the lanes' firsts; entries whose job is no longer the first of its lane are stale."""
    length: int = 0

    def __len__(self) -> int:
        return self.length

    def first(self) -> JobId | None:
        """Whose turn it is; parked lanes are passed over. The heap's top is never stale."""
        return self.order[0][0].job if self.order else None

    def waits_besides(self, job: Job) -> bool:
        """Somebody else stands in line; parked lanes do not count."""
        own = lane_key(job)
        return any(len(lane) > (key == own) for key, lane in self.lanes.items() if not lane.parked)

    def add(self, job: Job) -> None:
        key = lane_key(job)
        lane = self.lanes.setdefault(key, Lane())
        self._insert(lane, job.number)
        self.length += 1
        if not lane.parked and lane.jobs[0] == job.number:
            self._offer(key, lane)

    def add_all(self, jobs: Sequence[Job]) -> None:
        """As `add` for each, when all are of one lane."""
        key = lane_key(jobs[0])
        lane = self.lanes.setdefault(key, Lane())
        before = lane.jobs[0] if lane.jobs else None
        lane.gone.difference_update(back := {job.number for job in jobs} & lane.gone)
        lane.jobs = deque(sorted((*lane.jobs, *(job.number for job in jobs if job.number not in back))))
        self.length += len(jobs)
        if not lane.parked and lane.jobs[0] != before:
            self._offer(key, lane)

    def remove(self, job: Job) -> None:
        key = lane_key(job)
        lane = self.lanes[key]
        self.length -= 1
        lane.gone.add(job.number)
        self._trim(key, lane)
        self._clean_top()

    def park(self, job: Job) -> None:
        """The lane of `job` steps aside."""
        self.lanes[lane_key(job)].parked = True
        self._clean_top()

    def unpark_all(self) -> None:
        """The nodes changed: every lane stands in line again."""
        for key, lane in self.lanes.items():
            if lane.parked:
                lane.parked = False
                self._offer(key, lane)

    def ahead_of(self, job: Job) -> tuple[int, JobId | None]:
        """How many stand before it (parked lanes do not count), and the first of them."""
        key = lane_key(job)
        mine = Standing(key.turn, key.minus_priority, job.number)
        count = sum(
            _ahead(lane, Standing(other.turn, other.minus_priority, JobId(0)), mine)
            for other, lane in self.lanes.items()
            if not lane.parked
        )
        return count, self.first() if count else None

    def _insert(self, lane: Lane, number: JobId) -> None:
        if number in lane.gone:  # left and came back before it was trimmed: it stands where it stood
            lane.gone.remove(number)
        elif lane.jobs and number < lane.jobs[-1]:
            insort(lane.jobs, number)
        else:
            lane.jobs.append(number)

    def _offer(self, key: LaneKey, lane: Lane) -> None:
        heappush(self.order, (Standing(key.turn, key.minus_priority, lane.jobs[0]), key))

    def _trim(self, key: LaneKey, lane: Lane) -> None:
        """Take leavers off the front; a lane that empties is dropped, a new first is offered."""
        before = lane.jobs[0]
        if len(lane.gone) * 2 > len(lane.jobs):
            lane.jobs = deque(number for number in lane.jobs if number not in lane.gone)
            lane.gone = set()
        while lane.jobs and lane.jobs[0] in lane.gone:
            lane.gone.remove(lane.jobs.popleft())
        if not lane.jobs:
            del self.lanes[key]
        elif not lane.parked and lane.jobs[0] != before:
            self._offer(key, lane)

    def _clean_top(self) -> None:
        while self.order and self._stale(*self.order[0]):
            heappop(self.order)

    def _stale(self, standing: Standing, key: LaneKey) -> bool:
        lane = self.lanes.get(key)
        return lane is None or lane.parked or lane.jobs[0] != standing.job


def _ahead(lane: Lane, standing: Standing, mine: Standing) -> int:
    if standing[:2] != mine[:2]:
        return len(lane) if standing[:2] < mine[:2] else 0
    return sum(1 for number in lane.jobs if number < mine.job and number not in lane.gone)
