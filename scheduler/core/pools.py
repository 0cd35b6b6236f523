"""Which nodes a job may go to by its pool.

A pool's nodes are named by the policy, by name or by label. A job that names no pool goes to all nodes but
those that are set apart: in a pool that is only for some users or queues. One that asks for a reservation,
`POOL/NAME`, has the nodes that are kept for it while that is on, and is like any of the pool's when it is
over; nobody else goes to them (reservations.py).
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache

from .cluster_policy import ClusterPolicy, PoolPolicy
from .node import Node
from .state import ClusterState


def pool_nodes(state: ClusterState, pool: str) -> Iterator[Node]:
    """The nodes for jobs that ask for it now; empty: for those that ask for none."""
    if not (pool or state.policy.pools or state.reserved):
        return iter(state.nodes.values())
    return (node for node in state.nodes.values() if in_pool(state, node, pool))


def in_pool(state: ClusterState, node: Node, pool: str) -> bool:
    """Whether a job that asks for the pool (empty: for none) may go there now."""
    if pool in state.spans:
        return state.spans[pool] and state.reserved.get(node.node) == pool
    return node.node not in state.reserved and belongs(state.policy, node, pool)


def belongs(policy: ClusterPolicy, node: Node, pool: str) -> bool:
    """The same, whatever is reserved. One that the policy has no longer has no nodes."""
    if not policy.pools:
        return not pool
    if pool:
        wanted = policy.pools.get(pool_of(pool))
        return wanted is not None and holds(wanted, node)
    return not any(_set_apart(one) and holds(one, node) for one in policy.pools.values())


def pool_of(asked: str) -> str:
    """The pool of `POOL` or `POOL/RESERVATION`."""
    return asked.partition("/")[0]


def holds(pool: PoolPolicy, node: Node) -> bool:
    if pool.nodes and not _called(node.name, pool.nodes):
        return False
    return not pool.labels or pool.labels.items() <= dict(node.inventory.labels).items()


def _set_apart(pool: PoolPolicy) -> bool:
    return pool.users is not None or pool.queues is not None


@lru_cache(maxsize=65_536)
def _called(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
