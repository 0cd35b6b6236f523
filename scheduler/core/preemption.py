"""Who is stopped so that another can start: the set of running jobs that loses least, of those that may be.

May be stopped, after it has run for a while: a job of lower priority; and one of the same priority that was
served more (order.py), if it has saved a checkpoint: it will lose little; and, so that a queue has what it is
guaranteed, one of a queue that borrows (quota.py). Not one that is being stopped, nor one that would not be
tried again, nor one whose nodes are silent.

Nodes are cleared greedily: the next task goes where making room for it loses least, what was freed before
counted; in the end whoever turns out not to be needed stays. Nobody is told to go unless all of the gang fits
then. (Exact choice is a set cover; greedy with pruning is how Borg's and Kubernetes' schedulers choose, too.)
Before anybody is stopped whole, elastic gangs are made smaller (shrinking.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from ...spec.ids import JobId, Micros, NodeId
from ...spec.lifecycle import AttemptOutcome, JobState, NodeContact
from .attempt_events import PlacesClaimed
from .candidates import is_able, tasks_that_fit, working
from .effects import Plan
from .fair import Levels
from .grace import save_grace_us
from .job import Job, Stop
from .node import Load, Node
from .order import served_us, standing_class
from .placement import copy_of, give_back
from .pools import in_pool
from .queues import leaf_of_job
from .quota import Reclaim
from .settings import GPU_HOUR_US, RESTART_US
from .shrinking import Shrunk, goes_on_without, shrink
from .state import ClusterState
from .submit import request_stops
from .topology import areas_of
from .weights import gang_milli


class Stoppable(NamedTuple):
    """A running job that somebody may have stopped."""

    job: JobId
    priority: int
    service: int
    """The class that it counts as."""
    saved: bool
    """It has a checkpoint."""


def stoppable(state: ClusterState, now_us: Micros) -> list[Stoppable]:
    """All of them, in the order of their numbers."""
    jobs, before_us = state.jobs, now_us - state.order.min_run_us
    long_enough = sorted(number for number in state.placed if jobs[number].course.attempt_us <= before_us)
    return [
        Stoppable(number, job.priority, standing_class(state, job, now_us), bool(job.course.checkpoints))
        for number in long_enough
        if _is_stoppable(state, job := jobs[number])
    ]


def make_room(state: ClusterState, job: Job, those: Sequence[Stoppable], now_us: Micros) -> Plan[None] | None:
    """Claims nodes for it and gives notice to those that must leave, of `those`. One that has nodes kept for
    it already is given room there. None: not even all that may be stopped for it would do."""
    found = _found(state, job, those, now_us)
    if found is None:
        return None
    best, reclaim = found
    victims = tuple(sorted(best.victims))
    claimed = PlacesClaimed(now_us, job.number, tuple(sorted(best.slots)), victims)
    stops = []
    for number in victims:
        victim = state.jobs[number]
        why = reclaim.why(victim) or _why(job, victim, now_us)
        smaller = goes_on_without(state, victim, best.slots)
        if smaller:
            why = f"gives up {_given_text(state, victim, best.slots)}: {why}"
        grace_us = save_grace_us(victim)
        stop = Stop(AttemptOutcome.PREEMPTED, now_us, grace_us, "", why, job.number, smaller)
        stops.append((victim, stop))
    return request_stops(state, stops, claimed)


def _found(
    state: ClusterState, job: Job, those: Sequence[Stoppable], now_us: Micros
) -> tuple["Clearing | Shrunk", Reclaim] | None:
    """Whom to stop. A queue has its guarantee back from those who borrow, from each no more than that: who
    loses least is looked for among all of them, and then among so many as may be taken together."""
    others = [one for one in those if state.jobs[one.job].course.stop is None]
    if not others:
        return None
    reclaim = Reclaim(state, job)
    outranked = _outranked(state, job, others, now_us)
    borrowing = [state.jobs[one.job] for one in others if reclaim.may_take(state.jobs[one.job])]
    if not outranked and not borrowing:
        return None
    if job.course.claim is not None:
        kept = (state.nodes[name] for name in job.course.claim.kept)
        able = [node for node in kept if is_able(state, node) and in_pool(state, node, job.demand.pool)]
    else:
        able = working(state, job.demand.pool)
    areas = areas_of(able, job.demand, state.settings.topology_levels)
    for may in (borrowing, _together(reclaim, borrowing, now_us)):
        losses = {victim.number: loss_us(victim, now_us) for victim in (*outranked, *may)}
        if not losses:
            return None
        best = shrink(state, job, losses, areas) or _cleared(state, job, losses, areas)
        if best is None:
            return None
        plain = {victim.number for victim in outranked}
        if reclaim.takes_all(state.jobs[number] for number in sorted(best.victims - plain)):
            return best, reclaim
    return None


def _cleared(
    state: ClusterState, job: Job, losses: dict[JobId, int], areas: Sequence[Iterable[Node]]
) -> "Clearing | None":
    """Of all areas the one where least is lost."""
    clearings = [Clearing(state, job, losses, frozenset(node.node for node in area)) for area in areas]
    found = [one for one in clearings if one.find() and one.victims]
    return min(found, key=lambda one: sum(losses[number] for number in one.victims), default=None)


def _outranked(state: ClusterState, job: Job, those: Sequence[Stoppable], now_us: Micros) -> list[Job]:
    """Of lower priority, or served more; where the policy has queues, of its own queue, or (served more, too)
    of one that stands behind it."""
    own, levels = standing_class(state, job, now_us), Levels(state, now_us)
    may = []
    for one in those:
        served_more = one.saved and one.service > own
        victim = state.jobs[one.job]
        if not state.queue.fair or victim.shape.queue == job.shape.queue:
            if one.priority < job.priority or (served_more and one.priority == job.priority):
                may.append(victim)
        elif served_more and levels.of(leaf_of_job(job), "", 0) < levels.of(leaf_of_job(victim), "", 0):
            may.append(victim)
    return may


def _together(reclaim: Reclaim, borrowing: Sequence[Job], now_us: Micros) -> list[Job]:
    """As many as may be taken at once, those that lose least first."""
    inner, chosen = Reclaim(reclaim.state, reclaim.job), []
    for victim in sorted(borrowing, key=lambda one: (loss_us(one, now_us), one.number)):
        if inner.may_take(victim):
            inner.take(victim)
            chosen.append(victim)
    return chosen


def _is_stoppable(state: ClusterState, job: Job) -> bool:
    """When it has run long enough."""
    if job.course.stop is not None or job.state is not JobState.RUNNING:
        return False
    if not job.shape.policy.outlasts_preemption:
        return False
    return all(state.nodes[task.node].contact is NodeContact.CONNECTED for task in job.tasks)


def loss_us(job: Job, now_us: Micros) -> int:
    """What stopping it costs, in thousandths of a GPU times microseconds: its save and its restart, or, where
    it has never saved, all that its attempt has done."""
    newest = job.course.checkpoints[0] if job.course.checkpoints else None
    if newest is None:
        cost_us = now_us - job.course.attempt_us + RESTART_US
    else:
        cost_us = newest.stall_us + newest.persist_us + RESTART_US
    return cost_us * max(1, gang_milli(job.demand, len(job.tasks)))


@dataclass(slots=True)
class Clearing:
    """The search; `losses`: of those that may be stopped."""

    state: ClusterState
    job: Job
    losses: dict[JobId, int]
    area: frozenset[NodeId]
    """Nodes that take work, on which all of it shall be."""
    victims: set[JobId] = field(default_factory=set)
    slots: list[NodeId] = field(default_factory=list)
    """The node of each task."""
    used: dict[NodeId, int] = field(default_factory=dict)
    near: dict[NodeId, None] = field(default_factory=dict)
    """The chosen nodes, and others that those who leave them leave as well."""
    here: dict[NodeId, list[JobId]] = field(default_factory=dict)
    """Who may be stopped on a node, the least loss first."""

    def find(self) -> bool:
        """Fills `slots` and `victims`; False: it cannot be done."""
        wanted = self.job.demand.instance_count_min
        for number in sorted(self.losses, key=lambda number: (self.losses[number], number)):
            for name in dict.fromkeys(task.node for task in self.state.jobs[number].tasks):
                self.here.setdefault(name, []).append(number)
        heap = [(cost, 0, name) for name in self.area if (cost := self._cost(name)) is not None]
        heapify(heap)
        while heap and len(self.slots) < wanted:
            cost, used, name = heappop(heap)
            now = self._cost(name)
            if now is None:
                continue
            if (now, self.used.get(name, 0)) != (cost, used):
                heappush(heap, (now, self.used.get(name, 0), name))
                continue
            for touched in self._take(name):
                if (cheaper := self._cost(touched)) is not None:
                    heappush(heap, (cheaper, self.used.get(touched, 0), touched))
        if len(self.slots) < wanted:
            return False
        self._spare()
        return True

    def _take(self, name: NodeId) -> Iterable[NodeId]:
        """One more task goes there. The nodes where another may cost less now."""
        freed = self._needed(name) or []
        self.slots.append(name)
        self.used[name] = self.used.get(name, 0) + 1
        self.victims.update(freed)
        tasks = (task for number in freed for task in self.state.jobs[number].tasks)
        touched = dict.fromkeys([name, *(task.node for task in tasks if task.node in self.area)])
        self.near |= touched
        return touched

    def _cost(self, name: NodeId) -> int | None:
        """What one more task there costs; None: no room can be made."""
        needed = self._needed(name)
        return None if needed is None else sum(self.losses[number] for number in needed)

    def _needed(self, name: NodeId) -> list[JobId] | None:
        """Whom else one more task there needs stopped."""
        count = self.used.get(name, 0) + 1
        load = self._load(name)
        if self._fits(name, load) >= count:
            return []
        left = [number for number in self.here.get(name, ()) if number not in self.victims]
        enough: list[JobId] = []
        for number in left:
            give_back(self.state, load, self.state.jobs[number], name)
            enough.append(number)
            if self._fits(name, load) >= count:
                break
        else:
            return None
        for number in reversed(enough[:-1]):
            if self._fits(name, self._load(name, enough, number)) >= count:
                enough.remove(number)
        together = sum(self.losses[number] for number in enough)
        for number in left:  # one alone may do, and lose no more
            if self.losses[number] > together:
                break
            if self._fits(name, self._load(name, (number,))) >= count:
                return [number]
        return enough

    def _spare(self) -> None:
        """Whoever is not needed in the end stays, those who would lose most first."""
        rooms = {name: self._fits(name, self._load(name)) for name in self.near}
        spare, count = sum(rooms.values()) - len(self.slots), len(self.slots)
        for number in sorted(self.victims, key=lambda number: (-self.losses[number], number)):
            names = dict.fromkeys(task.node for task in self.state.jobs[number].tasks)
            left = {
                name: self._fits(name, self._load(name, spared=number)) for name in names if name in rooms
            }
            fewer = sum(rooms[name] - room for name, room in left.items())
            if fewer <= spare:
                spare -= fewer
                rooms |= left
                self.victims.remove(number)
                self.slots = []
        if not self.slots:  # somebody stays: the chosen nodes first, of those that were looked at
            self.slots = [name for name, room in rooms.items() for _ in range(room)][:count]

    def _fits(self, name: NodeId, load: Load) -> int:
        return tasks_that_fit(self.state.nodes[name], load, self.job.demand)

    def _load(self, name: NodeId, more: Sequence[JobId] = (), spared: JobId | None = None) -> Load:
        """What is free there when the victims, and some more, have left, but for one."""
        load = copy_of(self.state.loads[name])
        for number in self.here.get(name, ()):
            if number != spared and (number in self.victims or number in more):
                give_back(self.state, load, self.state.jobs[number], name)
        return load


def _why(job: Job, victim: Job, now_us: Micros) -> str:
    if job.priority > victim.priority:
        return f"job {job.number} has priority {job.priority}, this one {victim.priority}"
    mine, its = served_us(victim, now_us) / GPU_HOUR_US, served_us(job, now_us) / GPU_HOUR_US
    return f"job {job.number} goes first: it has had {its:.1f} GPU-hours so far, this one {mine:.1f}"


def _given_text(state: ClusterState, victim: Job, slots: Sequence[NodeId]) -> str:
    """The nodes of it that others get, by name."""
    return ", ".join(sorted({state.nodes[task.node].name for task in victim.tasks if task.node in slots}))
