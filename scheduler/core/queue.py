"""The jobs that wait, in lanes of equals: of one turn, priority, class of service and demand (and, where the
policy has queues, of one user in one queue), by number.

When the first of a lane can never run, none of them can, and the lane steps aside (is parked) until the nodes
change. How the lanes stand to each other is said by order.py: it changes with time.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from ...spec.ids import JobId
from ...spec.resources import GangDemand
from .job import Job
from .queues import leaf_of_job, parent_of
from .waits import Share, Waits
from .weights import gang_milli

K = TypeVar("K")

RESTART, FIRST_TIME = 0, 1


class LaneKey(NamedTuple):
    turn: int
    """RESTART or FIRST_TIME; one that gave way to others has to wait its turn again."""
    minus_priority: int
    service: int
    """Class of service, see order.py; 0 of restarts: these go by number."""
    demand: GangDemand
    leaf: str = ""
    """In the tree of queues; empty where the policy has none, and of restarts."""


@dataclass(slots=True)
class Lane:
    jobs: deque[JobId] = field(default_factory=deque)
    gone: set[JobId] = field(default_factory=set)
    """Left from the middle (cancelled); taken out when they come to the front, or when they are many."""
    parked: bool = False
    share: Share = field(default_factory=lambda: Share(0), compare=False)
    """Of what is asked for."""

    def __len__(self) -> int:
        return len(self.jobs) - len(self.gone)


def is_restart(job: Job) -> bool:
    """Of one that waits: it does not start for the first time, and gave way to nobody."""
    return bool(job.course.attempt) and job.course.gave_way_to is None


def waits_since_us(job: Job) -> int:
    """From when it would have waited, had it waited in one piece."""
    return (job.course.waits_since_us or job.submitted_us) - job.course.queued_us


@dataclass(slots=True)
class Queue:
    lanes: dict[LaneKey, Lane] = field(default_factory=dict)
    alike: dict[GangDemand, dict[LaneKey, Lane]] = field(default_factory=dict)
    """The same lanes, by what they ask for."""
    below: dict[str, dict[LaneKey, Lane]] = field(default_factory=dict)
    """The same, by the queue right above their leaf; those of restarts are not in it."""
    restarts: dict[LaneKey, Lane] = field(default_factory=dict)
    length: int = 0
    version: int = 0
    """Grows with each change of who stands where."""
    fair: bool = False
    """The policy has queues: each leaf has lanes of its own."""
    waited: Waits = field(default_factory=Waits, compare=False)
    """Of those that are not placed."""

    def __len__(self) -> int:
        return self.length

    def key_of(self, job: Job) -> LaneKey:
        """The lane that it stands in."""
        if is_restart(job):
            return LaneKey(RESTART, -job.priority, 0, job.shape.demand)
        leaf = leaf_of_job(job) if self.fair else ""
        return LaneKey(FIRST_TIME, -job.priority, job.course.service, job.shape.demand, leaf)

    def set_fair(self, fair: bool, jobs: Mapping[JobId, Job]) -> None:
        """Everybody stands in line anew where that is another line."""
        if fair == self.fair:
            return
        lanes, self.lanes, self.alike, self.waited = self.lanes, {}, {}, Waits()
        self.below, self.restarts = {}, {}
        self.length, self.fair = 0, fair
        for lane in lanes.values():
            for number in lane.jobs:
                if number not in lane.gone:
                    self.add(jobs[number])

    def firsts(self) -> Iterator[tuple[LaneKey, JobId]]:
        """Of each lane that is not parked."""
        for key, lane in self.lanes.items():
            if not lane.parked:
                yield key, lane.jobs[0]

    def lane_of(self, job: Job) -> Iterator[JobId]:
        """All that stand in its lane, the first first."""
        lane = self.lanes[self.key_of(job)]
        return (number for number in lane.jobs if number not in lane.gone)

    @property
    def waits(self) -> bool:
        """Somebody stands in line; parked lanes do not count."""
        return next(self.firsts(), None) is not None

    def waits_besides(self, job: Job) -> bool:
        """Somebody else does."""
        own = self.key_of(job)
        return any(len(lane) > (key == own) for key, lane in self.lanes.items() if not lane.parked)

    def add(self, job: Job) -> None:
        lane = self._lane(self.key_of(job))
        self.length += 1
        self.version += 1
        if not job.placed:
            self.waited.add([(waits_since_us(job), job.number)], lane.share)
        if job.number in lane.gone:  # left and came back before it was trimmed: it stands where it stood
            lane.gone.remove(job.number)
        elif lane.jobs and job.number < lane.jobs[-1]:
            insort(lane.jobs, job.number)
        else:
            lane.jobs.append(job.number)

    def add_all(self, jobs: Sequence[Job]) -> None:
        """As `add` for each, when all are of one lane and none is placed."""
        lane = self._lane(self.key_of(jobs[0]))
        lane.gone.difference_update(back := {job.number for job in jobs} & lane.gone)
        lane.jobs = deque(sorted((*lane.jobs, *(job.number for job in jobs if job.number not in back))))
        self.length += len(jobs)
        self.version += 1
        self.waited.add(((waits_since_us(job), job.number) for job in jobs), lane.share)

    def remove(self, job: Job) -> None:
        key = self.key_of(job)
        lane = self.lanes[key]
        self.length -= 1
        self.version += 1
        if lane.jobs[0] == job.number:
            lane.jobs.popleft()
        else:
            lane.gone.add(job.number)
        self.waited.drop(job.number)
        self._trim(key, lane)

    def park(self, job: Job) -> None:
        """The lane of `job` steps aside."""
        self._set_parked(self.lanes[self.key_of(job)], parked=True)
        self.version += 1

    def unpark_all(self) -> None:
        """The nodes changed: every lane stands in line again."""
        self.version += 1
        for lane in self.lanes.values():
            self._set_parked(lane, parked=False)

    def _set_parked(self, lane: Lane, *, parked: bool) -> None:
        lane.parked = parked
        self.waited.set_counts(lane.share, counts=not parked)

    def _lane(self, key: LaneKey) -> Lane:
        """A new one, if there is none."""
        lane = self.lanes.get(key)
        if lane is None:
            share = Share(gang_milli(key.demand, key.demand.instance_count_min))
            lane = self.lanes[key] = self.alike.setdefault(key.demand, {})[key] = Lane(share=share)
            if key.turn == RESTART:
                self.restarts[key] = lane
            else:
                self.below.setdefault(parent_of(key.leaf), {})[key] = lane
        return lane

    def _trim(self, key: LaneKey, lane: Lane) -> None:
        """Take leavers off the front; a lane that empties is dropped."""
        if len(lane.gone) * 2 > len(lane.jobs):
            lane.jobs = deque(number for number in lane.jobs if number not in lane.gone)
            lane.gone = set()
        while lane.jobs and lane.jobs[0] in lane.gone:
            lane.gone.remove(lane.jobs.popleft())
        if not lane.jobs:
            del self.lanes[key]
            _take_out(self.alike, key.demand, key)
            if key.turn == RESTART:
                del self.restarts[key]
            else:
                _take_out(self.below, parent_of(key.leaf), key)


def _take_out(index: dict[K, dict[LaneKey, Lane]], of: K, key: LaneKey) -> None:
    del index[of][key]
    if not index[of]:
        del index[of]
