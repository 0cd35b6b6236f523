"""Nodes that an operator takes out of service, and puts back.

A cordoned node gets no new task, whatever becomes of its agent or of the scheduler; what runs there goes
on, and does not come back to it after a restart. A drained one is cordoned, and each job with a task there is
told to save and leave, as by `pace preempt`. Jobs that no other node could run wait for it: they are not
impossible.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ...spec.errors import Conflict, NotFound
from ...spec.ids import JobId, Micros, NodeId
from ...spec.lifecycle import AttemptOutcome, NodeContact
from ...spec.problems import nearest
from ...spec.resources import GangDemand
from .amounts import duration_text
from .candidates import most_tasks, tasks_that_fit
from .effects import Effect, Plan
from .events import Event
from .gpus import jobs_on
from .grace import save_grace_us
from .job import Job, Stop, TaskState
from .node import Cordon, Node
from .node_events import NodeCordoned, NodeUncordoned
from .pools import pool_nodes
from .state import ClusterState
from .stimuli import CordonNodes, UncordonNodes
from .submit import request_stop
from .topology import can_be_together

Known = tuple[JobId, ...] | None
NAMED_MAX = 3


def on_cordon(
    state: ClusterState, asked: CordonNodes, now_us: Micros, known: Known
) -> Plan[tuple[JobId, ...]]:
    """Raises NotFound, and Conflict for a name that several nodes have."""
    if known is not None:
        return Plan(known)
    nodes = nodes_called(state, asked.nodes)
    events: list[Event] = [event for node in nodes if (event := _cordoned(node, asked, now_us)) is not None]
    effects: list[Effect] = []
    told: list[JobId] = []
    for job in _running_on(state, nodes) if asked.drains else ():
        plan = _move_away(state, job, nodes, asked, now_us)
        events += plan.events
        effects += plan.effects
        told += [job.number] if plan.events else []
    return Plan(tuple(told), tuple(events), tuple(effects))


def on_uncordon(
    state: ClusterState, asked: UncordonNodes, now_us: Micros, known: Known
) -> Plan[tuple[JobId, ...]]:
    """Raises NotFound, and Conflict for a name that several nodes have."""
    if known is not None:
        return Plan(known)
    nodes = nodes_called(state, asked.nodes)
    return Plan(
        (), tuple(NodeUncordoned(now_us, node.node, asked.by) for node in nodes if node.cordon is not None)
    )


def nodes_called(state: ClusterState, names: Sequence[str]) -> list[Node]:
    """Each once, in the order of their names. Raises NotFound with the nearest name, and Conflict."""
    by_name: dict[str, list[Node]] = {}
    for node in state.nodes.values():
        by_name.setdefault(node.name, []).append(node)
    found: dict[NodeId, Node] = {}
    for name in names:
        node = state.nodes.get(NodeId(name)) or _only(by_name, name)
        found[node.node] = node
    return sorted(found.values(), key=lambda node: (node.name, node.node))


def tasks_left(state: ClusterState, node: Node) -> int:
    """Tasks there that have not ended, as far as is known; leftovers of exclusive jobs count."""
    load = state.loads[node.node]
    ended = (state.jobs[key.job].tasks[key.task].state is TaskState.ENDED for key in load.tasks)
    return len(load.tasks) - sum(ended) + len(load.lingering)


def cordon_text(state: ClusterState, node: Node, cordon: Cordon, now_us: Micros) -> str:
    """`draining, 3 tasks left (for 12 min 0 s, by ann: new disks)`."""
    left = tasks_left(state, node)
    tasks = f"{left} task{'s' if left != 1 else ''}"
    if cordon.drains:
        what = f"draining, {tasks} left" if left else "drained"
    else:
        what = f"cordoned, {tasks} go{'es' if left == 1 else ''} on there" if left else "cordoned"
    why = f": {cordon.why}" if cordon.why else ""
    since = duration_text(max(0, now_us - cordon.since_us))
    return f"{what} (for {since}, by {cordon.by}{why})"


def could_with_cordoned(state: ClusterState, demand: GangDemand) -> bool:
    """If all that are cordoned were put back, and empty; one that is being repaired may well be silent."""
    nodes = [
        node
        for node in pool_nodes(state, demand.pool)
        if node.contact is not NodeContact.LOST or node.cordon is not None
    ]
    rooms = ((node, most_tasks(node.inventory, demand)) for node in nodes)
    return can_be_together(rooms, demand, state.settings.topology_levels)


def cordoned_text(state: ClusterState, demand: GangDemand) -> str:
    """`2 of 5 nodes are cordoned (rack-3-a: new disks, by ann; rack-3-b, by bob): they would have room for 4
    tasks`; empty where they could not help."""
    nodes = list(pool_nodes(state, demand.pool))
    cordoned = sorted((node for node in nodes if node.cordon), key=lambda node: node.name)
    most = sum(most_tasks(node.inventory, demand) for node in cordoned)
    if not most:
        return ""
    room = sum(
        tasks_that_fit(node, state.loads[node.node], demand)
        for node in cordoned
        if node.contact is NodeContact.CONNECTED
    )
    named = "; ".join(_named(node) for node in cordoned[:NAMED_MAX])
    more = f"; and {len(cordoned) - NAMED_MAX} more" if len(cordoned) > NAMED_MAX else ""
    one = len(cordoned) == 1
    count, empty = (room, "") if room else (most, " when empty")
    return (
        f"{len(cordoned)} of {len(nodes)} nodes {'is' if one else 'are'} cordoned ({named}{more}): "
        f"{'it' if one else 'they'} would have room for {count} task{'s' if count != 1 else ''}{empty}"
    )


def _named(node: Node) -> str:
    assert node.cordon is not None
    why = f": {node.cordon.why}" if node.cordon.why else ""
    return f"{node.name}{why}, by {node.cordon.by}"


def _only(by_name: dict[str, list[Node]], name: str) -> Node:
    called = by_name.get(name, [])
    if len(called) == 1:
        return called[0]
    if called:
        ids = ", ".join(sorted(node.node for node in called)[:NAMED_MAX])
        raise Conflict(f"{len(called)} nodes are called {name}", hint=f"name them by id: {ids}", node=name)
    near = nearest(name, by_name)
    hint = f"did you mean {near}?" if near else "`pace nodes` lists what there is"
    raise NotFound(f"there is no node {name}", hint=hint, node=name)


def _cordoned(node: Node, asked: CordonNodes, now_us: Micros) -> NodeCordoned | None:
    """None: it stands as asked. A drain stays one until the node is put back, a reason until there is
    another."""
    old = node.cordon or Cordon(asked.by)
    new = replace(old, why=asked.why or old.why, drains=asked.drains or old.drains)
    if node.cordon == new:
        return None
    return NodeCordoned(now_us, node.node, asked.by, new.why, new.drains)


def _running_on(state: ClusterState, nodes: Iterable[Node]) -> list[Job]:
    jobs = {job.number: job for node in nodes for job in jobs_on(state, node.node)}
    return [jobs[number] for number in sorted(jobs)]


def _move_away(
    state: ClusterState, job: Job, nodes: Sequence[Node], asked: CordonNodes, now_us: Micros
) -> Plan[None]:
    """One that is stopping anyway leaves by itself, by the deadline at the latest."""
    there = {task.node for task in job.tasks if task.state is not TaskState.ENDED}
    leaves = [node.name for node in nodes if node.node in there]
    if not leaves or (job.course.stop is not None and asked.deadline_us is None):
        return Plan(None)
    grace_us = save_grace_us(job)
    if asked.deadline_us is not None:
        grace_us = min(grace_us, asked.deadline_us)
    why = f": {asked.why}" if asked.why else ""
    text = f"{', '.join(leaves[:NAMED_MAX])} {'is' if len(leaves) == 1 else 'are'} drained{why}"
    return request_stop(state, job, Stop(AttemptOutcome.PREEMPTED, now_us, grace_us, asked.by, text))
