"""The line of one walk, as a tree of queues: the first of it costs the depth of the tree, not the lanes.

Standings compare level by level (order.py, fair.py), so the first below a queue stays the first there,
whatever becomes of the queue itself: a start moves the queues above the job, and nothing beside them is
looked at again. What has had its turn is looked at anew when it comes to the top, and what is below a queue
only when the queue does: before, it stands there by its level alone, which none below it is better than.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import Final, Union

from ...spec.ids import JobId, Micros
from ...spec.resources import GangDemand
from .cluster_policy import ROOT
from .fair import Fair, Levels
from .job import Job
from .order import standing_class
from .queue import RESTART, Lane, LaneKey, waits_since_us
from .queues import parent_of, path_of
from .state import ClusterState

RESTARTS: Final = "restarts"


Rank = tuple[Fair, int, int, JobId]
"""A standing among those below one queue: from the level below that queue down; then minus the priority, the
class of service and the number of the job."""


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

    path: str
    lanes: Iterable[tuple[LaneKey, Lane]] = ()
    """Those right below it, until it is first looked at."""
    queues: list["Branch"] = field(default_factory=list)
    """Likewise."""
    entries: list[tuple[Rank, Union["Branch", Entry]]] = field(default_factory=list)
    """Heap."""
    rank: Rank | None = None
    """Of its first, among those beside this queue."""
    opened: bool = False
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
        queue = state.queue
        self._state, self._now_us, self._look_for_room, self._may_ask = state, now_us, has_room, may_ask
        self._patience_us = state.order.patience_us
        self._levels = Levels(state, now_us)
        self._kinds = {demand: Kind(demand, has_room(demand)) for demand in queue.alike}
        self._restarts = Branch(RESTARTS, tuple(queue.restarts.items()))
        root = Branch(ROOT)
        self._tops = (self._restarts, root) if queue.restarts else (root,)
        self._branches = {ROOT: root}
        for path, lanes in queue.below.items():
            self._branch(path).lanes = tuple(lanes.items())

    def first(self) -> tuple[LaneKey, Job] | None:
        """Whose turn it is."""
        for branch in self._tops:
            while (found := self._first_below(branch)) is not None:
                rank, entry = found
                if self._may_move(entry) and not self._is_lifted_no_longer(rank, entry):
                    return entry.key, self._state.jobs[rank[-1]]
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
        if leaf != key.leaf:
            self._touch_path(leaf)

    def _may_move(self, entry: Entry) -> bool:
        if entry.asks:
            return True
        kind = entry.kind
        kind.has_room = kind.has_room and self._look_for_room(kind.demand)
        return kind.has_room

    def _is_lifted_no_longer(self, rank: Rank, entry: Entry) -> bool:
        """Its patience lifted it when it was looked at last."""
        fair, _, service, number = rank
        if not fair or service == entry.key.service:
            return False
        return rank < self._rank(entry.key, self._state.jobs[number])

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
        if not branch.opened:
            self._open(branch)
        entries = branch.entries
        while branch.stale and entries:
            rank, child = entries[0]
            if isinstance(child, Entry):
                now = self._rank_of_lane(child)
            else:
                now = self._rank_of(child) if child.stale else child.rank
            if now is rank or now == rank:
                branch.stale = False
            elif now is None:
                heappop(entries)
            else:  # the next of a lane may stand better: it has waited longer in all
                heapreplace(entries, (now, child))

    def _open(self, branch: Branch) -> None:
        """It has come to the top for the first time."""
        branch.opened = True
        for key, lane in branch.lanes:
            kind, asks = self._kinds[key.demand], key.turn == RESTART or self._may_ask(key)
            if not asks and not kind.has_room:
                continue
            entry = Entry(key, lane, kind, asks)
            if (rank := self._rank_of_lane(entry)) is not None:
                branch.entries.append((rank, entry))
        for at, child in enumerate(branch.queues, 1):
            branch.entries.append((((self._levels.of_queue(child.path),), 0, 0, JobId(-at)), child))
        heapify(branch.entries)

    def _rank_of(self, branch: Branch) -> Rank | None:
        """None: nobody waits there any more."""
        self._settle(branch)
        branch.rank = None
        if branch.entries:
            fair, minus_priority, service, job = branch.entries[0][0]
            branch.rank = (self._levels.of_queue(branch.path), *fair), minus_priority, service, job
        return branch.rank

    def _rank_of_lane(self, entry: Entry) -> Rank | None:
        lane = entry.lane
        if not lane.jobs or lane.parked or not (entry.asks or entry.kind.has_room):
            return None
        return self._rank(entry.key, self._state.jobs[lane.jobs[0]])

    def _rank(self, key: LaneKey, job: Job) -> Rank:
        if key.turn == RESTART:
            return (), key.minus_priority, 0, job.number
        fair: Fair = ()
        if self._state.queue.fair:
            fair = (self._levels.of_leaf(key.leaf, job.shape.queue, key.minus_priority),)
        service = key.service
        if self._now_us - waits_since_us(job) >= self._patience_us or job.course.queued_us:
            service = standing_class(self._state, job, self._now_us)
        return fair, key.minus_priority, service, job.number

    def _branch_of(self, key: LaneKey) -> Branch:
        if key.turn == RESTART:
            return self._restarts
        return self._branches[parent_of(key.leaf)]

    def _branch(self, path: str) -> Branch:
        branch = self._branches.get(path)
        if branch is None:
            branch = self._branches[path] = Branch(path)
            self._branch(parent_of(path)).queues.append(branch)
        return branch

    def _touch(self, key: LaneKey) -> None:
        self._restarts.stale = True
        self._touch_path(key.leaf)

    def _touch_path(self, leaf: str) -> None:
        branches = self._branches
        for path in path_of(leaf):
            if path in branches:
                branches[path].stale = True
