"""Jobs that run on nodes which are kept for another one, until that one can have them.

As EASY backfilling (Lifka, JSSPP 1995), with predictions in the place of the users' estimates (Tsafrir,
Etsion and Feitelson, "Backfilling using system-generated predictions", TPDS 2007): a job is let in where it
should have ended, at odds of nine to one, before the nodes are expected to be free for the other, at even
odds. A prediction that was wrong is not that one's loss: who is still there when it could start without them
is told to save and leave. Who may not be told so (preemption is turned off, or it would not be tried again)
is let in only where its own limit ends it by then: for such a one the other waits until then, and no longer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...spec.ids import JobId, Micros, NodeId
from ...spec.lifecycle import AttemptOutcome
from .amounts import duration_text
from .candidates import is_able, tasks_that_fit
from .effects import Plan
from .grace import save_grace_us
from .job import Claim, Job, Loan, Stop
from .placement import copy_of, give_back, load_without, start
from .pools import in_pool
from .predict import predict
from .reason import Reason
from .slots import find_slots
from .state import ClusterState
from .submit import request_stops


@dataclass(frozen=True, slots=True)
class Gap:
    """Nodes that are kept for a job, and when it is expected to have them all."""

    job: JobId
    nodes: frozenset[NodeId]
    until_us: Micros


def gaps(state: ClusterState, now_us: Micros) -> list[Gap]:
    """Of all jobs that nodes are kept for without anybody having been told to leave them."""
    found = []
    for number in sorted(state.claims):
        gap = gap_of(state, state.jobs[number], now_us)
        if gap is not None:
            found.append(gap)
    return found


def gap_of(state: ClusterState, job: Job, now_us: Micros) -> Gap | None:
    """None: others are leaving them for it, or it cannot be said when it will have them."""
    claim = job.course.claim
    if claim is None or claim.victims or not all(is_able(state, state.nodes[name]) for name in claim.kept):
        return None
    until_us = now_us
    for name, tasks in Counter(claim.nodes).items():
        free_us = _free_us(state, job, name, tasks, now_us)
        if free_us is None:
            return None
        until_us = max(until_us, free_us)
    return Gap(job.number, frozenset(claim.nodes), until_us) if until_us > now_us else None


def let_in(state: ClusterState, job: Job, those: Sequence[Gap], now_us: Micros) -> Plan[None] | None:
    """It starts, with some of its tasks on such nodes. None: there is no room, or it could not be gone in
    time."""
    fitting = [gap for gap in those if _may_have(state, job, gap)]
    takes_us = longest_us(state, job, now_us) if fitting else None
    if takes_us is None:
        return None
    for gap in fitting:
        if now_us + takes_us <= gap.until_us and (slots := find_slots(state, job, gap.nodes)) is not None:
            return start(state, job, slots, now_us, Loan(gap.job, gap.until_us))
    return None


def longest_us(state: ClusterState, job: Job, now_us: Micros) -> int | None:
    """What a waiting job takes at most, as far as it matters; None: nobody can say."""
    if _may_be_told(state, job):
        return predict(state, job, now_us).p90_us
    limit_us, started_us = job.shape.policy.timeout_us, job.course.started_us
    if not limit_us:
        return None
    return max(0, started_us + limit_us - now_us) if started_us else limit_us


def end_loans(state: ClusterState, job: Job, claim: Claim, now_us: Micros) -> Plan[None] | None:
    """Notice to all that run on nodes that are kept for this job, where it could start without them."""
    lent = (other for other in _lent_to(state, job) if other.course.stop is None)
    over = [other for other in lent if _may_be_told(state, other)]
    if not over or not _fits_without(state, job, claim, over):
        return None
    why = f"its nodes are kept for job {job.number}, which can have them all now"
    outcome = AttemptOutcome.PREEMPTED
    return request_stops(
        state,
        ((other, Stop(outcome, now_us, save_grace_us(other), "", why, job.number)) for other in over),
    )


def too_long_reason(state: ClusterState, job: Job, now_us: Micros) -> Reason | None:
    """Why a waiting job is not let in where nodes are kept; None: none are that it could have meanwhile."""
    fitting = [gap for gap in gaps(state, now_us) if _may_have(state, job, gap)]
    if not fitting:
        return None
    longest = max(fitting, key=lambda gap: gap.until_us)
    has_us, takes_us = longest.until_us - now_us, longest_us(state, job, now_us)
    if takes_us is not None and takes_us <= has_us:
        return None
    fields: dict[str, str | int] = {"job": longest.job, "has_us": has_us}
    text = f"on the nodes that are kept for job {longest.job} it would have {duration_text(has_us)}"
    if takes_us is None:
        text += ", and nobody can say that it is gone by then: it has no limits.timeout"
        return Reason("no-limit", text, "give it a limits.timeout that is shorter", fields)
    text += f", and may take {duration_text(takes_us)} (at odds of nine to one)"
    hint = "a shorter limits.timeout, where it is enough, lets it start there"
    return Reason("too-long", text, hint, {**fields, "takes_us": takes_us})


def _may_have(state: ClusterState, job: Job, gap: Gap) -> bool:
    """The nodes are of its pool."""
    return gap.job != job.number and all(
        in_pool(state, state.nodes[name], job.demand.pool) for name in gap.nodes
    )


def _free_us(state: ClusterState, job: Job, name: NodeId, tasks: int, now_us: Micros) -> Micros | None:
    """When there is room for so many of its tasks on the node; None: not even when all there have ended."""
    node, load = state.nodes[name], copy_of(state.loads[name])
    holders = {key.job for key in state.loads[name].tasks}
    ends = sorted((_end_us(state, state.jobs[number], now_us), number) for number in holders)
    at_us = now_us
    for end_us, number in ends:
        if tasks_that_fit(node, load, job.demand) >= tasks:
            break
        give_back(state, load, state.jobs[number], name)
        at_us = Micros(max(at_us, end_us))
    return at_us if tasks_that_fit(node, load, job.demand) >= tasks else None


def _end_us(state: ClusterState, job: Job, now_us: Micros) -> int:
    """Of a placed job, at even odds."""
    if (stop := job.course.stop) is not None:
        return stop.requested_us + stop.grace_us
    end_us = now_us + predict(state, job, now_us).median_us
    loan = job.course.loan
    return end_us if loan is None else min(end_us, max(now_us, loan.until_us))


def _lent_to(state: ClusterState, job: Job) -> list[Job]:
    """Who runs on nodes that are kept for this one."""
    claim = job.course.claim
    assert claim is not None
    there = sorted({key.job for name in set(claim.nodes) for key in state.loads[name].tasks})
    others = (state.jobs[number] for number in there)
    return [other for other in others if (loan := other.course.loan) is not None and loan.job == job.number]


def _may_be_told(state: ClusterState, job: Job) -> bool:
    """To leave; else its own limit ends it."""
    return state.order.preemption and job.shape.policy.outlasts_preemption


def _fits_without(state: ClusterState, job: Job, claim: Claim, others: Sequence[Job]) -> bool:
    """There would be room for all of its tasks if these had left."""
    return all(
        tasks_that_fit(state.nodes[name], load_without(state, others, name), job.demand) >= tasks
        for name, tasks in Counter(claim.nodes).items()
    )
