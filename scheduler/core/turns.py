"""The walk along the line: everybody who fits starts, in the order of order.py; who does not is passed over.

That nobody waits for ever without reason is seen to by three means: a job may have others stopped that were
served more, or count for less (preemption.py); nodes are kept for it meanwhile (claims.py); and one that was
stopped by a fault, or has waited longer than its patience, has nodes kept for it in any case.

A walk remembers which demands did not fit: they are not looked at again before something is freed, so that a
walk costs what it places and the number of lanes, not what waits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import Final

from ...spec.ids import Micros
from ...spec.resources import GangDemand
from .claims import reserve, settle
from .effects import Plan
from .job import Job
from .order import Standing, lift, standing, standing_class
from .placement import place
from .preemption import Stoppable, make_room, stoppable
from .queue import RESTART, LaneKey, lane_key
from .state import ClusterState

KINDS_MAX: Final = 10_000
CLAIMS_MAX: Final = 64
"""Jobs that nodes are kept for at one time."""

Asker = tuple[GangDemand, int, int]
"""A demand, with minus its priority and the class that it counts as."""


@dataclass(slots=True)
class Turns:
    """What was seen on the last walks; lost with the process, and never needed."""

    stuck: dict[GangDemand, int] = field(default_factory=dict)
    """With `freed` when it did not fit."""
    denied: dict[Asker, Micros] = field(default_factory=dict)
    """For whom no room could be made, and when."""
    settled: tuple[int, int] | None = None
    """Who stood in line, and what was free, when nobody could move."""
    stoppable: list[Stoppable] | None = None
    """On this walk."""
    review_us: Micros | None = None
    """When it is worth another look, though nothing has changed but the time."""

    def walk(self, state: ClusterState, now_us: Micros) -> Iterator[Plan[None]]:
        """Each plan must be applied before the next is asked for. Walk again until nothing comes."""
        due = self.review_us is not None and now_us >= self.review_us
        if self.settled == (state.queue.version, state.freed) and not due:
            return
        moved, self.stoppable = False, None
        for plan in self._walk(state, now_us):
            moved = True
            yield plan
        if not moved:
            self.settled = (state.queue.version, state.freed)
            order = state.settings.order
            waits = order.preemption and bool(state.placed) and state.queue.waits
            self.review_us = Micros(now_us + order.review_us) if waits else None

    def _walk(self, state: ClusterState, now_us: Micros) -> Iterator[Plan[None]]:
        for number in sorted(state.claims):
            plan = settle(state, state.jobs[number], now_us)
            if plan is not None:
                yield plan
        line: list[tuple[Standing, LaneKey]] = [
            (standing(state, key, state.jobs[number], now_us), key) for key, number in state.queue.firsts()
        ]
        heapify(line)
        while line:
            first, key = line[0]
            job = state.jobs[first.job]
            plan = self._turn(state, job, now_us)
            if plan is not None:
                yield plan
                if job.placed:  # stranded: it stands in line anew, before those that follow
                    return
            lane = state.queue.lanes.get(key)
            if plan is None or lane is None or lane.parked:
                heappop(line)
            else:
                heapreplace(line, (standing(state, key, state.jobs[lane.jobs[0]], now_us), key))

    def _turn(self, state: ClusterState, job: Job, now_us: Micros) -> Plan[None] | None:
        if job.placed:
            return place(state, job, now_us)
        if self.stuck.get(job.demand) != state.freed:
            plan = place(state, job, now_us)
            if plan is not None:
                return plan
            if len(self.stuck) >= KINDS_MAX:
                self.stuck.clear()
            self.stuck[job.demand] = state.freed
        return self._make_room(state, job, now_us)

    def _make_room(self, state: ClusterState, job: Job, now_us: Micros) -> Plan[None] | None:
        order = state.settings.order
        asker = (job.demand, -job.priority, standing_class(state, job, now_us))
        before_us = self.denied.get(asker)
        waits = before_us is not None and now_us < before_us + order.review_us
        if waits or len(state.claims) >= CLAIMS_MAX:
            return None
        plan = None
        if order.preemption:
            if self.stoppable is None:
                self.stoppable = stoppable(state, now_us)
            plan = make_room(state, job, self.stoppable, now_us)
        if plan is None and (lane_key(job).turn == RESTART or lift(state, job, now_us)):
            plan = reserve(state, job, now_us)
        if plan is None:
            if len(self.denied) >= KINDS_MAX:
                self.denied.clear()
            self.denied[asker] = now_us
        return plan
