"""A decision of the past, taken again: the history up to it is exactly what it was taken from.

The state before the event is replayed, shown as placement saw it, and the engine runs on it once more;
whether the same comes out is told. What was never in the history (step times, how long runs lasted before a
restart) is missing, so a decision that went by it may come out otherwise.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import msgspec

from ..spec.errors import InvalidRequest
from ..spec.ids import JobId, Micros, NodeId
from .core.attempt_events import AttemptEnded, AttemptStarted, GrowthPlanned, StopRequested
from .core.candidates import takes_work, takes_work_of, tasks_that_fit
from .core.events import Event
from .core.evolve import evolve, replay
from .core.job import Job
from .core.node_events import TimersPassed
from .core.packing import fit_of
from .core.reason import Reason
from .core.reasons import why
from .core.settings import Settings
from .core.state import ClusterState
from .core.timeline import describe
from .records import event_from_row
from .rehearsal import DryEngine, silent
from .store.base import EventRow, Loaded

EVENTS_MAX: Final = 200_000
"""A decision with more of them before it is too late to be taken again."""
SHOWN_NODES: Final = 10
DECISIONS: Final = (AttemptStarted, StopRequested, GrowthPlanned)
KINDS: Final = tuple(kind.__name__ for kind in DECISIONS)


class Told(msgspec.Struct, frozen=True):
    """One node, as placement saw it."""

    node: NodeId
    name: str
    fits: int
    """Tasks of that job for which there was room."""
    step: int
    """Growth of fragmentation, see packing.py: less is better."""
    tie: int
    chosen: int
    """Tasks that went there."""


class Decision(msgspec.Struct, frozen=True):
    seq: int
    at_us: Micros
    kind: str
    job: JobId
    text: str
    reasons: list[Reason]
    """As `pace why` would have said just before."""
    nodes: list[Told]
    """The best and the chosen first, at most SHOWN_NODES."""
    nodes_fit: int
    nodes_in_service: int
    again: bool
    """The same came out."""
    instead: str
    """What came out, where it was not the same."""


def decide_again(rows: Sequence[EventRow], settings: Settings) -> Decision:
    """`rows`: the history from its begin up to the decision, which is the last. Raises InvalidRequest."""
    assert all(before.seq + 1 == after.seq for before, after in pairwise(rows))
    row = rows[-1]
    event = event_from_row(row)
    if not isinstance(event, DECISIONS):
        raise InvalidRequest(
            f"event {row.seq} is {row.kind}, which is no decision of the scheduler's",
            hint=f"ask for one of {', '.join(KINDS)}: `pace timeline JOB -o json` has their seq",
        )
    state = replay((event_from_row(each) for each in rows[:-1]), silent(settings))
    evolve(state, TimersPassed(event.at_us))
    job = state.jobs[event.job]
    said = why(state, job, event.at_us)
    nodes = _seen(state, job, event) if isinstance(event, AttemptStarted) else []
    names = {node.node: node.name for node in state.nodes.values()}
    text, in_service = describe(event, names), sum(takes_work(state, node) for node in state.nodes.values())
    fit = sum(told.fits > 0 for told in nodes)
    nodes = [told for at, told in enumerate(nodes) if at < SHOWN_NODES or told.chosen][: 2 * SHOWN_NODES]
    instead = _instead(state, event, names)
    return Decision(
        row.seq,
        row.at_us,
        row.kind,
        job.number,
        text,
        list(said.reasons),
        nodes,
        fit,
        in_service,
        not instead,
        instead,
    )


def _seen(state: ClusterState, job: Job, event: AttemptStarted) -> list[Told]:
    """Nodes that took work and had room, in the order of their fit."""
    chosen = [place.node for place in event.places]
    told = []
    for node in state.nodes.values():
        takes = takes_work_of(state, node, job.demand)
        fits = tasks_that_fit(node, state.loads[node.node], job.demand) if takes else 0
        if fits or node.node in chosen:
            step, tie = fit_of(state.workload, node.inventory, state.loads[node.node], job.demand)
            told.append(Told(node.node, node.name, fits, step, tie, chosen.count(node.node)))
    return sorted(told, key=lambda one: (one.step, one.tie, one.node))


def _instead(state: ClusterState, event: Event, names: dict[NodeId, str]) -> str:
    """Empty: the same. A stop that a person asked for is nobody's decision to take again."""
    if isinstance(event, StopRequested) and event.stop.by:
        return ""
    engine = DryEngine(Loaded(0, JobId(0), Micros(0), ()), state.settings)
    engine.state = state
    step = engine.step([], event.at_us, {})
    mine = [each.event for each in step.committed if not isinstance(each.event, AttemptEnded)]
    if event in mine:
        return ""
    about = next((each for each in mine if getattr(each, "job", None) == getattr(event, "job", None)), None)
    return "nothing was decided for the job" if about is None else describe(about, names)
