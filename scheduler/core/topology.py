"""Where nodes stand in the cluster: a tree of any depth that their labels tell, as blocks and racks in them.

The levels, widest first, are a setting (`block,rack`). A domain of a level is the nodes that have the same
labels from the widest level down to it: racks of the same name in two blocks are two. A label that is no
level makes domains of its own. A node without the label is in none of its domains.

A gang gets the domain in which it leaves the least room behind (best fit), of equals the one whose wider
domain has the least: large domains stay whole for large gangs. Where no single one will do, the fewest: the
largest first, and of those in which the rest fits the best fitting. Sources: Slurm's topology/tree plugin
(the lowest switch that can satisfy the job, best fit below it) and topology/block plugin; Kueue's Topology
Aware Scheduling (KEP-2724: required and preferred, best fit, the fewest domains level by level); KAI's
topology constraints (required and preferred, nodes without the label are left out).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heapify, heappop

from ...spec.ids import NodeId
from ...spec.resources import GangDemand
from .node import Node

Labels = tuple[tuple[str, str], ...]
Path = tuple[str, ...]
"""Values of labels, of the widest level first; "" where there is none."""
Scope = tuple[str, ...]
"""The labels that make a domain: those of the wider levels, then its own."""


@lru_cache(maxsize=1 << 16)
def path_of(labels: Labels, levels: Scope) -> Path:
    """Where a node stands; () when it has none of these labels."""
    values = dict(labels)
    path = tuple(values.get(level, "") for level in levels)
    return path if any(path) else ()


def domain_of(labels: Labels, scope: Scope) -> Path | None:
    """The domain that it is in; None: in none."""
    path = path_of(labels, scope)
    return path if path and path[-1] else None


def scope_of(level: str, levels: Scope) -> Scope:
    return levels[: levels.index(level) + 1] if level in levels else (level,)


def scopes_of(demand: GangDemand, levels: Scope) -> tuple[Scope, ...]:
    """The levels that matter for a gang, the narrowest that it would be within first."""
    narrowest = scope_of(demand.near, levels) if demand.near else levels
    return tuple(narrowest[:depth] for depth in range(len(narrowest), 0, -1))


def domain_text(scope: Scope, path: Path) -> str:
    """`rack b1/r3`."""
    return f"{scope[-1]} {'/'.join(filter(None, path))}"


@dataclass(slots=True)
class Domains:
    """The nodes with room by the domains of one level. Changes with each node, in constant time."""

    scope: Scope
    rooms: dict[Path, int] = field(default_factory=dict)
    """Tasks, of domains in which there is room for one."""
    sizes: dict[int, set[Path]] = field(default_factory=dict)
    """The domains by their room."""
    members: dict[Path, dict[NodeId, int]] = field(default_factory=dict)
    """On which nodes there is how much."""
    homes: dict[NodeId, Path] = field(default_factory=dict)

    def put(self, name: NodeId, labels: Labels, fits: int) -> None:
        """0: there is none on this node."""
        old = self.homes.pop(name, None)
        if old is None and not labels:
            return
        if old is not None:
            self._grow(old, -self.members[old].pop(name))
        new = domain_of(labels, self.scope) if fits else None
        if new is not None:
            self.homes[name] = new
            self.members.setdefault(new, {})[name] = fits
            self._grow(new, fits)

    def _grow(self, path: Path, more: int) -> None:
        before = self.rooms.pop(path, 0)
        if before:
            self.sizes[before].remove(path)
            if not self.sizes[before]:
                del self.sizes[before]
        if before + more:
            self.rooms[path] = before + more
            self.sizes.setdefault(before + more, set()).add(path)
        else:
            del self.members[path]

    def rooms_without(self, avoid: Iterable[NodeId]) -> dict[Path, int]:
        """What there is when some nodes are not counted."""
        there = [name for name in avoid if name in self.homes]
        if not there:
            return self.rooms
        rooms = dict(self.rooms)
        for name in there:
            path = self.homes[name]
            rooms[path] -= self.members[path][name]
        return rooms


def best_fitting(
    levels: Sequence[Domains], at: int, count: int, avoid: Iterable[NodeId], kept: Mapping[Path, int]
) -> Iterator[Path]:
    """Domains of `levels[at]` with room for `count` tasks: those that keep the most of what was there first,
    then those that leave the least behind."""
    rooms, sizes = levels[at].rooms_without(avoid), levels[at].sizes
    first = [path for path in kept if rooms.get(path, 0) >= count]
    yield from sorted(first, key=lambda path: (-kept[path], rooms[path], path))
    if rooms is not levels[at].rooms:
        sizes = {}
        for path, room in rooms.items():
            sizes.setdefault(room, set()).add(path)
    wider = levels[at + 1].rooms if at + 1 < len(levels) else {}
    for room in sorted(size for size in sizes if size >= count):
        equals = [(wider.get(path[:-1], 0), path) for path in sizes[room] if path not in first]
        heapify(equals)
        while equals:
            yield heappop(equals)[1]


def share_out(
    left: Mapping[NodeId, int], paths: Mapping[NodeId, Path], count: int, depth: int = 0
) -> list[tuple[list[NodeId], int]]:
    """`count` tasks over nodes with so much room each, together enough: groups of nodes, each of one domain
    of the narrowest level, and how many tasks go to each. The fewest domains of the widest level, then in
    each of these the fewest of the next."""
    if all(len(paths[name]) <= depth for name in left):
        return [(list(left), count)]
    groups: dict[str, dict[NodeId, int]] = {}
    for name, room in left.items():
        groups.setdefault("".join(paths[name][depth : depth + 1]), {})[name] = room
    rooms = {value: sum(group.values()) for value, group in groups.items()}
    shares: list[tuple[list[NodeId], int]] = []
    while count:
        enough = [(room, value) for value, room in rooms.items() if room >= count]
        room, value = min(enough) if enough else min((-room, value) for value, room in rooms.items())
        room = min(abs(room), count)
        shares += share_out(groups[value], paths, room, depth + 1)
        count -= room
        del rooms[value]
    return shares


def most_together(rooms: Iterable[tuple[Node, int]], demand: GangDemand, levels: Scope) -> int:
    """The most tasks that can be placed at once, with so much room on each node."""
    if not demand.within:
        return sum(room for _, room in rooms)
    return max(by_domain(rooms, scope_of(demand.within, levels)).values(), default=0)


def can_be_together(rooms: Iterable[tuple[Node, int]], demand: GangDemand, levels: Scope) -> bool:
    """There is room for the gang's least; looks at no more nodes than it takes to see that."""
    scope = scope_of(demand.within, levels) if demand.within else ()
    sums: dict[Path, int] = {}
    for node, room in rooms:
        path = domain_of(node.inventory.labels, scope) if scope else ()
        if path is not None:
            sums[path] = sums.get(path, 0) + room
            if sums[path] >= demand.instance_count_min:
                return True
    return False


def areas_of(nodes: Iterable[Node], demand: GangDemand, levels: Scope) -> list[list[Node]]:
    """The nodes that a gang may have together: those of each domain that it must be within, or all."""
    if not demand.within:
        return [list(nodes)]
    scope = scope_of(demand.within, levels)
    found: dict[Path, list[Node]] = {}
    for node in nodes:
        path = domain_of(node.inventory.labels, scope)
        if path is not None:
            found.setdefault(path, []).append(node)
    return [found[path] for path in sorted(found)]


def by_domain(rooms: Iterable[tuple[Node, int]], scope: Scope) -> dict[Path, int]:
    """Sums over the nodes of each domain."""
    sums: dict[Path, int] = {}
    for node, room in rooms:
        path = domain_of(node.inventory.labels, scope)
        if path is not None:
            sums[path] = sums.get(path, 0) + room
    return sums
