"""Why a job waits, runs or ended, with the numbers in it; never and not now are told apart.

Reasons are computed when somebody asks, from the state, by the same rules that placement goes by.
"""

from dataclasses import dataclass, replace
from typing import Final

from ...spec.ids import JobId, Micros
from ...spec.lifecycle import AttemptOutcome, JobState, NodeContact
from .amounts import demand_text, duration_text
from .backfill import too_long_reason
from .candidates import can_ever
from .claims import claim_reason
from .cordons import cordon_text, tasks_left
from .deadlines import fenced_lease_end, lease_end, patience_us, silent_since
from .elastic import bounds_text, could_have, growth_text, speeds_text
from .holds import hold_reason
from .job import Job, TaskState, may_grow
from .maintenance import closing_of, closing_text, next_window
from .moves import moves_reason
from .node import Cordon, Node
from .order import ahead_of
from .placement import room_elsewhere
from .quota import limit_reason
from .reason import Reason
from .reservations import next_reservation, reservation_of, reserved_text
from .shortage import able_nodes, lost_that_fit, nodes_text, not_now_reason, resting_text, unfit_reason
from .state import ClusterState
from .stranding import lost_nodes

SMALLER: Final = "smaller"
"""The code of what is said of a gang that runs smaller than it may be."""


@dataclass(frozen=True, slots=True)
class Why:
    """`reasons`: the weightiest first, at least one."""

    reasons: tuple[Reason, ...]
    never: bool = False


def why(state: ClusterState, job: Job, now_us: Micros) -> Why:
    """For any job, also one that is over."""
    if job.over:
        return Why((ending_reason(job),))
    if job.placed:
        stranded = (_stranded_reason(state, job, now_us),) if job.number in state.stranded else ()
        contact = _contact_reasons(state, job, now_us)
        placed = (
            _placed_reason(state, job, now_us),
            *_size_reason(state, job, now_us),
            *_window_reason(state, job, now_us),
        )
        return Why((*stranded, *contact, *placed))
    return _why_waiting(state, job, now_us)


def ending_reason(job: Job) -> Reason:
    ending = job.course.ending
    if ending is None:
        return Reason("none", f"job {job.number} has not ended")
    fields: dict[str, str | int] = {"exit_code": ending.exit_code, "outcome": ending.outcome.value}
    if ending.rank is not None:
        fields["rank"] = ending.rank
    if ending.node is not None:
        fields["node"] = ending.node
    return Reason(ending.code, ending.text, ending.hint, fields)


def node_reason(state: ClusterState, node: Node, now_us: Micros) -> Reason | None:
    """Why a node takes no work; None when it does."""
    connected = node.contact is NodeContact.CONNECTED
    if node.cordon is not None:
        return _cordoned_reason(state, node, node.cordon, now_us)
    if node.node in state.resting and connected:
        hint = f"see what is wrong on {node.name}; it gets work again by itself"
        return Reason("refuses", resting_text(node, now_us), hint, {"refusals": node.refusals})
    if not connected:
        return _silence(state, node, now_us, exclusive=False)
    left = tasks_left(state, node)
    tasks = f"; {left} task{'s' if left != 1 else ''} left" if left else ""
    if node.inventory.leaving:
        return Reason("leaving", f"its agent ends{tasks}", "start one there again", {"tasks_left": left})
    closing = closing_of(state, node, now_us)
    if closing is None:
        return None
    hint = "it opens by itself: `pace policy show` has the windows"
    return Reason("maintenance", closing_text(closing, now_us) + tasks, hint, {"tasks_left": left})


def _cordoned_reason(state: ClusterState, node: Node, cordon: Cordon, now_us: Micros) -> Reason:
    """Its silence goes first: that was not the operator's wish."""
    text = cordon_text(state, node, cordon, now_us)
    if node.contact is not NodeContact.CONNECTED:
        silence = _silence(state, node, now_us, exclusive=False)
        return replace(silence, text=f"{silence.text}; it is {text}")
    hint = f"`pace uncordon {node.name}` puts it back into service"
    return Reason("cordoned", text, hint, {"by": cordon.by, "tasks_left": tasks_left(state, node)})


def _why_waiting(state: ClusterState, job: Job, now_us: Micros) -> Why:
    last = _last_attempt(job)
    if job.number in state.held:
        return Why((_held_reason(state, job, now_us), *last))
    if job.course.hold is not None:
        return Why((hold_reason(job, job.course.hold, now_us), *last))
    if not state.spans.get(job.demand.pool, True):
        return Why((_ahead_reason(state, job, now_us), *last))
    if not can_ever(state, job.demand):
        unfit = unfit_reason(state, job.demand, now_us)
        return Why((unfit, *last), never=unfit.code == "never")
    if job.number in state.claims:
        return Why((claim_reason(state, job, now_us), *last))
    limit = limit_reason(state, job)
    if limit is not None:
        return Why((limit, *last), never=limit.code == "never")
    ahead, first = ahead_of(state, job, now_us)
    shortage = not_now_reason(state, job, now_us)
    suspected = _suspected(state)
    moves = moves_reason(state, job, now_us)
    proposed = (moves,) if moves is not None else ()
    too_long = too_long_reason(state, job, now_us)
    lent = (too_long,) if too_long is not None else ()
    behind = (_behind(ahead, first),) if ahead else ()
    return Why((*behind, shortage, *lent, *proposed, *suspected, *last))


def _ahead_reason(state: ClusterState, job: Job, now_us: Micros) -> Reason:
    """The reservation that it asks for has not begun."""
    asked = job.demand.pool
    one = reservation_of(state, asked)
    assert one is not None
    nodes = "1 node" if one.nodes == 1 else f"{one.nodes} nodes"
    text = f"waits for its reservation of {nodes}: {reserved_text(asked, one, now_us)}"
    fields: dict[str, str | int] = {"reservation": asked, "from_us": one.from_us, "to_us": one.to_us}
    return Reason("reservation-ahead", text, "it starts by itself when it begins", fields)


def _behind(ahead: int, first: JobId | None) -> Reason:
    jobs = "1 job" if ahead == 1 else f"{ahead} jobs"
    fields: dict[str, str | int] = {"ahead": ahead, "first": first or 0}
    hint = f"see `pace why {first}`"
    return Reason("behind", f"waits behind {jobs}; first in line is job {first}", hint, fields)


def _last_attempt(job: Job) -> tuple[Reason, ...]:
    return (ending_reason(job),) if job.course.ending is not None else ()


def _held_reason(state: ClusterState, job: Job, now_us: Micros) -> Reason:
    if not job.course.lingering:
        left_us = max(0, job.course.held_until_us - now_us)
        ending = job.course.ending
        refused = ending is not None and ending.outcome is AttemptOutcome.START_FAILED
        after = "a refused start" if refused else f"failure {job.course.failed_in_row} in a row"
        text = f"tries again in {duration_text(left_us)}, after {after}"
        return Reason("backoff", text, fields={"left_us": left_us})
    one = job.course.lingering[0]
    node = state.nodes[one.node]
    text = f"job is exclusive: task {one.key} on {node.name} must be gone before the next attempt"
    if node.contact is not NodeContact.CONNECTED and not state.suspected:
        left_us = max(0, lease_end(state, node) - now_us)
        text += f"; it is silent, and its lease has surely run out in {duration_text(left_us)}"
    return Reason("lingering", text, fields={"task": str(one.key), "node": node.name})


def _stranded_reason(state: ClusterState, job: Job, now_us: Micros) -> Reason:
    """Why it was neither replaced nor given up."""
    node = lost_nodes(state, job)[0]
    silent_us, count = max(0, now_us - silent_since(state, node)), job.demand.instance_count_min
    left_us = max(0, fenced_lease_end(state, node) - now_us)
    room = min(room_elsewhere(state, job), count)
    tasks = "its task" if len(job.tasks) == 1 else f"all {count} tasks"
    tasks = f"{count} of its tasks" if job.demand.elastic else tasks
    ahead, first = ahead_of(state, job, now_us)
    if room >= count and ahead:
        but = f"its turn to move has not come: {_behind(ahead, first).text}"
    elif not can_ever(state, job.demand):
        but = f"no other node could take {tasks}: {unfit_reason(state, job.demand, now_us).text}"
    else:
        but = f"no other node could take {tasks}: {room} of {count} fit now, its own places there counted"
    text = (
        f"{node.name} has not been heard of for {duration_text(silent_us)}; {but}; "
        f"it goes on if {node.name} returns, and is given up in {duration_text(left_us)}"
    )
    fields: dict[str, str | int] = {"node": node.name, "silent_us": silent_us, "fit_now": room}
    hint = f"start the agent on {node.name} again, or make room on other nodes"
    return Reason("stranded", text, hint, {**fields, "tasks": count, "left_us": left_us})


def _placed_reason(state: ClusterState, job: Job, now_us: Micros) -> Reason:
    course = job.course
    ended = sum(task.state is TaskState.ENDED for task in job.tasks)
    if course.stop is not None:
        left_us = max(0, course.stop.requested_us + course.stop.grace_us - now_us)
        why = f": {course.stop.why}" if course.stop.why else ""
        text = (
            f"stopping ({course.stop.outcome}{why}): {ended} of {len(job.tasks)} tasks have ended, "
            f"the others are killed in {duration_text(left_us)}"
        )
        return Reason("stopping", text, fields={"ended": ended, "tasks": len(job.tasks), "left_us": left_us})
    since = duration_text(max(0, now_us - course.attempt_us))
    if course.state is JobState.STARTING:
        waiting = [task for task in job.tasks if task.state is TaskState.ASSIGNED]
        name = state.nodes[waiting[0].node].name
        text = (
            f"attempt {job.attempt} was placed {since} ago; {len(job.tasks) - len(waiting)} of "
            f"{len(job.tasks)} tasks have started, task {waiting[0].task} on {name} has not"
        )
        return Reason("starting", text, fields={"waiting": len(waiting), "tasks": len(job.tasks)})
    names = sorted({state.nodes[task.node].name for task in job.tasks})
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    what = demand_text(job.demand, len(job.tasks))
    text = f"attempt {job.attempt} runs on {shown}, placed {since} ago: {what}"
    return Reason("running", text, fields={"attempt": job.attempt, "nodes": len(names)})


def _size_reason(state: ClusterState, job: Job, now_us: Micros) -> tuple[Reason, ...]:
    """Of a gang that has fewer instances than it may have: when it grows, and what that waits for."""
    if not may_grow(job):
        return ()
    count, demand = len(job.tasks), job.demand
    instances = "1 instance" if count == 1 else f"{count} instances"
    text = f"{instances} ({bounds_text(job)}): {growth_text(state, job, now_us)}"
    if could_have(state, job) <= count:
        text += f"; {nodes_text(state, demand, able_nodes(state, demand), now_us)}"
        lost = lost_that_fit(state, demand)
        text += f"; {lost} lost node{'s' if lost > 1 else ''} could help" if lost else ""
    text += f"; {measured}" if (measured := speeds_text(job)) else ""
    fields: dict[str, str | int] = {
        "instances": count,
        "asked": demand.instance_count,
        "least": demand.instance_count_min,
        "most": demand.instance_count_max,
        "could_have": could_have(state, job),
    }
    hint = "it grows by itself, from a checkpoint, when there is room and nobody waits for it"
    return (Reason(SMALLER, text, hint, fields),)


def _window_reason(state: ClusterState, job: Job, now_us: Micros) -> tuple[Reason, ...]:
    """The maintenance, or the reservation of others, that it will leave for if it still runs then."""
    if job.course.stop is not None:
        return ()
    ahead: list[tuple[int, str, str]] = []
    for node in (state.nodes[task.node] for task in job.tasks):
        if (window := next_window(state, node, now_us)) is not None:
            ahead.append((window.window.from_us, "maintenance-ahead", closing_text(window, now_us)))
        kept = next_reservation(state, node, now_us)
        if kept is not None and kept.asked != job.demand.pool:
            text = f"{node.name} is reserved as {reserved_text(*kept, now_us)}"
            ahead.append((kept.reservation.from_us, "reserved-ahead", text))
    if not ahead:
        return ()
    at_us, code, text = min(ahead)
    then = "saves and goes on elsewhere" if job.shape.policy.outlasts_preemption else "ends"
    return (Reason(code, f"{text}: it {then} then", "", {"at_us": at_us}),)


def _contact_reasons(state: ClusterState, job: Job, now_us: Micros) -> tuple[Reason, ...]:
    silent = {task.node: state.nodes[task.node] for task in job.tasks if task.state is not TaskState.ENDED}
    return tuple(
        _silence(state, node, now_us, exclusive=job.demand.exclusive)
        for node in silent.values()
        if node.contact is not NodeContact.CONNECTED
    )


def _silence(state: ClusterState, node: Node, now_us: Micros, *, exclusive: bool) -> Reason:
    silent_us = max(0, now_us - silent_since(state, node))
    because = f" ({node.why})" if node.why else ""
    text = f"node {node.name} lost contact {duration_text(silent_us)} ago{because}"
    fields: dict[str, str | int] = {"node": node.name, "silent_us": silent_us, "contact": node.contact.value}
    hint = f"look at the agent on {node.name}; what runs there goes on meanwhile"
    if state.suspected:
        text += "; nobody is replaced, because most nodes are silent at once"
        return Reason(
            "cluster-suspected",
            text,
            "restore contact, or, if they are really gone: `pace nodes --trust`",
            fields,
        )
    if not exclusive and node.contact is NodeContact.LOST:
        return Reason("node-silent", text, hint, fields)
    limit_us = state.settings.replace_exclusive_us if exclusive else patience_us(state, node)
    if exclusive:
        text += f"; replaced after {duration_text(limit_us)} because the job is exclusive"
    elif node.contact is NodeContact.UNKNOWN:
        text += f"; replaced after {duration_text(limit_us)}"
    return Reason("node-silent", text, hint, {**fields, "limit_us": limit_us})


def _suspected(state: ClusterState) -> tuple[Reason, ...]:
    if not state.suspected:
        return ()
    silent = state.contacts[NodeContact.UNKNOWN]
    known = silent + state.contacts[NodeContact.CONNECTED]
    text = f"{silent} of {known} nodes are silent at once: the scheduler suspects itself and replaces none"
    return (
        Reason(
            "cluster-suspected", text, "restore contact, or, if they are really gone: `pace nodes --trust`"
        ),
    )


__all__ = ["SMALLER", "Reason", "Why", "ending_reason", "node_reason", "why"]
