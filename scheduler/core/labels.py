"""Which nodes a job may go to by their labels and taints, and what is said where it may go to none.

As Kubernetes has it (node affinity; taints with the effect NoSchedule), without its operators: each label has
one of the wanted values, and every taint is tolerated. What runs on a node stays when its labels change.
"""

from collections import Counter
from collections.abc import Sequence

from ...spec.resources import Constraints, GangDemand, Wanted
from .node import Node, NodeInventory

SHOWN_VALUES = 3


def admits(inventory: NodeInventory, demand: GangDemand) -> bool:
    """By its labels and taints it may have tasks of the gang."""
    asked = demand.constraints
    if asked is None:
        return not inventory.taints
    return (
        _count_of(inventory, asked.labels) == len(asked.labels)
        and not untolerated(inventory, asked)
        and (not demand.within or any(key == demand.within for key, _ in inventory.labels))
    )


def unmet(inventory: NodeInventory, demand: GangDemand) -> int:
    """How many of the preferred labels it has not."""
    asked = demand.constraints
    if asked is None or not asked.prefer:
        return 0
    return len(asked.prefer) - _count_of(inventory, asked.prefer)


def untolerated(inventory: NodeInventory, asked: Constraints | None) -> list[tuple[str, str]]:
    """Its taints that keep the gang away."""
    borne = () if asked is None else asked.tolerate
    return [taint for taint in inventory.taints if taint not in borne and (taint[0], "") not in borne]


def label_text(key: str, values: Sequence[str]) -> str:
    """`zone=a or b`."""
    return f"{key}={' or '.join(values)}"


def taint_text(taint: tuple[str, str]) -> str:
    """`spot`, `dedicated=vision`."""
    return "=".join(filter(None, taint))


def where_text(demand: GangDemand) -> str:
    """` in one rack, on nodes with zone=a or b`; empty where any node will do."""
    asked = demand.constraints
    if asked is None:
        return ""
    close = f" in one {demand.within}" if demand.within else ""
    labels = " and ".join(label_text(*one) for one in asked.labels)
    return close + (f"{',' if close else ''} on nodes with {labels}" if labels else "")


def left_out_text(nodes: Sequence[Node], demand: GangDemand) -> str:
    """`3 of 12 nodes are not for it: 2 lack zone=a, 1 has the taint spot`; empty where all are."""
    asked, constrained = demand.constraints or Constraints(), demand.constraints is not None
    why: Counter[str] = Counter()
    for node in nodes:
        if (constrained or node.inventory.taints) and not admits(node.inventory, demand):
            why[_hindrance(node.inventory, asked)] += 1
    if not why:
        return ""
    parts = [
        f"{count} {text if count > 1 else text.replace('lack', 'lacks', 1).replace('have', 'has', 1)}"
        for text, count in _most_common(why)
    ]
    count = why.total()
    are = "is" if count == 1 else "are"
    return f"{count} of {len(nodes)} nodes {are} not for it: {', '.join(parts)}"


def _hindrance(inventory: NodeInventory, asked: Constraints) -> str:
    labels = dict(inventory.labels)
    for key, values in asked.labels:
        if labels.get(key) not in values:
            return f"lack {label_text(key, values)}"
    taints = untolerated(inventory, asked)
    return f"have the taint {taint_text(taints[0])}" if taints else f"lack a label {asked.within}"


def barred_text(nodes: Sequence[Node], demand: GangDemand) -> str:
    """Why none of these nodes admits the gang; empty: one does."""
    if not nodes or any(admits(node.inventory, demand) for node in nodes):
        return ""
    asked = demand.constraints or Constraints()
    left = list(nodes)
    for at, (key, values) in enumerate(asked.labels):
        having = [node for node in left if dict(node.inventory.labels).get(key) in values]
        if not having:
            before = " and ".join(label_text(*one) for one in asked.labels[:at])
            of = f"of the {len(left)} with {before} " if at else ""
            return f"no node {of}has {label_text(key, values)}; {values_text(left, key)}"
        left = having
    with_labels = " with " + " and ".join(label_text(*one) for one in asked.labels) if asked.labels else ""
    bearable = [node for node in left if not untolerated(node.inventory, asked)]
    if not bearable:
        taints = Counter(taint_text(one) for node in left for one in untolerated(node.inventory, asked))
        shown = ", ".join(f"{taint} ({count})" for taint, count in _most_common(taints))
        count = f"all {len(left)} nodes" if len(left) > 1 else "the only node"
        have = "have taints" if len(left) > 1 else "has a taint"
        return f"{count}{with_labels} {have} that it does not tolerate: {shown}"
    return f"no node{with_labels} has a label {demand.within}, within which all of it shall be"


def values_text(nodes: Sequence[Node], key: str) -> str:
    """`12 have zone=b, 3 have zone=c`; `none has a label zone`."""
    values = Counter(value for node in nodes for one, value in node.inventory.labels if one == key)
    if not values:
        return f"none has a label {key}"
    parts = [
        f"{count} {'has' if count == 1 else 'have'} {key}={value}" for value, count in _most_common(values)
    ]
    more = f", and {len(values) - SHOWN_VALUES} other values" if len(values) > SHOWN_VALUES else ""
    return ", ".join(parts) + more


def _most_common(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_VALUES]


def _count_of(inventory: NodeInventory, wanted: Wanted) -> int:
    labels = dict(inventory.labels)
    return sum(labels.get(key) in values for key, values in wanted)
