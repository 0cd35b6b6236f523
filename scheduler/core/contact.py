"""Nodes come, go silent, and return. Losing contact is not failing.

A broken stream or silence makes a node UNKNOWN and changes nothing else. After the missed heartbeats it is
LOST: its fenced jobs start elsewhere as soon as there is room for them (else they may go on when it returns),
its exclusive ones when the lease has run out on both sides.
When most nodes are silent together, the cluster is suspected and none is LOST until contact returns or an
operator says so.
"""

from collections.abc import Collection

from ...spec.errors import LimitExceeded
from ...spec.ids import JobId, Micros, NodeId, TaskKey
from ...spec.lifecycle import AttemptOutcome, NodeContact
from .attempt_events import LingererGone
from .checkpoints import ask_effects
from .deadlines import lease_end, patience_us, silent_since, task_lease_end
from .effects import Effect, Plan, Position, StopTask, Welcome
from .ending import EXIT_NOT_RUN, end_attempt, node_lost, stopped
from .events import Event
from .gpus import ends_on, jobs_on
from .grace import save_grace_us
from .job import Ending, Job, Stop, TaskRun, TaskState
from .node import Node
from .node_events import (
    ClusterSuspected,
    ClusterTrusted,
    NodeChanged,
    NodeConnected,
    NodeForgotten,
    NodeHeard,
    NodeJoined,
    NodeLost,
    NodeUnknown,
)
from .placement import start_effect
from .state import ClusterState
from .stimuli import ContactLost, Heartbeat, Hello, InventoryChanged
from .submit import request_stops, stop_effects


def on_hello(state: ClusterState, hello: Hello, now_us: Micros) -> Plan[Welcome]:
    """Reconcile what the agent has with what it should have. Raises LimitExceeded."""
    node = state.nodes.get(hello.node)
    if node is None:
        return _on_new_node(state, hello, now_us)
    has = frozenset(hello.tasks)
    ended = ends_on(state, hello.node, hello.inventory, now_us, has)
    events: list[Event] = [*ended.events]
    effects: list[Effect] = [*ended.effects]
    if node.inventory != hello.inventory:
        events.append(NodeChanged(now_us, hello.node, hello.inventory))
    events.append(NodeConnected(now_us, hello.node, hello.incarnation, hello.session))
    events += _contact_returns(state, node, now_us)
    for job in jobs_on(state, hello.node):
        if job.number in ended.answer:
            continue
        plan = _reconcile(state, job, hello, has, now_us)
        events += plan.events
        effects += plan.effects
    load = state.loads[hello.node]
    for key in sorted(load.lingering):
        if key in has:
            effects.append(StopTask(hello.node, key, 0, "a newer attempt waits for its end"))
        else:
            events.append(LingererGone(now_us, key, hello.node, "its node no longer has it"))
    positions = tuple(_positions(state, hello))
    forget = tuple(key for key in hello.tasks if key not in load.tasks and key not in load.lingering)
    return Plan(Welcome(positions, forget), tuple(events), tuple(effects))


def on_heartbeat(state: ClusterState, beat: Heartbeat, now_us: Micros) -> Plan[bool]:
    """False: not the session of the node, or one that was given up; the agent must dial in anew."""
    node = state.nodes.get(beat.node)
    if node is None or node.session != beat.session or node.contact is NodeContact.LOST:
        return Plan(answer=False)
    if node.contact is NodeContact.CONNECTED:
        return Plan(True, (NodeHeard(now_us, beat.node),))
    back = NodeConnected(now_us, beat.node, node.incarnation, beat.session)
    return Plan(True, (back, *_contact_returns(state, node, now_us)))


def on_contact_lost(state: ClusterState, lost: ContactLost, now_us: Micros) -> Plan[None]:
    """The news of an older stream is no news."""
    node = state.nodes.get(lost.node)
    if node is None or node.session != lost.session or node.contact is not NodeContact.CONNECTED:
        return Plan(None)
    return Plan(None, (NodeUnknown(now_us, lost.node, node.last_heard_us, lost.why),))


def on_inventory(state: ClusterState, changed: InventoryChanged, now_us: Micros) -> Plan[None]:
    node = state.nodes.get(changed.node)
    if node is None or node.session != changed.session or node.inventory == changed.inventory:
        return Plan(None)
    ended = ends_on(state, changed.node, changed.inventory, now_us)
    leave = _leave(state, changed, now_us, ended.answer)
    new = NodeChanged(now_us, changed.node, changed.inventory)
    return Plan(None, (*ended.events, new, *leave.events), (*ended.effects, *leave.effects))


def on_node_due(state: ClusterState, node: Node, now_us: Micros) -> Plan[None]:
    """Silence has lasted."""
    settings = state.settings
    if node.contact is NodeContact.CONNECTED:
        if now_us < node.last_heard_us + settings.unknown_after_us:
            return Plan(None)
        why = "no heartbeat on an open stream"
        return Plan(None, (NodeUnknown(now_us, node.node, node.last_heard_us, why),))
    if state.suspected:
        return Plan(None)
    if node.contact is NodeContact.UNKNOWN:
        if now_us < silent_since(state, node) + patience_us(state, node):
            return Plan(None)
        return _give_up(state, node, now_us)
    return _on_lost_due(state, node, now_us)


def _leave(
    state: ClusterState, changed: InventoryChanged, now_us: Micros, ended: Collection[JobId]
) -> Plan[None]:
    """Of a node whose agent ends: its jobs are told to save and to go on elsewhere, but for those that have
    `ended` or stop anyway."""
    if not changed.inventory.leaving:
        return Plan(None)
    jobs = [
        job for job in jobs_on(state, changed.node) if job.number not in ended and job.course.stop is None
    ]
    text = f"the agent of {changed.inventory.name or changed.node} ends"
    return request_stops(
        state,
        ((job, Stop(AttemptOutcome.PREEMPTED, now_us, save_grace_us(job), "", text)) for job in jobs),
    )


def _on_new_node(state: ClusterState, hello: Hello, now_us: Micros) -> Plan[Welcome]:
    if len(state.nodes) >= state.settings.nodes_max:
        raise LimitExceeded(
            f"{len(state.nodes)} nodes are known; one more would pass the limit",
            hint="nodes that have been lost for long are forgotten by themselves; or raise the limit",
            limit=state.settings.nodes_max,
        )
    joined = NodeJoined(now_us, hello.node, hello.inventory)
    connected = NodeConnected(now_us, hello.node, hello.incarnation, hello.session)
    return Plan(Welcome(forget=hello.tasks), (joined, connected))


def _contact_returns(state: ClusterState, node: Node, now_us: Micros) -> list[Event]:
    """The suspicion ends when no more than half of the nodes are silent."""
    if not state.suspected:
        return []
    silent = state.contacts[NodeContact.UNKNOWN] - (node.contact is NodeContact.UNKNOWN)
    known = _known(state) + (node.contact is NodeContact.LOST)
    return [ClusterTrusted(now_us, "")] if silent * 2 <= known else []


def _known(state: ClusterState) -> int:
    return state.contacts[NodeContact.CONNECTED] + state.contacts[NodeContact.UNKNOWN]


def _positions(state: ClusterState, hello: Hello) -> list[Position]:
    load = state.loads[hello.node]
    positions = []
    for key in hello.tasks:
        if key in load.tasks:
            positions.append(Position(key, state.jobs[key.job].tasks[key.task].applied_seq))
        elif key in load.lingering:
            positions.append(Position(key, 0))
    return positions


def _reconcile(
    state: ClusterState, job: Job, hello: Hello, has: frozenset[TaskKey], now_us: Micros
) -> Plan[None]:
    """Start again what never arrived; a task that ran here and is gone with its folder counts as lost."""
    effects: list[Effect] = []
    for task in job.tasks:
        key = job.key(task.task)
        if task.node != hello.node or key in has or task.state is TaskState.ENDED:
            continue
        if task.applied_seq:
            text = f"{state.nodes[hello.node].name} no longer knows task {task.task}"
            ending = Ending(
                AttemptOutcome.NODE_LOST, "task-lost", text, exit_code=EXIT_NOT_RUN, node=hello.node
            )
            return end_attempt(state, job, now_us, ending, gone=(hello.node,))
        effects.append(start_effect(state, job, task.task, now_us, hello.inventory.address))
    if job.course.stop is not None:
        stops = stop_effects(state, job, job.course.stop, now_us)
        effects += (stop for stop in stops if stop.node == hello.node)
    if job.course.save_ask is not None and job.course.save_ask.pending:
        effects += (ask for ask in ask_effects(job, job.course.save_ask) if ask.node == hello.node)
    return Plan(None, (), tuple(effects))


def _give_up(state: ClusterState, node: Node, now_us: Micros) -> Plan[None]:
    """UNKNOWN for too long: LOST, unless most nodes are silent together. One that was emptied to be switched
    off, or has said that it ends, is no sign of that."""
    silent, known = state.contacts[NodeContact.UNKNOWN], _known(state)
    emptied = node.cordon is not None or node.inventory.leaving
    expected = emptied and not state.loads[node.node].tasks
    if silent >= 2 and silent * 2 > known and not state.overruled and not expected:
        return Plan(None, (ClusterSuspected(now_us, silent, known),))
    events: list[Event] = [NodeLost(now_us, node.node, node.last_heard_us)]
    effects: list[Effect] = []
    for job in jobs_on(state, node.node):
        if job.course.stop is None or any(
            task.node != node.node and _is_awaited(state, task) for task in job.tasks
        ):
            continue
        plan = end_attempt(state, job, now_us, stopped(job))
        events += plan.events
        effects += plan.effects
    return Plan(None, tuple(events), tuple(effects))


def _is_awaited(state: ClusterState, task: TaskRun) -> bool:
    return task.state is not TaskState.ENDED and state.nodes[task.node].contact is not NodeContact.LOST


def _on_lost_due(state: ClusterState, node: Node, now_us: Micros) -> Plan[None]:
    """The lease of its exclusive tasks has run out on both sides, or that of its fenced ones; or it has been
    away for very long."""
    load = state.loads[node.node]
    if not load.tasks and not load.lingering:
        if node.cordon is not None or now_us < node.since_us + state.settings.forget_after_us:
            return Plan(None)
        return Plan(None, (NodeForgotten(now_us, node.node),))
    gone = load.lingering if now_us >= lease_end(state, node) else ()
    events: list[Event] = [
        LingererGone(now_us, key, node.node, "its lease has run out") for key in sorted(gone)
    ]
    effects: list[Effect] = []
    for job in jobs_on(state, node.node):
        if now_us < task_lease_end(state, node, job):
            continue
        plan = end_attempt(
            state, job, now_us, node_lost(state, node, now_us), gone=_out_of_lease(state, job, now_us)
        )
        events += plan.events
        effects += plan.effects
    return Plan(None, tuple(events), tuple(effects))


def _out_of_lease(state: ClusterState, job: Job, now_us: Micros) -> frozenset[NodeId]:
    return frozenset(
        task.node
        for task in job.tasks
        if (node := state.nodes[task.node]).contact is NodeContact.LOST and now_us >= lease_end(state, node)
    )
