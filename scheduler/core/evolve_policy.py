"""What a change of policy means for the state: see policy_events."""

from typing import Final

from .cluster_policy import tree_of
from .indexes import note_closed, set_node_timer, settle_reservations
from .policy_events import AccountsClosed, PolicyChanged
from .state import ClusterState, Handlers, Touched


def take_policy(state: ClusterState, event: PolicyChanged) -> None:
    """Whatever was found not to fit, or to be impossible, is looked at again."""
    state.policy, state.policy_by, state.policy_us = event.policy, event.by, event.at_us
    state.tree = tree_of(event.policy)
    state.timed = tuple(name for name, pool in event.policy.pools.items() if pool.maintenance)
    state.queue.set_fair(bool(event.policy.queues), state.jobs)
    state.queue.unpark_all()
    state.ever.clear()
    state.capacities.clear()
    state.candidates.clear()
    state.freed += 1
    state.windows_until_us.clear()
    settle_reservations(state)
    for node in state.nodes.values():
        note_closed(state, node)
        set_node_timer(state, node)


def _policy_changed(state: ClusterState, event: PolicyChanged) -> Touched:
    if event.policy.half_life_us != state.policy.half_life_us:
        state.usage.settle(event.at_us, state.policy.half_life_us)
    take_policy(state, event)
    return None


def _accounts_closed(state: ClusterState, event: AccountsClosed) -> Touched:
    for path in event.paths:
        del state.usage.accounts[path]
    return None


HANDLERS: Final[Handlers] = {PolicyChanged: _policy_changed, AccountsClosed: _accounts_closed}
