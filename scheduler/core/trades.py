"""Elastic gangs give instances to an equal one that waits (sizes.py).

When it is its turn, it takes what is free, and what gangs have beyond their share: of those first that have
most beyond it, until it has its own share. Who gives saves, and goes on at once with what is left of it: that
costs the pit stop, and no place in line.
"""

from collections.abc import Iterable, Sequence

from ...spec.ids import JobId, Micros
from ...spec.lifecycle import AttemptOutcome, JobState, NodeContact
from .candidates import candidates_for
from .effects import Effect, Plan
from .events import Event
from .grace import save_grace_us
from .job import Job, Stop
from .sizes import Kind, fair_sizes, kind_of
from .speeds import gain
from .state import ClusterState
from .submit import request_stop


def fair_size(state: ClusterState, job: Job) -> int:
    """Of an elastic gang that waits or runs."""
    return _among(state, job, _equals(state, job))[job.number]


def fair_sizes_of(state: ClusterState, jobs: Iterable[Job]) -> dict[JobId, int]:
    """Of these, which run, and of all that are equal to one of them."""
    groups: dict[Kind, dict[JobId, Job]] = {}
    for job in jobs:
        groups.setdefault(kind_of(job), {})[job.number] = job
    sizes: dict[JobId, int] = {}
    for group in groups.values():
        first = next(iter(group.values()))
        group |= {other.number: other for other in _equals(state, first)}
        sizes |= _among(state, first, [group[number] for number in sorted(group) if number != first.number])
    return sizes


def is_given_to(state: ClusterState, job: Job) -> bool:
    """Somebody is about to make room for it."""
    stops = (state.jobs[number].course.stop for number in state.placed)
    return any(stop is not None and stop.for_job == job.number for stop in stops)


def take_share(state: ClusterState, job: Job, now_us: Micros) -> Plan[None] | None:
    """None: nobody has to give anything, or it would not be enough."""
    others = _equals(state, job)
    sizes = _among(state, job, others)
    wanted = sizes[job.number] - candidates_for(state, job.demand).room
    spare = {other.number: len(other.tasks) - sizes[other.number] for other in others}
    events: list[Event] = []
    effects: list[Effect] = []
    for other in sorted(others, key=lambda each: (-spare[each.number], each.number)):
        given = min(wanted, spare[other.number])
        if given <= 0:
            break
        plan = request_stop(state, other, _gives(other, given, job, now_us))
        events += plan.events
        effects += plan.effects
        wanted -= given
    if not events or sizes[job.number] - max(0, wanted) < job.demand.instance_count_min:
        return None
    return Plan(None, tuple(events), tuple(effects))


def _gives(other: Job, given: int, job: Job, now_us: Micros) -> Stop:
    count = len(other.tasks)
    left = count - given
    how = "measured" if other.course.speeds else "taken"
    why = (
        f"gives {given} of {count} instances to job {job.number}, which gains more by them: "
        f"this one is {how} to be {gain(other, count, left):.2f} times as fast with {left}"
    )
    grace_us = save_grace_us(other)
    return Stop(AttemptOutcome.PREEMPTED, now_us, grace_us, "", why, job.number, goes_on=True, to=left)


def _among(state: ClusterState, job: Job, others: Sequence[Job]) -> dict[JobId, int]:
    """Of all of them, with what they have and what is free."""
    held = sum(len(other.tasks) for other in others) + (len(job.tasks) if job.placed else 0)
    return fair_sizes((*others, job), candidates_for(state, job.demand).room + held)


def _equals(state: ClusterState, job: Job) -> list[Job]:
    """Other elastic gangs of its kind that run, and can be told to change."""
    placed = (state.jobs[number] for number in sorted(state.placed) if number != job.number)
    return [one for one in placed if one.demand.elastic and _is_equal(one, job) and _may_give(state, one)]


def _is_equal(one: Job, other: Job) -> bool:
    """Equal shapes are one object, mostly: that is seen at once."""
    return one.priority == other.priority and (one.shape is other.shape or kind_of(one) == kind_of(other))


def _may_give(state: ClusterState, job: Job) -> bool:
    """It has saved since it started: none is restarted twice for one checkpoint."""
    course = job.course
    if course.stop is not None or job.state is not JobState.RUNNING:
        return False
    if not course.checkpoints or course.checkpoints[0].attempt != job.attempt:
        return False
    if not job.shape.policy.outlasts_preemption:
        return False
    return all(state.nodes[task.node].contact is NodeContact.CONNECTED for task in job.tasks)
