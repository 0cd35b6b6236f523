"""The line of one walk, as a tree of queues: the first of it costs the depth of the tree, not the lanes.

Standings compare level by level (order.py, fair.py), so the first below a queue stays the first there,
whatever becomes of the queue itself: a start moves the queues above the job, and nothing beside them is
looked at again. What has had its turn is looked at anew when it comes to the top.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple, Union

from ...spec.ids import JobId, Micros
from ...spec.resources import GangDemand
from .cluster_policy import ROOT
from .fair import Fair, Levels
from .job import Job
from .order import standing_class
from .queue import RESTART, Lane, LaneKey
from .queues import parent_of, path_of
from .state import ClusterState


class Rank(NamedTuple):
    """A standing among those below one queue."""

    fair: Fair
    """From the level below that queue down."""
    minus_priority: int
    service: int
    job: JobId


@dataclass(slots=True)
class Kind:
    """Lanes of one demand."""

    demand: GangDemand
    has_room: bool
    """When that was last looked at."""


@dataclass(slots=True)
class Entry:
    """A lane in the line."""

    key: LaneKey
    lane: Lane
    kind: Kind
    asks: bool
    """It may have its turn, though there is no room for it."""


@dataclass(slots=True)
class Branch:
    """What waits below one queue."""

    path: str = ""
    entries: list[tuple[Rank, Union["Branch", Entry]]] = field(default_factory=list)
    """Heap, once the line is made."""
    rank: Rank | None = None
    """Of its first, among those beside this queue."""
    stale: bool = True


class Line:
    """Of the first of each lane that may move; one that is gone or parked drops out by itself."""

    def __init__(
        self,
        state: ClusterState,
        now_us: Micros,
        has_room: Callable[[GangDemand], bool],
        may_ask: Callable[[LaneKey], bool],
    ) -> None:
        """`has_room`: for a gang of that demand; where there is none, there is none for the rest of the walk.
        `may_ask`: a lane may have its turn even so. Most lanes are passed over here, and cost no more."""
        self._state, self._now_us, self._look_for_room = state, now_us, has_room
        self._levels = Levels(state, now_us)
        self._restarts, self._root = Branch(), Branch()
        self._branches = {ROOT: self._root}
        for demand, lanes in state.queue.alike.items():
            kind = Kind(demand, has_room(demand))
            for key, lane in lanes.items():
                asks = key.turn == RESTART or may_ask(key)
                if not lane.parked and (asks or kind.has_room):
                    entry = Entry(key, lane, kind, asks)
                    job = state.jobs[lane.jobs[0]]
                    self._branch_of(key).entries.append((self._rank(key, job), entry))
        heapify(self._restarts.entries)
        for path in sorted(self._branches, key=lambda path: (path == ROOT, -path.count("/"))):
            branch = self._branches[path]
            heapify(branch.entries)
            if path != ROOT and (rank := self._rank_of(branch)) is not None:
                self._branches[parent_of(path)].entries.append((rank, branch))

    def first(self) -> tuple[LaneKey, Job] | None:
        """Whose turn it is."""
        for branch in (self._restarts, self._root):
            while (found := self._first_below(branch)) is not None:
                rank, entry = found
                job = self._state.jobs[rank.job]
                if self._may_move(entry) and not (
                    rank.fair and rank < self._rank(entry.key, job)  # its patience lifts it no longer
                ):
                    return entry.key, job
                self._touch(entry.key)
        return None

    def drop(self, key: LaneKey) -> None:
        """The first lane leaves."""
        heappop(self._branch_of(key).entries)
        self._touch(key)

    def moved(self, key: LaneKey, leaf: str) -> None:
        """The first of the first lane has had its turn, and something began at `leaf`."""
        self._levels.forget(leaf)
        self._touch(key)
        self._touch_path(leaf)

    def _may_move(self, entry: Entry) -> bool:
        if entry.asks:
            return True
        kind = entry.kind
        kind.has_room = kind.has_room and self._look_for_room(kind.demand)
        return kind.has_room

    def _first_below(self, branch: Branch) -> tuple[Rank, Entry] | None:
        self._settle(branch)
        if not branch.entries:
            return None
        rank, child = branch.entries[0]
        while isinstance(child, Branch):
            rank, child = child.entries[0]
        return rank, child

    def _settle(self, branch: Branch) -> None:
        """Its first entry is as it stands now."""
        while branch.stale and branch.entries:
            rank, child = branch.entries[0]
            now = self._rank_of(child) if isinstance(child, Branch) else self._rank_of_lane(child)
            if now is None:
                heappop(branch.entries)
            elif rank != now:  # the next of a lane may stand better: it has waited longer in all
                heapreplace(branch.entries, (now, child))
            else:
                branch.stale = False

    def _rank_of(self, branch: Branch) -> Rank | None:
        """None: nobody waits there any more."""
        if branch.stale:
            self._settle(branch)
            first = branch.entries[0][0] if branch.entries else None
            level = self._levels.of_queue(branch.path)
            branch.rank = None if first is None else first._replace(fair=(level, *first.fair))
        return branch.rank

    def _rank_of_lane(self, entry: Entry) -> Rank | None:
        jobs = entry.lane.jobs
        if not jobs or entry.lane.parked or not (entry.asks or entry.kind.has_room):
            return None
        return self._rank(entry.key, self._state.jobs[jobs[0]])

    def _rank(self, key: LaneKey, job: Job) -> Rank:
        if key.turn == RESTART:
            return Rank((), key.minus_priority, 0, job.number)
        fair: Fair = ()
        if self._state.queue.fair:
            fair = (self._levels.of_leaf(key.leaf, job.shape.queue, key.minus_priority),)
        service = standing_class(self._state, job, self._now_us)
        return Rank(fair, key.minus_priority, service, job.number)

    def _branch_of(self, key: LaneKey) -> Branch:
        if key.turn == RESTART:
            return self._restarts
        return self._branch(parent_of(key.leaf))

    def _branch(self, path: str) -> Branch:
        branch = self._branches.get(path)
        if branch is None:
            branch = self._branches[path] = Branch(path)
            self._branch(parent_of(path))
        return branch

    def _touch(self, key: LaneKey) -> None:
        self._restarts.stale = True
        self._touch_path(key.leaf)

    def _touch_path(self, leaf: str) -> None:
        for path in path_of(leaf):
            if path in self._branches:
                self._branches[path].stale = True
