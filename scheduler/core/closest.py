"""What is missing for a gang that must be within one domain: in the one that comes closest to it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...spec.ids import NodeId
from ...spec.resources import WHOLE_GPU_MILLI, GangDemand
from .amounts import cpu_text, demand_text, gpus_text
from .candidates import most_tasks
from .capacities import capacities_for
from .node import Load, Node, free_matching, gpus_matching
from .state import ClusterState
from .topology import Path, Scope, by_domain, domain_of, domain_text, scope_of

SHOWN_HOLDERS = 2


@dataclass(frozen=True, slots=True)
class Closest:
    """A domain. `gpus_short`: how many GPUs would have to become free there, at the least."""

    name: str
    nodes: tuple[NodeId, ...]
    gpus_short: int
    text: str


def closest(
    state: ClusterState, demand: GangDemand, able: Iterable[Node], fit_now: Mapping[NodeId, int]
) -> Closest | None:
    """The domain that lacks the least, of the nodes that take work; None where no domain could hold it.
    `fit_now`: of those where one does."""
    scope = scope_of(demand.within, state.settings.topology_levels)
    most = capacities_for(state, demand)
    nodes: dict[Path, list[Node]] = {}
    for node in able:
        path = domain_of(node.inventory.labels, scope)
        if path is not None and most[node.node]:
            nodes.setdefault(path, []).append(node)
    least, found = demand.instance_count_min, []
    for path, there in nodes.items():
        if sum(most[node.node] for node in there) >= least:
            missing = least - sum(fit_now.get(node.node, 0) for node in there)
            found.append((missing, _gpus_short(state, demand, there, fit_now, missing), path))
    if not found:
        return None
    missing, short, path = min(found)
    name, there = domain_text(scope, path), nodes[path]
    if short:
        more = f"{short} more {gpus_text(short, demand.gpu).partition(' ')[2]}"
        here = f"{name} has {_free_text(state, there, demand)}; {least - missing} of {least} fit there"
    else:
        more, here = f"room for {missing} more", f"{least - missing} of {least} fit in {name}"
    text = f"needs {more} in one {demand.within}: {here}"
    others = len(found) - 1
    text += f", no more in the {others} other{'s' if others > 1 else ''}" if others else ""
    return Closest(name, tuple(node.node for node in there), short, text)


def too_narrow_text(nodes: list[Node], demand: GangDemand, levels: Scope) -> str:
    """They hold such tasks, but not enough."""
    rooms = [(node, most_tasks(node.inventory, demand)) for node in nodes]
    asked = demand_text(demand)
    if demand.within:
        scope = scope_of(demand.within, levels)
        room, path = min((-room, path) for path, room in by_domain(rooms, scope).items())
        largest = domain_text(scope, path)
        return f"the largest {demand.within} holds {-room} such tasks when empty ({largest}), asked {asked}"
    room = sum(room for _, room in rooms)
    return f"all {len(nodes)} nodes together hold at most {room} such tasks when empty, asked {asked}"


def holders_text(state: ClusterState, loads: Iterable[Load], demand: GangDemand) -> str:
    """Who holds most of what is short there."""
    held: dict[int, int] = {}
    for load in loads:
        for key, indices in load.tasks.items():
            need = state.jobs[key.job].demand.per_task
            gpu_milli = len(indices) * (need.gpu_milli or WHOLE_GPU_MILLI)
            held[key.job] = held.get(key.job, 0) + (gpu_milli if demand.per_task.on_gpu else need.cpu_milli)
    largest = sorted((-amount, number) for number, amount in held.items() if amount)[:SHOWN_HOLDERS]
    if not largest:
        return ""
    parts = [f"job {number} holds {cpu_text(-amount)}" for amount, number in largest]
    return f" ({', '.join(parts)} there)"


def _free_text(state: ClusterState, nodes: list[Node], demand: GangDemand) -> str:
    """`6 of 8 GPUs free (job 812 holds 2 there)`."""
    loads = [state.loads[node.node] for node in nodes]
    free = sum(
        len(free_matching(node.inventory, load, demand.gpu)) for node, load in zip(nodes, loads, strict=True)
    )
    count = sum(len(gpus_matching(node.inventory.gpus, demand.gpu)) for node in nodes)
    return f"{free} of {gpus_text(count, demand.gpu)} free{holders_text(state, loads, demand)}"


def _gpus_short(
    state: ClusterState, demand: GangDemand, nodes: list[Node], fit_now: Mapping[NodeId, int], missing: int
) -> int:
    """What the tasks that do not fit lack, each on the node where it lacks the least. 0: no GPUs."""
    gpus, short, most = demand.per_task.gpus, [], capacities_for(state, demand)
    for node in nodes:
        free = len(free_matching(node.inventory, state.loads[node.node], demand.gpu))
        fits = fit_now.get(node.node, 0)
        spare = free - fits * gpus
        for _ in range(most[node.node] - fits):
            short.append(max(0, gpus - spare))
            spare = 0
    return sum(sorted(short)[:missing])
