"""The walk along the line: everybody who fits starts, in the order of order.py; who does not is passed over,
and so is who would be above a limit of a queue or user (quota.py).

That nobody waits for ever without reason is seen to by three means: a job may have others stopped that were
served more, or count for less (preemption.py), or moved where that is enough (moves.py); nodes are kept for
it meanwhile (claims.py); and one that was stopped by a fault, or has waited longer than its patience, has
nodes kept for it in any case. On these, others may run that will be gone in time (backfill.py).

A walk remembers which demands did not fit: they are not looked at again before something is freed, so that a
walk costs what it places and the number of lanes, not what waits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from ...spec.ids import JobId, Micros
from ...spec.resources import GangDemand
from .attempt_events import ClaimDropped
from .backfill import Gap, gaps, let_in
from .candidates import can_ever, candidates_for
from .claims import reserve, room_by_now, settle
from .cluster_policy import NO_POLICY, ClusterPolicy
from .effects import Plan
from .job import Job
from .line import Line
from .moves import defragment
from .order import lift
from .placement import place
from .preemption import Stoppable, make_room, stoppable
from .queue import RESTART, LaneKey
from .queues import leaf_of_job
from .quota import is_allowed
from .state import ClusterState
from .trades import is_given_to, take_share

KINDS_MAX: Final = 10_000
CLAIMS_MAX: Final = 64
"""Jobs that nodes are kept for at one time."""
TRIES_MAX: Final = 16
"""Jobs that a walk looks whom to stop for: with many who run, each is a long look, and others have to be
answered in between."""
EQUALS_MAX: Final = 16
"""Of a lane, that are looked at for one that may go onto kept nodes."""
PAUSE_US: Final = 50_000
"""Before the next walk goes on with that."""


@dataclass(slots=True)
class Turns:
    """What was seen on the last walks; lost with the process, and never needed."""

    stuck: dict[GangDemand, int] = field(default_factory=dict)
    """With `freed` when it did not fit."""
    denied: dict[LaneKey | JobId, Micros] = field(default_factory=dict)
    """For whom no room could be made, and when: for those of a lane, or for one that has nodes kept."""
    settled: tuple[int, int] | None = None
    """Who stood in line, and what was free, when nobody could move."""
    policy: ClusterPolicy = NO_POLICY
    """By which all that was seen."""
    stoppable: list[Stoppable] | None = None
    """On this walk."""
    gaps: list[Gap] | None = None
    """On this walk: nodes that are kept, for others to use meanwhile."""
    review_us: Micros | None = None
    """When it is worth another look, though nothing has changed but the time."""
    rooms: dict[JobId, int] = field(default_factory=dict)
    """With how much room those that had nodes kept were sent to look for others."""
    tries: int = 0
    """On this walk, to make room for somebody."""

    def walk(self, state: ClusterState, now_us: Micros) -> Iterator[Plan[None]]:
        """Each plan must be applied before the next is asked for. Walk again until nothing comes."""
        if state.policy is not self.policy:
            self.policy, self.settled = state.policy, None
            self.stuck.clear()
            self.denied.clear()
        due = self.review_us is not None and now_us >= self.review_us
        if self.settled == (state.queue.version, state.freed) and not due:
            return
        freed, self.stoppable, self.gaps, self.tries = state.freed, None, None, 0
        yield from self._walk(state, now_us)
        if state.freed == freed:  # what has started since made nobody's room larger
            self.settled = (state.queue.version, state.freed)
            order = state.order
            stops = (order.preemption or order.defragment) and bool(state.placed)
            waits = bool(state.claims) or (stops and state.queue.waits)
            pause_us = PAUSE_US if self.tries > TRIES_MAX else order.review_us
            self.review_us = Micros(now_us + pause_us) if waits else None

    def _walk(self, state: ClusterState, now_us: Micros) -> Iterator[Plan[None]]:
        self.rooms = {number: room for number, room in self.rooms.items() if number in state.claims}
        for number in sorted(state.claims):
            while number in state.claims and (plan := settle(state, state.jobs[number], now_us)) is not None:
                yield plan
            if (
                number in state.claims
                and (plan := self._clear(state, state.jobs[number], now_us)) is not None
            ):
                yield plan
        denied, since_us = self.denied, now_us - state.order.review_us
        line = Line(
            state,
            now_us,
            lambda demand: self._has_room(state, demand),
            lambda key: denied.get(key, since_us) <= since_us,
        )
        while (found := line.first()) is not None:
            key, job = found
            plan = self._turn(state, job, now_us) if is_allowed(state, job) else None
            if plan is None:
                line.drop(key)
                continue
            yield plan
            line.moved(key, leaf_of_job(job))
            if job.placed:  # stranded: it has its new places before anybody else has them
                moved = place(state, state.jobs[job.number], now_us)
                if moved is not None:
                    yield moved
                return

    def _has_room(self, state: ClusterState, demand: GangDemand) -> bool:
        """There is room for such a gang; or can never be, which has yet to be said."""
        if self.stuck.get(demand) == state.freed:
            return False
        if candidates_for(state, demand).room >= demand.instance_count_min or not can_ever(state, demand):
            return True
        self._note_stuck(state, demand)
        return False

    def _is_denied(self, state: ClusterState, key: LaneKey | JobId, now_us: Micros) -> bool:
        """It is too early to see again whether room can be made."""
        before_us = self.denied.get(key)
        return before_us is not None and now_us < before_us + state.order.review_us

    def _note_denied(self, key: LaneKey | JobId, now_us: Micros) -> None:
        if len(self.denied) >= KINDS_MAX:
            self.denied.clear()
        self.denied[key] = now_us

    def _note_stuck(self, state: ClusterState, demand: GangDemand) -> None:
        if len(self.stuck) >= KINDS_MAX:
            self.stuck.clear()
        self.stuck[demand] = state.freed

    def _turn(self, state: ClusterState, job: Job, now_us: Micros) -> Plan[None] | None:
        if job.placed:
            return place(state, job, now_us)
        if job.demand.elastic and not job.course.aim and state.order.preemption:
            if is_given_to(state, job):
                return None
            if (plan := take_share(state, job, now_us)) is not None:
                return plan
        if self.stuck.get(job.demand) != state.freed:
            plan = place(state, job, now_us)
            if plan is not None:
                return plan
            self._note_stuck(state, job.demand)
        return self._let_in(state, job, now_us) or self._make_room(state, job, now_us)

    def _let_in(self, state: ClusterState, job: Job, now_us: Micros) -> Plan[None] | None:
        """The first of its lane that will be gone in time, onto nodes that are kept for others."""
        if not state.claims:
            return None
        if self.gaps is None:
            self.gaps = gaps(state, now_us)
        if not self.gaps:
            return None
        equals = (state.jobs[number] for number in islice(state.queue.lane_of(job), EQUALS_MAX))
        plans = (let_in(state, one, self.gaps, now_us) for one in equals if is_allowed(state, one))
        return next((plan for plan in plans if plan is not None), None)

    def _clear(self, state: ClusterState, job: Job, now_us: Micros) -> Plan[None] | None:
        """Nodes were kept for it when nobody there could be stopped yet: by now they may be; or there is room
        for it with others."""
        claim = job.course.claim
        if claim is None or claim.victims:
            return None
        room = room_by_now(state, job)
        if room >= job.demand.instance_count_min and room != self.rooms.get(job.number):
            self.rooms[job.number] = room
            return Plan(None, (ClaimDropped(now_us, job.number, "there is room for it with other nodes"),))
        if not state.order.preemption or self._is_denied(state, job.number, now_us) or self._is_tired():
            return None
        plan = make_room(state, job, self._stoppable(state, now_us), now_us)
        if plan is None:
            self._note_denied(job.number, now_us)
        return plan

    def _make_room(self, state: ClusterState, job: Job, now_us: Micros) -> Plan[None] | None:
        key = state.queue.key_of(job)
        if self._is_denied(state, key, now_us) or len(state.claims) >= CLAIMS_MAX or self._is_tired():
            return None
        plan = None
        if state.order.defragment:
            plan = defragment(state, job, self._stoppable(state, now_us), now_us)
        if state.order.preemption and plan is None:
            plan = make_room(state, job, self._stoppable(state, now_us), now_us)
        if plan is None and (key.turn == RESTART or lift(state, job, now_us)):
            plan = reserve(state, job, now_us)
        if plan is None:
            self._note_denied(key, now_us)
        return plan

    def _is_tired(self) -> bool:
        """This walk has tried often enough; the next one goes on."""
        self.tries += 1
        return self.tries > TRIES_MAX

    def _stoppable(self, state: ClusterState, now_us: Micros) -> list[Stoppable]:
        if self.stoppable is None:
            self.stoppable = stoppable(state, now_us)
        return self.stoppable
