"""Which nodes can give a job its environment, and what is said where none can.

A name needs a node that maps it to an interpreter; an image runs there too, or where a node has a container
engine.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from ...spec.resources import GangDemand
from .node import Node, NodeInventory

SHOWN_REASONS: Final = 3


def has_environment(inventory: NodeInventory, demand: GangDemand) -> bool:
    """The demand names one, and the node has it."""
    return demand.environment in inventory.environments or bool(demand.image and inventory.engine)


def lacking_text(nodes: Sequence[Node], demand: GangDemand) -> str:
    """What none of these nodes has, to follow `none of 4 nodes`."""
    known = sorted({name for node in nodes for name in node.inventory.environments})
    mapped = ", ".join(known) or "none"
    if not demand.image:
        return f"has the environment {demand.environment!r}; they have {mapped}"
    why = Counter(node.inventory.no_engine for node in nodes)
    reasons = sorted(why.items(), key=lambda item: (-item[1], item[0]))
    shown = "; ".join(
        f"{count} say{'s' if count == 1 else ''}: {text}" for text, count in reasons[:SHOWN_REASONS]
    )
    return (
        f"has a container engine for image {demand.image!r} ({shown}), or maps {demand.environment!r};"
        f" they map {mapped}"
    )


def environment_hint(nodes: Sequence[Node], demand: GangDemand) -> str:
    """What an operator would do; empty: the environment is not what is missing."""
    if not demand.environment or any(has_environment(node.inventory, demand) for node in nodes):
        return ""
    mapping = f"map it: `pace agent --environment {demand.environment}=/path/to/bin/python`"
    if not demand.image:
        return mapping
    return f"install podman, docker or apptainer on a node and restart its agent, or {mapping}"


def without_environment_text(nodes: Sequence[Node], demand: GangDemand) -> str:
    """`3 of 4 nodes have no container engine for image ...`; empty: all have what it needs."""
    lacking = sum(not has_environment(node.inventory, demand) for node in nodes) if demand.environment else 0
    if not lacking:
        return ""
    have = "has" if lacking == 1 else "have"
    what = (
        f"container engine for image {demand.image!r}"
        if demand.image
        else f"environment {demand.environment!r}"
    )
    return f"{lacking} of {len(nodes)} nodes {have} no {what}"
