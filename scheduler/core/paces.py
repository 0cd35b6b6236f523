"""Which ranks are slower than their peers, again and again.

What is compared is the time that is a rank's own: its step without the wait for peers, since in a gang that
moves together all steps are as long as the slowest's. Where that cannot be measured, as with GPUs, it is the
step less what the others must have waited for it at least: until the one that had its data last had it. A
rank is slow in a window when its own time is half as much again as the median of its peers' and beyond what
they scatter (five robust standard deviations, from the median absolute deviation); it is reported when it was
so in three windows in a row, again when that has doubled. A node that is reported often enough within a day
is drained for new gangs, where the cluster's policy says so.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from ...spec.ids import Micros, NodeId
from .amounts import duration_text
from .effects import Plan
from .events import Event
from .job import Job
from .node import Node
from .node_events import NodeDrained
from .pace import RankPace
from .progress_events import PacesReported, StragglerFound
from .state import ClusterState
from .stimuli import Entry, Paced

WINDOWS: Final = 3
"""In a row, for a report."""
_TIMES: Final = 1.5
_DEVIATIONS: Final = 5 * 1.4826
"""A normal distribution's standard deviation is 1.4826 times its median absolute deviation."""
_REPORTED_RANKS_MAX: Final = 8


def own_us(paces: Mapping[int, RankPace]) -> dict[int, float]:
    """Of each rank's step, what it does not spend waiting for the others."""
    last_data_us = max((pace.data * pace.step_us for pace in paces.values()), default=0.0)
    return {rank: _own_us(pace, last_data_us) for rank, pace in paces.items()}


def _own_us(pace: RankPace, last_data_us: float) -> float:
    if pace.measured:
        return pace.step_us * (1 - pace.peers)
    return pace.step_us - (last_data_us - pace.data * pace.step_us)


def is_slow(one: float, peers: Sequence[float]) -> bool:
    if not peers:
        return False
    middle = median(peers)
    scatter = median(abs(each - middle) for each in peers)
    return one > _TIMES * middle and one > middle + _DEVIATIONS * scatter


def on_paced(state: ClusterState, job: Job, entry: Entry, said: Paced, now_us: Micros) -> Plan[None]:
    known = state.paces.get(job.number)
    paces = {**(known.ranks if known is not None else {}), **{pace.rank: pace for pace in said.ranks}}
    before = known.slow if known is not None else {}
    mine = _own_ranks(job, entry.task.task)
    own = own_us(paces)
    slow = {}
    if len(paces) == job.world_size:  # all have told
        for rank in mine:
            peers = [us for other, us in own.items() if other != rank]
            slow[rank] = before.get(rank, 0) + 1 if is_slow(own[rank], peers) else 0
    event = PacesReported(now_us, entry.task, entry.seq, said.ranks, tuple(slow.items()))
    due = [rank for rank, windows in slow.items() if _is_due(windows)]
    if not due:
        return Plan(None, (event,))
    node = job.tasks[entry.task.task].node
    text = _text(state.nodes[node].name, due, own, slow)
    found = StragglerFound(now_us, job.number, job.attempt, node, tuple(due), text)
    return Plan(None, (event, found, *_drained(state, node, text, now_us)))


def pace_lines(state: ClusterState, job: Job) -> list[str]:
    """For `pace show`: the gang's step in a line, then each slow rank."""
    known = state.paces.get(job.number)
    if known is None or not known.ranks:
        return []
    paces = list(known.ranks.values())
    lines = [f"{duration_text(round(median(each.step_us for each in paces)))} a step{_split(paces)}"]
    own = own_us(known.ranks)
    for rank, windows in sorted(known.slow.items()):
        if windows >= WINDOWS and len(lines) <= _REPORTED_RANKS_MAX:
            node = job.tasks[rank // job.demand.processes_per_task].node
            lines.append(_text(state.nodes[node].name, [rank], own, known.slow))
    return lines


def _split(paces: Sequence[RankPace]) -> str:
    seen = [pace for pace in paces if pace.measured]
    if not seen:
        data = median(pace.data for pace in paces)
        return f": {data:.0%} waiting for data" if any(pace.data for pace in paces) else ""
    compute, peers, data = (
        median(getattr(pace, kind) for pace in seen) for kind in ("compute", "peers", "data")
    )
    return f": {compute:.0%} computing, {peers:.0%} waiting for peers, {data:.0%} for data"


def _own_ranks(job: Job, task: int) -> range:
    first = job.first_rank(task)
    return range(first, first + job.demand.processes_per_task)


def _is_due(windows: int) -> bool:
    """3, 6, 12, 24 ...: a slow rank is news, and then ever less."""
    times, rest = divmod(windows, WINDOWS)
    return windows > 0 and rest == 0 and times & (times - 1) == 0


def _text(node: str, ranks: Sequence[int], own: Mapping[int, float], slow: Mapping[int, int]) -> str:
    shown = ", ".join(map(str, ranks[:_REPORTED_RANKS_MAX]))
    more = f" and {len(ranks) - _REPORTED_RANKS_MAX} more" if len(ranks) > _REPORTED_RANKS_MAX else ""
    peers = [us for rank, us in own.items() if rank not in ranks] or [0.0]
    one, others = duration_text(round(max(own[rank] for rank in ranks))), duration_text(round(median(peers)))
    return (
        f"rank {shown}{more} on {node} is slow: {one} of its own a step, its peers {others} "
        f"(median of {len(peers)}), in {max(slow[rank] for rank in ranks)} windows in a row"
    )


def recent_reports(state: ClusterState, node: Node, now_us: Micros) -> tuple[Micros, ...]:
    """Those of slow ranks on it that count still."""
    since_us = now_us - state.settings.straggler_memory_us
    return tuple(at_us for at_us in node.slow_us if at_us > since_us)


def _drained(state: ClusterState, name: NodeId, text: str, now_us: Micros) -> tuple[Event, ...]:
    """By policy, after so many reports: it gets no new gang for a while, and then another chance."""
    most = state.settings.straggler_reports_max
    if not most or len(recent_reports(state, state.nodes[name], now_us)) + 1 < most:
        return ()
    until_us = Micros(now_us + state.settings.straggler_drain_us)
    return (NodeDrained(now_us, name, until_us, f"in report {most} on it, {text}"),)
