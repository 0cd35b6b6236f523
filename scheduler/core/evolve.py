"""`evolve(state, event)`: the only thing that changes a ClusterState.

Facts are applied, never judged: whether they should have happened was decided before. The one check is the
table of legal transitions. Each change of a job or node goes through `put_job` or `put_node`, which keep the
indexes true.
"""

from collections.abc import Iterable
from typing import Final, get_args

from . import (
    evolve_attempts,
    evolve_checkpoints,
    evolve_holds,
    evolve_nodes,
    evolve_policy,
    evolve_progress,
    evolve_tasks,
)
from .events import DurableEvent, Event
from .settings import Settings
from .state import ClusterState, Handlers, Touched

HANDLERS: Final[Handlers] = {
    **evolve_attempts.HANDLERS,
    **evolve_tasks.HANDLERS,
    **evolve_checkpoints.HANDLERS,
    **evolve_progress.HANDLERS,
    **evolve_nodes.HANDLERS,
    **evolve_policy.HANDLERS,
    **evolve_holds.HANDLERS,
}

DURABLE: Final = frozenset(get_args(DurableEvent))
"""A look at a union costs a look at each of its kinds."""


def evolve(state: ClusterState, event: Event) -> Touched:
    """Apply one fact; returns what it changed, as it now is (a job that is over has left the state)."""
    state.last_at_us = max(state.last_at_us, event.at_us)
    if type(event) in DURABLE:
        state.last_seq += 1
    return HANDLERS[type(event)](state, event)


def replay(history: Iterable[Event], settings: Settings | None = None) -> ClusterState:
    """The state that a history leads to."""
    state = ClusterState(settings or Settings())
    for event in history:
        evolve(state, event)
    return state
