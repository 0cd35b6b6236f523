"""What there is to see of queues, users and pools: what each may have, has, waits for and has had."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from ...spec.ids import Micros
from ...spec.lifecycle import NodeContact
from .candidates import is_able
from .cluster_policy import ROOT, PoolPolicy, QueuePolicy
from .fair import Levels
from .order import Standing, standing
from .pools import holds, pool_of
from .queues import leaf_of_job, parent_of, path_of
from .state import ClusterState
from .usage import NOTHING, InUse

PLAIN = QueuePolicy()


@dataclass(frozen=True, slots=True)
class QueueStanding:
    """A queue of the policy, or a user's leaf below one (`policy` is then the default)."""

    path: str
    policy: QueuePolicy
    declared: bool
    """It is in the policy; else it is a user's."""
    in_use: InUse
    waiting: int
    used_gpu_s: float
    """Decayed."""
    share: float
    """Its part of the cluster by weight, among all that are there beside it."""
    rank: int
    """Of those with waiting jobs, whose turn it is: from 1 on; 0: none of its jobs waits."""
    user: InUse
    """Of the user that was asked for."""


@dataclass(frozen=True, slots=True)
class PoolStanding:
    name: str
    policy: PoolPolicy
    nodes: int
    connected: int
    gpus: int
    gpus_free: int
    """On nodes that take work."""
    cpu_milli: int
    cpu_milli_free: int
    waiting: int
    reserved: dict[str, tuple[str, ...]]
    """The nodes of each of its reservations, by name."""


def queue_standings(state: ClusterState, now_us: Micros, user: str = "") -> list[QueueStanding]:
    """In the order of their paths: each queue of the policy, and each leaf where something waits or runs."""
    waiting: dict[str, int] = {}
    for leaf, count in state.waiting.items():
        for path in path_of(leaf):
            waiting[path] = waiting.get(path, 0) + count
    ranks = _ranks(state, now_us)
    paths = {ROOT, *state.policy.queues, *waiting, *state.usage.queues}
    shares = _shares(state, paths)
    return [
        QueueStanding(
            path,
            state.policy.queues.get(path, PLAIN),
            path == ROOT or path in state.policy.queues,
            state.usage.of(path),
            waiting.get(path, 0),
            state.usage.account(path, now_us, state.policy.half_life_us).gpu_s,
            shares[path],
            ranks.get(path, 0),
            state.usage.of_user(path, user) if user else NOTHING,
        )
        for path in sorted(paths, key=lambda path: path.split("/"))
    ]


def pool_standings(state: ClusterState) -> Iterator[PoolStanding]:
    """In the order of the policy."""
    waiting = _waiting_for_pools(state)
    for name, pool in state.policy.pools.items():
        nodes = [node for node in state.nodes.values() if holds(pool, node)]
        here = [node for node in nodes if node.contact is NodeContact.CONNECTED]
        takes = [node for node in here if is_able(state, node)]
        yield PoolStanding(
            name,
            pool,
            len(nodes),
            len(here),
            sum(len(node.inventory.gpus) for node in nodes),
            sum(len(state.loads[node.node].free_gpus) for node in takes),
            sum(node.inventory.capacity.cpu_milli for node in nodes),
            sum(state.loads[node.node].free_cpu_milli for node in takes),
            waiting.get(name, 0),
            {title: _names(state, f"{name}/{title}") for title in pool.reservations},
        )


def _waiting_for_pools(state: ClusterState) -> Counter[str]:
    """QUEUED jobs by the pool that they ask for: those in line by lanes; stranded ones stand there, too."""
    waiting: Counter[str] = Counter()
    for key, lane in state.queue.lanes.items():
        waiting[pool_of(key.demand.pool)] += len(lane)
    for number in chain(state.held, state.on_hold, state.claims):
        waiting[pool_of(state.jobs[number].demand.pool)] += 1
    for number in state.stranded:
        waiting[pool_of(state.jobs[number].demand.pool)] -= 1
    return waiting


def _names(state: ClusterState, asked: str) -> tuple[str, ...]:
    return tuple(state.nodes[node].name for node in state.assigned.get(asked, ()))


def _ranks(state: ClusterState, now_us: Micros) -> dict[str, int]:
    """Of each leaf where somebody stands in line; a queue stands where the best of its leaves does."""
    levels, best = Levels(state, now_us), dict[str, Standing]()
    for key, number in state.queue.firsts():
        job = state.jobs[number]
        leaf, first = leaf_of_job(job), standing(state, key, job, now_us, levels)
        best[leaf] = min(best.get(leaf, first), first)
    ranks: dict[str, int] = {}
    for rank, leaf in enumerate(sorted(best, key=best.__getitem__), start=1):
        for path in path_of(leaf):
            ranks.setdefault(path, rank)
    return ranks


def _shares(state: ClusterState, paths: set[str]) -> dict[str, float]:
    weights = {path: state.policy.queues.get(path, PLAIN).weight for path in paths}
    totals: dict[str, float] = {}
    for path, weight in weights.items():
        if path != ROOT:
            totals[parent_of(path)] = totals.get(parent_of(path), 0.0) + weight
    shares = {ROOT: 1.0}
    for path in sorted(paths - {ROOT}, key=lambda path: path.count("/")):
        shares[path] = shares[parent_of(path)] * weights[path] / totals[parent_of(path)]
    return shares
