"""What is missing for a gang: on the nodes as they are free now, or as they are at all (never)."""

from collections.abc import Collection, Sequence
from heapq import nsmallest

from ...spec.ids import Micros, NodeId
from ...spec.lifecycle import NodeContact
from ...spec.resources import WHOLE_GPU_MILLI, GangDemand
from .amounts import cpu_text, demand_text, duration_text, gpu_share_text, gpus_text, size_text
from .candidates import candidates_for, is_able, most_tasks, tasks_that_fit, working
from .capacities import capacities_for
from .closest import closest, holders_text, too_narrow_text
from .cordons import cordoned_text, could_with_cordoned
from .environments import environment_hint, has_environment, lacking_text, without_environment_text
from .gpu_shortage import most_gpus, never_gpus_text, others_text
from .gpus import sick_texts
from .job import Job
from .labels import admits, barred_text, left_out_text, where_text
from .maintenance import closed_text
from .node import Load, Node, free_matching, gpu_groups, gpus_matching, matches
from .pools import belongs, in_pool, pool_nodes
from .reason import Reason
from .reservations import set_aside, set_aside_text
from .slots import find_slots
from .state import ClusterState
from .topology import Scope, most_together

SHOWN_NODES = 3
START_AGENT = "start an agent: `pace agent --scheduler HOST:PORT`"


def unfit_reason(state: ClusterState, demand: GangDemand, now_us: Micros) -> Reason:
    """The nodes in service could never run it; with those that are cordoned it may be another matter."""
    if not could_with_cordoned(state, demand):
        return never_reason(state, demand, now_us)
    serving = [node for node in pool_nodes(state, demand.pool) if node.in_service]
    others = (
        f"the other nodes could not run it: {_never_text(serving, demand, state.settings.topology_levels)}; "
        if serving
        else ""
    )
    text = f"{_needs(demand)}; {others}{cordoned_text(state, demand)}"
    hint = "it starts by itself when they are put back: `pace uncordon NODE`"
    return Reason("cordoned", text, hint, {"nodes": len(state.nodes), "cordoned": _cordoned(state)})


def never_reason(state: ClusterState, demand: GangDemand, now_us: Micros) -> Reason:
    """No node of this cluster could ever run it; nodes that are lost do not count."""
    nodes = [node for node in pool_nodes(state, demand.pool) if node.contact is not NodeContact.LOST]
    if not nodes:
        return _nobody(state, demand, _needs(demand), now_us)
    text = _never_text(nodes, demand, state.settings.topology_levels)
    lost = lost_that_fit(state, demand)
    hint = environment_hint(nodes, demand) or "ask for less, or add nodes; it starts when such nodes join"
    if lost:
        text += f"; {lost} lost node{'s' if lost > 1 else ''} could help"
    text += others_text(state, nodes, demand)
    if demand.per_task.on_gpu:
        text += sick_texts(nodes, demand.gpu, now_us)
    return Reason("never", f"never: {text}", hint, {"nodes": len(nodes), "lost_that_fit": lost})


def lost_that_fit(state: ClusterState, demand: GangDemand) -> int:
    """Nodes that could help if they returned."""
    return sum(
        node.contact is NodeContact.LOST and most_tasks(node.inventory, demand) > 0
        for node in pool_nodes(state, demand.pool)
    )


def resting_text(node: Node, now_us: Micros) -> str:
    """What a node said, or why it is drained, and for how long it is let alone."""
    left = duration_text(max(0, node.rests_until_us - now_us))
    if not node.refusals:
        return f"{node.name} is drained for {left} more: {node.refusal}"
    times = "1 start" if node.refusals == 1 else f"{node.refusals} starts in a row"
    return f"{node.name} refused {times} and is asked again in {left}: {node.refusal}"


def not_now_reason(state: ClusterState, job: Job, now_us: Micros) -> Reason:
    """What it needs, how much of it fits now, and who holds the rest where it would fit best."""
    demand = job.demand
    needs = _needs(demand)
    connected = able_nodes(state, demand)
    resting = [state.nodes[name] for name in sorted(state.resting)]
    if not connected and not resting and not _kept(state, demand):
        return _nobody(state, demand, needs, now_us)
    fit_now = _fit_now(state, demand)
    least = demand.instance_count_min
    levels = state.settings.topology_levels
    room = most_together(((state.nodes[name], count) for name, count in fit_now.items()), demand, levels)
    fits = min(room, least)
    fields: dict[str, str | int] = {"tasks": least, "fit_now": fits, "nodes": len(connected)}
    if cordoned := _cordoned(state):
        fields["cordoned"] = cordoned
    if fits >= least:
        return _about_to_start(state, job, needs, fields)
    text = f"{needs}; {fits} of {least} fit now; {nodes_text(state, demand, connected, now_us)}"
    close = closest(state, demand, connected, fit_now) if demand.within else None
    if close is not None:
        fields |= {"domain": close.name, "gpus_short": close.gpus_short}
        text = f"{needs}; {close.text}; {nodes_text(state, demand, connected, now_us, close.nodes)}"
    return Reason("not-now", text, "it starts by itself when there is room", fields)


def able_nodes(state: ClusterState, demand: GangDemand) -> list[Node]:
    """Those of its pool that take work now."""
    return working(state, demand.pool)


def _fit_now(state: ClusterState, demand: GangDemand) -> dict[NodeId, int]:
    """Tasks of the gang, on nodes with room for one."""
    fits, most = candidates_for(state, demand).fits, demand.instance_count_max
    return {name: min(count, most) for name, count in fits.items()}


def nodes_text(
    state: ClusterState,
    demand: GangDemand,
    connected: Sequence[Node],
    now_us: Micros,
    within: Collection[NodeId] | None = None,
) -> str:
    """What is free where it would fit best of the `connected`, and who holds the rest; `within`: of these."""
    resting = [state.nodes[name] for name in sorted(state.resting)]
    most, fit_now = capacities_for(state, demand), _fit_now(state, demand)
    useful = [node for node in connected if (within is None or node.node in within) and most[node.node]]
    ranked = [(fit_now.get(node.node, 0) - most[node.node], node.name, at) for at, node in enumerate(useful)]
    shown = [useful[at] for *_, at in nsmallest(SHOWN_NODES, ranked)]
    parts = [_node_text(state, node, demand) for node in shown] or ["no node fits"]
    if len(useful) > SHOWN_NODES:
        parts.append(f"and {len(useful) - SHOWN_NODES} more nodes")
    parts += [resting_text(node, now_us) for node in resting[:SHOWN_NODES]]
    parts += filter(None, [left_out_text(connected, demand), without_environment_text(connected, demand)])
    text = "; ".join(parts) + others_text(state, connected, demand)
    if demand.per_task.on_gpu:
        text += sick_texts(connected, demand.gpu, now_us)
    text += "".join(
        f"; {node.name} is kept for job {state.claimed[node.node]}"
        for node in _kept(state, demand)[:SHOWN_NODES]
    )
    silent = state.contacts[NodeContact.UNKNOWN]
    if silent:
        text += f"; {silent} silent node{'s' if silent > 1 else ''} not counted"
    return "; ".join(filter(None, [text, *_out_of_use(state, demand, now_us)]))


def _kept(state: ClusterState, demand: GangDemand) -> list[Node]:
    """Nodes that it could have, were they not kept for other jobs."""
    if not state.claimed:
        return []
    nodes = (node for node in state.nodes.values() if node.node in state.claimed and is_able(state, node))
    return [node for node in nodes if in_pool(state, node, demand.pool)]


def _out_of_use(state: ClusterState, demand: GangDemand, now_us: Micros) -> list[str]:
    """What is cordoned, closed for maintenance, or reserved for others, where it could help."""
    if not (state.closed or state.reserved):
        return list(filter(None, [cordoned_text(state, demand)]))
    nodes = list(pool_nodes(state, demand.pool))
    rooms = {node.node: most_tasks(node.inventory, demand) for node in nodes if node.node in state.closed}
    aside = set_aside(state, demand.pool)
    room = sum(most_tasks(node.inventory, demand) for node in aside)
    of = len(nodes) + len(aside)
    reserved = set_aside_text(state, aside, of, room, now_us) if room else ""
    return list(
        filter(None, [cordoned_text(state, demand), closed_text(state, nodes, rooms, now_us), reserved])
    )


def _needs(demand: GangDemand) -> str:
    return f"needs {demand_text(demand)}{where_text(demand)}"


def _nobody(state: ClusterState, demand: GangDemand, needs: str, now_us: Micros) -> Reason:
    nodes = [node for node in state.nodes.values() if belongs(state.policy, node, demand.pool)]
    if not nodes and not demand.pool and state.nodes:
        hint = "name one of the pools with `compute`: `pace pools` lists them"
        return Reason("no-nodes", f"{needs}; all {len(state.nodes)} nodes are set apart by pools", hint)
    if not nodes:
        which = f"node of pool {demand.pool}" if demand.pool else "node"
        return Reason("no-nodes", f"{needs}; no {which} has joined yet", START_AGENT)
    out_of_use = _out_of_use(state, demand, now_us)
    others = [
        node
        for node in nodes
        if node.cordon is None
        and node.node not in state.closed
        and state.reserved.get(node.node, demand.pool) == demand.pool
    ]
    if out_of_use and not others and any(node.cordon is None for node in nodes):
        code = "maintenance" if any(node.node in state.closed for node in nodes) else "reserved"
        text = "; ".join([needs, *out_of_use])
        return Reason(code, text, "it starts by itself when their time is over", {"nodes": len(nodes)})
    silent = sum(node.contact is NodeContact.UNKNOWN for node in others)
    lost = sum(node.contact is NodeContact.LOST for node in others)
    leaving = len(others) - silent - lost
    ends = f", {leaving} whose agent ends" if leaving else ""
    text = f"{needs}; none of the {len(others)} nodes is connected ({silent} silent, {lost} lost{ends})"
    if out_of_use:
        text = "; ".join([text if others else needs, *out_of_use])
    return Reason("no-contact", text, "look at the agents", {"silent": silent, "lost": lost})


def _cordoned(state: ClusterState) -> int:
    return sum(node.cordon is not None for node in state.nodes.values())


def _about_to_start(state: ClusterState, job: Job, needs: str, fields: dict[str, str | int]) -> Reason:
    if job.demand.rendezvous and find_slots(state, job) is None:
        text = f"{needs}; there is room, but no node of it has a rendezvous port free"
        return Reason("no-port", text, "ports are freed as attempts end", fields)
    return Reason("next", f"{needs}; there is room for it", "it is placed when its turn comes", fields)


def _node_text(state: ClusterState, node: Node, demand: GangDemand) -> str:
    load, need = state.loads[node.node], demand.per_task
    matching = free_matching(node.inventory, load, demand.gpu)
    most = WHOLE_GPU_MILLI if matching else _most_left(node, load, demand)
    if len(matching) < need.gpus:
        count, there = gpus_text(len(matching), demand.gpu), gpus_matching(node.inventory.gpus, demand.gpu)
        free = f"{node.name} has {count} free of {len(there)}"
    elif most < need.gpu_milli:
        free = f"{node.name} has {gpu_share_text(most, demand.gpu)} left at most"
    elif load.free_cpu_milli < need.cpu_milli:
        free = (
            f"{node.name} has {cpu_text(load.free_cpu_milli)} of "
            f"{cpu_text(node.inventory.capacity.cpu_milli)} cpus free"
        )
    elif load.free_memory_bytes < need.memory_bytes:
        free = (
            f"{node.name} has {size_text(load.free_memory_bytes)} of "
            f"{size_text(node.inventory.capacity.memory_bytes)} free"
        )
    else:
        return f"{node.name} has room for {tasks_that_fit(node, load, demand)}"
    return free + holders_text(state, [load], demand)


def _never_text(nodes: list[Node], demand: GangDemand, levels: Scope) -> str:
    if barred := barred_text(nodes, demand):
        return barred
    nodes = [node for node in nodes if admits(node.inventory, demand)]
    need, count = demand.per_task, len(nodes)
    of_nodes = f"of {count} node{'s' if count != 1 else ''}"
    if demand.environment:
        having = [node for node in nodes if has_environment(node.inventory, demand)]
        if not having:
            return f"none {of_nodes} {lacking_text(nodes, demand)}"
        nodes = having
    if need.on_gpu and most_gpus(nodes, demand.gpu) < max(need.gpus, 1):
        return never_gpus_text(nodes, demand)
    cpu_most = max(node.inventory.capacity.cpu_milli for node in nodes)
    if cpu_most < need.cpu_milli:
        return f"the largest node has {cpu_text(cpu_most)} cpus, asked {cpu_text(need.cpu_milli)} per task"
    memory_most = max(node.inventory.capacity.memory_bytes for node in nodes)
    if memory_most < need.memory_bytes:
        return f"the largest node has {size_text(memory_most)}, asked {size_text(need.memory_bytes)} per task"
    return too_narrow_text(nodes, demand, levels)


def _most_left(node: Node, load: Load, demand: GangDemand) -> int:
    """Of one of its shared GPUs."""
    groups = gpu_groups(node.inventory, load)
    return max((left for kind, _, lefts in groups if matches(kind, demand.gpu) for left in lefts), default=0)
