"""Whose turn it is, without knowing how long jobs run: who has been served least goes first.

Discretised least attained service, after Tiresias (Gu et al., NSDI 2019) and, before it, the multilevel
feedback queues of Corbato: a job's class is how many of the limits its service so far has passed. Of one
priority the lowest class goes first, and within a class the oldest job. Nobody waits for ever: for each
`patience_us` that a job has waited in all, it counts as one class lower. Under overload that would lift all,
and the order would be that of arrival: where those that are lifted, and those that would be, ask for so much
that less than `lifted_percent` of the cluster would be left to others, the first may hold no more than that.
"""

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from ...spec.ids import JobId, Micros
from ...spec.resources import WHOLE_GPU_MILLI
from .amounts import duration_text
from .fair import Fair, Levels
from .job import Job
from .queue import RESTART, Lane, LaneKey, waits_since_us
from .queues import leaf_of_job
from .settings import GPU_HOUR_US, Order
from .weights import gang_milli

if TYPE_CHECKING:
    from .state import ClusterState


def served_us(job: Job, now_us: int) -> int:
    """The service that a job has had, its current attempt counted."""
    course = job.course
    if not job.placed:
        return course.served_us
    return course.served_us + attempt_service_us(job, now_us)


def attempt_service_us(job: Job, now_us: int) -> int:
    """Of the current attempt, up to now."""
    ran_us = max(0, now_us - job.course.attempt_us)
    return ran_us * gang_milli(job.demand, len(job.tasks)) // WHOLE_GPU_MILLI


def service_class(order: Order, job: Job, now_us: int) -> int:
    """Of what it has had so far; patience apart."""
    return bisect_right(order.class_limits_us, served_us(job, now_us))


def queued_us(job: Job, now_us: int) -> int:
    """What it has waited in all."""
    return job.course.queued_us if job.placed else max(job.course.queued_us, now_us - waits_since_us(job))


def may_lift(state: "ClusterState", now_us: Micros) -> bool:
    """Those that were lifted for their patience hold less than their part of the cluster; or all whose
    patience is over would leave such a part to others."""
    order, lifted = state.order, state.lifted_milli
    if lifted * 100 < order.lifted_percent * state.capacity_milli:
        return True
    asked = lifted + state.queue.waited.asked_milli(now_us - order.patience_us)
    return asked * 100 <= (100 - order.lifted_percent) * state.capacity_milli


def lift(state: "ClusterState", job: Job, now_us: Micros) -> int:
    """The classes that its patience lifts a waiting job by."""
    patience_us = state.order.patience_us
    if not patience_us or (waited_us := queued_us(job, now_us)) < patience_us or not may_lift(state, now_us):
        return 0
    return waited_us // patience_us


def standing_class(state: "ClusterState", job: Job, now_us: Micros) -> int:
    """The class that a job counts as: it may be below 0."""
    if job.placed:
        return service_class(state.order, job, now_us) - job.course.lifted
    return job.course.service - lift(state, job, now_us)


class Standing(NamedTuple):
    """Sorts as the line stands."""

    turn: int
    fair: Fair
    """Of the line among others, see fair.py; empty where the policy has no queues, and of restarts."""
    minus_priority: int
    service: int
    job: JobId


def standing(
    state: "ClusterState", key: LaneKey, job: Job, now_us: Micros, levels: Levels | None = None
) -> Standing:
    """Of the first of a lane. `levels`: as they are now, to share."""
    service = 0 if key.turn == RESTART else standing_class(state, job, now_us)
    fair: Fair = ()
    if state.queue.fair and key.turn != RESTART:
        fair = (levels or Levels(state, now_us)).of(key.leaf, job.shape.queue, key.minus_priority)
    return Standing(key.turn, fair, key.minus_priority, service, job.number)


def first_in_line(state: "ClusterState", now_us: Micros) -> JobId | None:
    """Parked lanes are passed over."""
    jobs, levels = state.jobs, Levels(state, now_us)
    standings = (standing(state, key, jobs[number], now_us, levels) for key, number in state.queue.firsts())
    first = min(standings, default=None)
    return None if first is None else first.job


def ahead_of(state: "ClusterState", job: Job, now_us: Micros) -> tuple[int, JobId | None]:
    """How many stand before it (parked lanes do not count), and the first of them. Of those that are not
    first in their lane, patience is left out."""
    levels = Levels(state, now_us)
    own = state.queue.key_of(job)
    mine = standing(state, own, job, now_us, levels)
    count, head = 0, mine
    for key, number in state.queue.firsts():
        lane = state.queue.lanes[key]
        first = standing(state, key, state.jobs[number], now_us, levels)
        head = min(head, first)
        others = first._replace(service=key.service)[:-1]
        if others < mine[:-1]:
            count += len(lane) - 1 - (key == own and number != job.number)
        elif others == mine[:-1]:
            count += _below(lane, job.number) - (number < job.number)
        count += first < mine
    return count, head.job if count else None


def _below(lane: Lane, number: JobId) -> int:
    """Those in the lane with lower numbers, without looking at each."""
    return bisect_left(lane.jobs, number) - sum(gone < number for gone in lane.gone)


def why_before(state: "ClusterState", other: Job, job: Job, now_us: Micros) -> str:
    """Why `other`, which waits too, starts before the job."""
    levels, key_of = Levels(state, now_us), state.queue.key_of
    first = standing(state, key_of(other), other, now_us, levels)
    mine = standing(state, key_of(job), job, now_us, levels)
    if mine < first:
        return "room for it comes sooner"
    if first.turn != mine.turn:
        return "it restarts after a fault"
    if first.fair != mine.fair:
        return f"queue {leaf_of_job(other)} goes first"
    if first.minus_priority != mine.minus_priority:
        return f"priority {other.priority}, this one has {job.priority}"
    if other.course.service < job.course.service:
        hours = (one.course.served_us / GPU_HOUR_US for one in (other, job))
        return "{:.1f} GPU-hours so far, this one has had {:.1f}".format(*hours)
    if first.service != mine.service:
        return f"it has waited {duration_text(queued_us(other, now_us))} in all"
    return "submitted earlier"
