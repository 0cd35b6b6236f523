"""Maintenance windows of pools: when their nodes belong to those who repair them.

Nothing of it is stored: it follows from the policy and the time. A node closes before a window of one of its
pools, so long that nobody is stopped who has just started (the order's `min_run_us`), and opens at its end.
When the window begins, whoever runs there is told to leave (due.py). A gang that has a task on one such node
leaves whole.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ...spec.ids import NodeId
from ...spec.moments import moment_text
from .amounts import duration_text
from .cluster_policy import Window
from .job import Job, TaskState
from .node import Node
from .pools import holds
from .state import ClusterState

NAMED_MAX = 3


class Closing(NamedTuple):
    """A window that closes a node, and of which pool it is."""

    pool: str
    window: Window


def closing_of(state: ClusterState, node: Node, at_us: int) -> Closing | None:
    """What keeps the node closed at that time: a window that has begun first, and of several the one that
    ends last."""
    lead_us = state.order.min_run_us
    found = [one for one in _windows(state, node) if one.window.from_us - lead_us <= at_us < one.window.to_us]
    return max(found, key=lambda one: (one.window.from_us <= at_us, one.window.to_us, one.pool), default=None)


def next_window(state: ClusterState, node: Node, at_us: int) -> Closing | None:
    """The first that begins after that time."""
    found = [one for one in _windows(state, node) if one.window.from_us > at_us]
    return min(found, key=lambda one: (one.window.from_us, one.pool), default=None)


def next_change_us(state: ClusterState, node: Node) -> int | None:
    """When the windows next change something there."""
    lead_us = state.order.min_run_us
    bounds_us = [
        at_us
        for _, window in _windows(state, node)
        for at_us in (window.from_us - lead_us, window.from_us, window.to_us)
        if at_us > state.last_at_us
    ]
    return min(bounds_us, default=None)


def window_bounds(state: ClusterState, node: Node) -> Iterator[int]:
    """The next moment at which something changes there; at once, where somebody has to be told."""
    if node.node in state.windows_until_us:
        yield state.windows_until_us[node.node]
    if node.node not in state.closed or not untold(state, node):
        return
    closing = closing_of(state, node, state.last_at_us)
    if closing is not None and closing.window.from_us <= state.last_at_us:
        yield state.last_at_us


def untold(state: ClusterState, node: Node) -> list[Job]:
    """Who runs there and is not leaving."""
    load = state.loads[node.node]
    running = {
        key.job for key in load.tasks if state.jobs[key.job].tasks[key.task].state is not TaskState.ENDED
    }
    jobs = (state.jobs[number] for number in sorted(running))
    return [job for job in jobs if job.course.stop is None]


def closing_text(closing: Closing, now_us: int) -> str:
    """`pool fast is under maintenance until 2026-12-01 10:00 UTC (new drives), 3 h 20 min more`."""
    pool, window = closing
    why = f" ({window.why})" if window.why else ""
    if window.from_us <= now_us:
        left = duration_text(max(0, window.to_us - now_us))
        return f"pool {pool} is under maintenance until {moment_text(window.to_us)}{why}, {left} more"
    left = duration_text(window.from_us - now_us)
    span = f"from {moment_text(window.from_us)} to {moment_text(window.to_us)}"
    return f"pool {pool} is under maintenance {span}{why}, which begins in {left}"


def closed_text(state: ClusterState, nodes: list[Node], rooms: dict[NodeId, int], now_us: int) -> str:
    """Of those of `nodes` that are closed, where tasks would fit on some: `2 of 5 nodes are closed (pool fast
    is ...): they would have room for 4 tasks`."""
    closed = sorted((node for node in nodes if node.node in state.closed), key=lambda node: node.name)
    room = sum(rooms[node.node] for node in closed)
    if not room:
        return ""
    why = dict.fromkeys(
        closing_text(found, now_us)
        for node in closed
        if (found := closing_of(state, node, now_us)) is not None
    )
    named = "; ".join(list(why)[:NAMED_MAX]) + (f"; and {len(why) - NAMED_MAX} more" * (len(why) > NAMED_MAX))
    one = len(closed) == 1
    return (
        f"{len(closed)} of {len(nodes)} nodes {'is' if one else 'are'} closed ({named}): "
        f"{'it' if one else 'they'} would have room for {room} task{'s' if room != 1 else ''}"
    )


def _windows(state: ClusterState, node: Node) -> Iterator[Closing]:
    for name in state.timed:
        pool = state.policy.pools[name]
        if holds(pool, node):
            yield from (Closing(name, window) for window in pool.maintenance)
