"""How many tasks of a demand each node would hold if it were empty, which is asked of every node when
somebody asks why a job waits.

A memo of the few demands that were asked for last. It goes when a node joins, changes, or comes and goes.
"""

from collections.abc import Mapping
from typing import Final

from ...spec.ids import NodeId
from ...spec.resources import GangDemand
from .candidates import most_tasks
from .node import NodeInventory
from .state import ClusterState

DEMANDS_MAX: Final = 16


def capacities_for(state: ClusterState, demand: GangDemand) -> Mapping[NodeId, int]:
    """Of all nodes, whoever may use them; 0 where not even one task would fit."""
    known = state.capacities.get(demand)
    if known is None:
        if len(state.capacities) >= DEMANDS_MAX:
            del state.capacities[next(iter(state.capacities))]
        alike: dict[object, int] = {}
        known = state.capacities[demand] = {}
        for name, node in state.nodes.items():
            kind = _kind(node.inventory)
            if kind not in alike:
                alike[kind] = most_tasks(node.inventory, demand)
            known[name] = alike[kind]
    return known


def _kind(inventory: NodeInventory) -> object:
    """Whatever of a node matters to any demand: nodes of one kind hold the same."""
    gpus = tuple([(gpu.model, gpu.memory_bytes) for gpu in inventory.gpus])
    runs = inventory.environments, bool(inventory.engine)
    return inventory.capacity, gpus, runs, inventory.labels, inventory.taints
