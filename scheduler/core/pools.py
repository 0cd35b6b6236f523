"""Which nodes a job may go to by its pool.

A pool's nodes are named by the policy, by name or by label. A job that names no pool goes to all nodes but
those that are set apart: in a pool that is only for some users or queues.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache

from .cluster_policy import ClusterPolicy, PoolPolicy
from .node import Node
from .state import ClusterState


def pool_nodes(state: ClusterState, pool: str) -> Iterator[Node]:
    """The nodes for jobs that ask for it; empty: for those that ask for none."""
    policy = state.policy
    return (node for node in state.nodes.values() if in_pool(policy, node, pool))


def in_pool(policy: ClusterPolicy, node: Node, pool: str) -> bool:
    """Whether a job that asks for the pool (empty: for none) may go there. One that the policy has no longer
    has no nodes."""
    if not policy.pools:
        return not pool
    if pool:
        wanted = policy.pools.get(pool)
        return wanted is not None and holds(wanted, node)
    return not any(_set_apart(one) and holds(one, node) for one in policy.pools.values())


def holds(pool: PoolPolicy, node: Node) -> bool:
    if pool.nodes and not _called(node.name, pool.nodes):
        return False
    return not pool.labels or pool.labels.items() <= dict(node.inventory.labels).items()


def _set_apart(pool: PoolPolicy) -> bool:
    return pool.users is not None or pool.queues is not None


@lru_cache(maxsize=65_536)
def _called(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
