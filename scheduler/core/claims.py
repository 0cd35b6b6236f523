"""Nodes that are kept for a waiting job until all of it fits there; nobody else gets what is freed on them.

A claim begins with notice to those that are to leave (preemption.py), or with nobody's (`reserve`). It ends
with the start of the job; or is dropped when a node takes no work any more, or when all that were told have
left and it does not fit after all: then the job stands in line as before. Who moves to make room (moves.py)
has room kept under the same claim, and goes on there before the job starts.
"""

from collections import Counter
from collections.abc import Sequence

from ...spec.ids import JobId, Micros, NodeId
from ...spec.lifecycle import JobState
from .amounts import duration_text
from .attempt_events import ClaimDropped, PlacesClaimed
from .backfill import end_loans
from .candidates import candidates_for, is_able, most_tasks, tasks_that_fit, working
from .effects import Plan
from .job import Claim, Job
from .node import Node
from .placement import start
from .pools import in_pool
from .queue import is_restart
from .reason import Reason
from .slots import free_ports, in_place_order
from .state import ClusterState
from .topology import areas_of
from .weights import weight_milli

NAMED_MAX = 3


def settle(state: ClusterState, job: Job, now_us: Micros) -> Plan[None] | None:
    """The job starts where nodes are kept for it, or stands in line again, or those leave that they were lent
    to (backfill.py); None: it waits for those that leave."""
    claim = job.course.claim
    assert claim is not None
    nodes = [state.nodes[name] for name in claim.kept]
    gone = next((node for node in nodes if _is_withdrawn(state, job, node)), None)
    if gone is not None:
        return Plan(None, (ClaimDropped(now_us, job.number, f"{gone.name} takes no work now"),))
    if not all(is_able(state, node) for node in nodes):
        return None
    for move in claim.moves:
        moved = state.jobs.get(move.job)
        if moved is not None and _stands_in_line(state, moved) and not _lacks(state, moved, move.nodes):
            return _start_on(state, moved, move.nodes, now_us)
    left = leaving(state, job, claim)
    if claim.moves and left:
        return None
    lacks = _lacks(state, job, claim.nodes)
    if not lacks:
        return _start_on(state, job, claim.nodes, now_us)
    if not claim.victims:
        return end_loans(state, job, claim, now_us)
    return None if left else Plan(None, (ClaimDropped(now_us, job.number, lacks),))


def _is_withdrawn(state: ClusterState, job: Job, node: Node) -> bool:
    """Out of service, or its time is another's."""
    others = state.reserved.get(node.node, job.demand.pool) != job.demand.pool
    return not node.in_service or node.inventory.leaving or node.node in state.closed or others


def _stands_in_line(state: ClusterState, job: Job) -> bool:
    elsewhere = (state.held, state.on_hold, state.claims)
    return job.state is JobState.QUEUED and not any(job.number in those for those in elsewhere)


def _lacks(state: ClusterState, job: Job, names: Sequence[NodeId]) -> str:
    """Why it cannot start on these nodes now; empty: it can."""
    short = [
        name
        for name, tasks in Counter(names).items()
        if tasks_that_fit(state.nodes[name], state.loads[name], job.demand) < tasks
    ]
    if short:
        return f"{named(state, short)} too full for it after all"
    portless = job.demand.rendezvous and not any(free_ports(state, name) for name in names)
    return "no rendezvous port is free there" if portless else ""


def _start_on(state: ClusterState, job: Job, names: Sequence[NodeId], now_us: Micros) -> Plan[None]:
    """Where nothing lacks."""
    ports = (name for name in names if not job.demand.rendezvous or free_ports(state, name))
    return start(state, job, in_place_order(state, names, next(ports)), now_us)


def room_by_now(state: ClusterState, job: Job) -> int:
    """How many of its tasks could start at once, on nodes that are kept for it and on others."""
    found = candidates_for(state, job.demand)
    nodes = (state.nodes[name] for name in _claim_of(state, job.number).kept)
    more = {
        node.node: tasks_that_fit(node, state.loads[node.node], found.demand)
        for node in nodes
        if is_able(state, node) and in_pool(state, node, job.demand.pool)
    }
    return found.most_with(state, more)


def reserve(state: ClusterState, job: Job, now_us: Micros) -> Plan[None] | None:
    """Keeps the nodes for it of which least is taken. None: there are too few, or nodes are kept so already.

    One such claim at a time, but for restarts: as the one reservation of EASY backfill (Lifka, JSSPP 1995).
    """
    restarts = is_restart(job)
    if not restarts and any(not _claim_of(state, number).victims for number in state.claims):
        return None
    areas = areas_of(working(state, job.demand.pool), job.demand, state.settings.topology_levels)
    found = [kept for area in areas if (kept := _least_taken(state, job, area)) is not None]
    if not found:
        return None
    _, chosen = min(found)
    return Plan(None, (PlacesClaimed(now_us, job.number, tuple(chosen)),))


def _least_taken(state: ClusterState, job: Job, nodes: Sequence[Node]) -> tuple[int, list[NodeId]] | None:
    """Those of which the least is taken, and how much that is; None: they are too few."""
    room = sorted(
        (_taken_milli(state, node), node.node, most)
        for node in nodes
        if (most := most_tasks(node.inventory, job.demand))
    )
    wanted, chosen, taken = job.demand.instance_count_min, list[NodeId](), 0
    for milli, name, most in room:
        tasks = min(most if len(room) < wanted else 1, wanted - len(chosen))
        taken += milli if tasks else 0
        chosen += [name] * tasks
    return (taken, chosen) if len(chosen) == wanted else None


def leaving(state: ClusterState, job: Job, claim: Claim) -> list[Job]:
    """Who was told to make room for it, and has not left."""
    victims = (state.jobs.get(number) for number in claim.victims)
    return [
        victim
        for victim in victims
        if victim is not None
        and victim.placed
        and victim.course.stop is not None
        and victim.course.stop.for_job == job.number
    ]


def claim_reason(state: ClusterState, job: Job, now_us: Micros) -> Reason:
    """What it waits for that has nodes kept for it."""
    claim = _claim_of(state, job.number)
    kept = f"{named(state, claim.nodes)} kept for it since {duration_text(max(0, now_us - claim.since_us))}"
    left = leaving(state, job, claim)
    fields: dict[str, str | int] = {"nodes": len(set(claim.nodes)), "leaving": len(left)}
    if left:
        ends_us = [stop.requested_us + stop.grace_us for one in left if (stop := one.course.stop) is not None]
        most = duration_text(max(0, max(ends_us) - now_us))
        jobs = ", ".join(f"job {one.number}" for one in left[:NAMED_MAX])
        more = f" and {len(left) - NAMED_MAX} more" if len(left) > NAMED_MAX else ""
        verbs = "saves and leaves" if len(left) == 1 else "save and leave"
        return Reason("claimed", f"{kept}: {jobs}{more} {verbs}, within {most}", fields=fields)
    holders = sorted({key.job for name in set(claim.nodes) for key in state.loads[name].tasks})
    jobs = ", ".join(f"job {number}" for number in holders[:NAMED_MAX])
    more = f" and {len(holders) - NAMED_MAX} more" if len(holders) > NAMED_MAX else ""
    text = (
        f"{kept}: it starts when enough of what {jobs}{more} hold{'s' * (len(holders) == 1)} there is freed"
    )
    return Reason("claimed", text, fields={**fields, "holders": len(holders)})


def named(state: ClusterState, nodes: Sequence[NodeId]) -> str:
    """`n1 is`, `n1, n2 and 3 more are`."""
    names = sorted({state.nodes[name].name for name in nodes})
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return f"{', '.join(names[:NAMED_MAX])}{more} {'is' if len(names) == 1 else 'are'}"


def _claim_of(state: ClusterState, number: JobId) -> Claim:
    claim = state.jobs[number].course.claim
    assert claim is not None
    return claim


def _taken_milli(state: ClusterState, node: Node) -> int:
    return weight_milli(node.inventory.capacity) - weight_milli(state.loads[node.node].free)
