"""What the facts of nodes and the cluster mean for the state: see node_events."""

from typing import Final

from msgspec.structs import replace

from ...spec.lifecycle import NodeContact
from .indexes import put_node, set_node_timer, settle_timers
from .node import Cordon, Node
from .node_events import (
    ClusterSuspected,
    ClusterTrusted,
    NodeChanged,
    NodeConnected,
    NodeCordoned,
    NodeDrained,
    NodeForgotten,
    NodeHeard,
    NodeJoined,
    NodeLost,
    NodeRested,
    NodeUncordoned,
    NodeUnknown,
    SchedulerStarted,
    TimersPassed,
)
from .state import ClusterState, Handlers, Touched


def _node_joined(state: ClusterState, event: NodeJoined) -> Touched:
    return put_node(state, None, Node(event.node, event.inventory, since_us=event.at_us))


def _node_changed(state: ClusterState, event: NodeChanged) -> Touched:
    node = state.nodes[event.node]
    return put_node(state, node, replace(node, inventory=event.inventory))


def _node_connected(state: ClusterState, event: NodeConnected) -> Touched:
    node = state.nodes[event.node]
    new = replace(
        node,
        contact=NodeContact.CONNECTED,
        incarnation=event.incarnation,
        session=event.session,
        since_us=event.at_us if node.contact is not NodeContact.CONNECTED else node.since_us,
        last_heard_us=event.at_us,
        why="",
    )
    touched = put_node(state, node, new)
    if not state.contacts[NodeContact.UNKNOWN]:
        state.overruled = False
    return touched


def _node_unknown(state: ClusterState, event: NodeUnknown) -> Touched:
    node = state.nodes[event.node]
    new = replace(
        node,
        contact=NodeContact.UNKNOWN,
        since_us=event.at_us,
        last_heard_us=event.last_heard_us,
        why=event.why,
    )
    return put_node(state, node, new)


def _node_lost(state: ClusterState, event: NodeLost) -> Touched:
    node = state.nodes[event.node]
    new = replace(node, contact=NodeContact.LOST, since_us=event.at_us, last_heard_us=event.last_heard_us)
    return put_node(state, node, new)


def _node_rested(state: ClusterState, event: NodeRested) -> Touched:
    node = state.nodes[event.node]
    new = replace(node, refusals=event.refusals, rests_until_us=event.until_us, refusal=event.why)
    return put_node(state, node, new)


def _node_drained(state: ClusterState, event: NodeDrained) -> Touched:
    node = state.nodes[event.node]
    new = replace(node, slow_us=(), refusals=0, rests_until_us=event.until_us, refusal=event.why)
    return put_node(state, node, new)


def _node_cordoned(state: ClusterState, event: NodeCordoned) -> Touched:
    """Said again, it stays since when it was."""
    node = state.nodes[event.node]
    since_us = node.cordon.since_us if node.cordon is not None else event.at_us
    return put_node(state, node, replace(node, cordon=Cordon(event.by, event.why, since_us, event.drains)))


def _node_uncordoned(state: ClusterState, event: NodeUncordoned) -> Touched:
    node = state.nodes[event.node]
    return put_node(state, node, replace(node, cordon=None))


def _node_forgotten(state: ClusterState, event: NodeForgotten) -> Touched:
    return put_node(state, state.nodes[event.node], None)


def _scheduler_started(state: ClusterState, event: SchedulerStarted) -> Touched:
    state.suspected = state.overruled = False
    state.trusted_us = event.at_us
    for node in list(state.nodes.values()):
        if node.contact is NodeContact.LOST:
            set_node_timer(state, node)
            continue
        why = "the scheduler has started anew and has not heard of it yet"
        put_node(
            state,
            node,
            replace(node, contact=NodeContact.UNKNOWN, since_us=event.at_us, session=0, why=why),
        )
    return None


def _cluster_suspected(state: ClusterState, event: ClusterSuspected) -> Touched:
    state.suspected = True
    return None


def _cluster_trusted(state: ClusterState, event: ClusterTrusted) -> Touched:
    state.suspected = False
    state.overruled = bool(event.by)
    state.trusted_us = event.at_us
    for node in state.nodes.values():
        set_node_timer(state, node)
    return None


def _node_heard(state: ClusterState, event: NodeHeard) -> Touched:
    node = state.nodes[event.node]
    new = state.nodes[event.node] = replace(node, last_heard_us=max(node.last_heard_us, event.at_us))
    if new.contact is not NodeContact.CONNECTED:  # less patience with it than with one not heard of at all
        set_node_timer(state, new)
    return None


def _timers_passed(state: ClusterState, event: TimersPassed) -> Touched:
    settle_timers(state, event.at_us)
    return None


HANDLERS: Final[Handlers] = {
    NodeJoined: _node_joined,
    NodeChanged: _node_changed,
    NodeConnected: _node_connected,
    NodeUnknown: _node_unknown,
    NodeLost: _node_lost,
    NodeRested: _node_rested,
    NodeDrained: _node_drained,
    NodeCordoned: _node_cordoned,
    NodeUncordoned: _node_uncordoned,
    NodeForgotten: _node_forgotten,
    SchedulerStarted: _scheduler_started,
    ClusterSuspected: _cluster_suspected,
    ClusterTrusted: _cluster_trusted,
    NodeHeard: _node_heard,
    TimersPassed: _timers_passed,
}
