"""Reservations: nodes of a pool that are kept for some users or queues during a span of time.

Jobs ask for one with `compute: POOL/NAME`, and wait until it begins. Nothing of it is stored: it follows from
the policy, the nodes and the time. Which nodes: the first of the pool by name that are not cordoned and that
no other reservation has at the same time; one that falls silent is not replaced, so that nobody is stopped
for a passing silence. Nobody else is started there from the order's `min_run_us` before the span on, and
whoever runs there when it begins is told to leave (making_way.py). When it is over, its jobs go on as any of
the pool.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...spec.ids import NodeId
from ...spec.moments import moment_text
from .amounts import duration_text
from .cluster_policy import Reservation
from .job import Job
from .maintenance import untold
from .node import Node
from .pools import belongs, holds, pool_of
from .state import ClusterState

NAMED_MAX = 3


class Kept(NamedTuple):
    """A reservation, and how jobs ask for it."""

    asked: str
    reservation: Reservation


def reservations_of(state: ClusterState) -> list[Kept]:
    """In the order in which they choose their nodes."""
    found = [
        Kept(f"{pool}/{name}", one)
        for pool, policy in state.policy.pools.items()
        for name, one in policy.reservations.items()
    ]
    return sorted(found, key=lambda kept: (kept.reservation.from_us, kept.asked))


def reservation_of(state: ClusterState, asked: str) -> Reservation | None:
    name, _, reservation = asked.partition("/")
    pool = state.policy.pools.get(name)
    return None if pool is None else pool.reservations.get(reservation)


def assign(state: ClusterState) -> None:
    """Which nodes each has, whatever the time."""
    nodes = sorted((node for node in state.nodes.values() if node.cordon is None), key=_rank)
    has: defaultdict[NodeId, list[Kept]] = defaultdict(list)
    state.assigned = {}
    for kept in reservations_of(state):
        pool, own = state.policy.pools[pool_of(kept.asked)], kept.reservation
        free = (
            node.node
            for node in nodes
            if holds(pool, node) and not any(_overlap(own, other.reservation) for other in has[node.node])
        )
        state.assigned[kept.asked] = tuple(name for _, name in zip(range(own.nodes), free, strict=False))
        for name in state.assigned[kept.asked]:
            has[name].append(kept)
    state.kept = {name: tuple(kept.asked for kept in those) for name, those in has.items() if those}


def changes_assignment(state: ClusterState, old: Node | None, new: Node | None) -> bool:
    """A node came, went, or changed: whether any reservation has other nodes now."""
    if not state.assigned:
        return False
    if old is not None and old.node in state.kept:
        return new is None or new.cordon is not None or old.inventory != new.inventory
    if new is None or new.cordon is not None:
        return False
    return any(
        holds(state.policy.pools[pool_of(kept.asked)], new)
        and (len(chosen) < kept.reservation.nodes or _rank(new) < _rank(state.nodes[chosen[-1]]))
        for kept in reservations_of(state)
        if (chosen := state.assigned[kept.asked]) or kept.reservation.nodes
    )


def note_time(state: ClusterState) -> None:
    """What is on now, and which nodes are kept by it, from shortly before it begins."""
    now_us, lead_us = state.last_at_us, state.order.min_run_us
    spans: dict[str, bool] = {}
    reserved: dict[NodeId, str] = {}
    ahead: list[int] = []
    for asked, one in reservations_of(state):
        if now_us >= one.to_us:
            continue
        begun = spans[asked] = now_us >= one.from_us
        ahead += (at_us for at_us in (one.from_us - lead_us, one.from_us, one.to_us) if at_us > now_us)
        if begun or now_us >= one.from_us - lead_us:
            for name in state.assigned.get(asked, ()):
                if begun or name not in reserved:
                    reserved[name] = asked
    state.spans_until_us = min(ahead, default=0)
    changed = {name for name, _ in reserved.items() ^ state.reserved.items()}
    if spans == state.spans and not changed:
        return
    if spans != state.spans:  # others may go elsewhere now
        state.candidates.clear()
        state.ever.clear()
        state.queue.unpark_all()
    state.spans, state.reserved = spans, reserved
    state.freed += 1
    for name in sorted(changed):
        state.changes.add(name, len(state.nodes))


def reservation_bounds(state: ClusterState, node: Node) -> Iterator[int]:
    """The moments at which something changes there; at once, where somebody has to be told."""
    lead_us = state.order.min_run_us
    for asked in state.kept.get(node.node, ()):
        one = reservation_of(state, asked)
        if one is not None:
            yield from (
                at_us for at_us in (one.from_us - lead_us, one.from_us, one.to_us) if at_us > state.last_at_us
            )
    if outsiders(state, node):
        yield state.last_at_us


def who_has(state: ClusterState, node: Node, at_us: int) -> Kept | None:
    """What is on there at that time."""
    found = ((asked, reservation_of(state, asked)) for asked in state.kept.get(node.node, ()))
    on = (Kept(asked, one) for asked, one in found if one is not None and one.from_us <= at_us < one.to_us)
    return next(on, None)


def next_reservation(state: ClusterState, node: Node, at_us: int) -> Kept | None:
    """The first that begins there after that time."""
    found = ((asked, reservation_of(state, asked)) for asked in state.kept.get(node.node, ()))
    ahead = [Kept(asked, one) for asked, one in found if one is not None and one.from_us > at_us]
    return min(ahead, key=lambda kept: kept.reservation.from_us, default=None)


def outsiders(state: ClusterState, node: Node) -> list[Job]:
    """Who runs there while it is kept for others, and is not leaving."""
    kept = who_has(state, node, state.last_at_us)
    return [] if kept is None else [job for job in untold(state, node) if job.demand.pool != kept.asked]


def reserved_text(asked: str, reservation: Reservation, now_us: int) -> str:
    """`fast/exam (users ann; grading) until 2026-12-01 10:00 UTC, 1 h 5 min more`."""
    name = f"{asked} ({whom_text(reservation)}{f'; {reservation.why}' if reservation.why else ''})"
    if reservation.from_us <= now_us:
        left = duration_text(max(0, reservation.to_us - now_us))
        return f"{name} until {moment_text(reservation.to_us)}, {left} more"
    begins = f"which begins in {duration_text(reservation.from_us - now_us)}"
    return f"{name} from {moment_text(reservation.from_us)} to {moment_text(reservation.to_us)}, {begins}"


def whom_text(reservation: Reservation) -> str:
    users, queues = reservation.users, reservation.queues
    parts = [] if users is None else [f"users {', '.join(users)}"]
    return "; ".join(parts if queues is None else [*parts, f"queues {', '.join(queues)}"])


def set_aside(state: ClusterState, pool: str) -> list[Node]:
    """Nodes that a job that asks for the pool could have, were they not kept for others; by name."""
    names = (name for name, asked in state.reserved.items() if asked != pool)
    found = (state.nodes[name] for name in names)
    return sorted((node for node in found if belongs(state.policy, node, pool)), key=_rank)


def set_aside_text(state: ClusterState, nodes: Sequence[Node], of: int, room: int, now_us: int) -> str:
    """`2 of 5 nodes are reserved (fast/exam (users ann) until ...): they would have room for 4 tasks`."""
    kept = dict.fromkeys(state.reserved[node.node] for node in nodes)
    found = ((asked, reservation_of(state, asked)) for asked in kept)
    texts = [reserved_text(asked, one, now_us) for asked, one in found if one is not None]
    more = f", and {len(texts) - NAMED_MAX} more" if len(texts) > NAMED_MAX else ""
    named = ", and ".join(texts[:NAMED_MAX]) + more
    one = len(nodes) == 1
    return (
        f"{len(nodes)} of {of} nodes {'is' if one else 'are'} reserved as {named}: "
        f"{'it' if one else 'they'} would have room for {room} task{'s' if room != 1 else ''}"
    )


def _overlap(one: Reservation, other: Reservation) -> bool:
    return one.from_us < other.to_us and other.from_us < one.to_us


def _rank(node: Node) -> tuple[str, NodeId]:
    return node.name, node.node
