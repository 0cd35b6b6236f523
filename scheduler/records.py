"""Core objects as rows and back: JSON text that the store never looks into.

Equal shapes have equal text, so decoding is cached; fresh jobs share one record. `recover(loaded)` gives the
state that the history of events leads to (contact and metrics aside: those are news, not history).
"""

import gc
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import msgspec

from ..spec.errors import StoreFailure
from .core.events import DurableEvent, Event, job_of, node_of
from .core.evolve import HANDLERS
from .core.evolve_policy import take_policy
from .core.indexes import enter_recovered, put_node
from .core.job import FRESH, Course, Job, Shape
from .core.node import Node
from .core.node_events import NodeForgotten
from .core.policy_events import PolicyChanged
from .core.settings import Settings
from .core.state import ClusterState
from .core.usage import Account
from .store.base import AccountRow, EventRow, JobRow, Loaded, NodeRow

_encode: Final = msgspec.json.Encoder().encode
_course_of: Final = msgspec.json.Decoder(Course).decode
_shape_of: Final = msgspec.json.Decoder(Shape).decode
_node_of: Final = msgspec.json.Decoder(Node).decode
_account_of: Final = msgspec.json.Decoder(Account).decode
_policy_of: Final = msgspec.json.Decoder(PolicyChanged).decode
_event_of: Final[dict[str, Any]] = {
    kind.__name__: msgspec.json.Decoder(kind).decode for kind in HANDLERS if issubclass(kind, DurableEvent)
}
_FRESH_TEXT: Final = _encode(FRESH).decode()


def job_row(job: Job, document: str | None = None) -> JobRow:
    course = job.course
    return JobRow(
        job.number,
        job.name,
        job.user,
        course.state.value,
        job.priority,
        job.submitted_us,
        course.finished_us or None,
        _shape_text(job.shape),
        _FRESH_TEXT if course is FRESH else _encode(course).decode(),
        document,
    )


def job_from_row(row: JobRow) -> Job:
    """Also for jobs that are over. Raises StoreFailure naming the row."""
    try:
        course = FRESH if row.record == _FRESH_TEXT else _course_of(row.record)
        shape = shape_from_text(row.demand)
    except msgspec.DecodeError as error:
        raise _damaged(f"job {row.job}", error) from error
    return Job(row.job, row.name, row.user, row.priority, row.submitted_us, shape, course)


@lru_cache(maxsize=4096)
def shape_from_text(text: str) -> Shape:
    """JobRow.demand."""
    return _shape_of(text)


def node_row(node: Node) -> NodeRow:
    return NodeRow(node.node, _encode(node).decode())


def forgotten_row(event: NodeForgotten) -> NodeRow:
    """The store keeps the line; recovery passes over it."""
    return NodeRow(event.node, "")


def account_row(queue: str, account: Account) -> AccountRow:
    return AccountRow(queue, _encode(account).decode())


def policy_text(event: PolicyChanged) -> str:
    """Batch.policy: the event that brought the policy."""
    return _encode(event).decode()


def event_row(seq: int, event: Event) -> EventRow:
    return EventRow(
        seq, event.at_us, type(event).__name__, _encode(event).decode(), job_of(event), node_of(event)
    )


def event_from_row(row: EventRow) -> Event:
    """Raises StoreFailure naming the row."""
    try:
        event: Event = _event_of[row.kind](row.body)
    except (KeyError, msgspec.DecodeError) as error:
        raise _damaged(f"event {row.seq} ({row.kind})", error) from error
    return event


def events_from_rows(rows: Iterable[EventRow]) -> list[Event]:
    return [event_from_row(row) for row in rows]


def recover(loaded: Loaded, settings: Settings | None = None) -> ClusterState:
    """The state as of the last commit. Raises StoreFailure naming what cannot be read."""
    collecting = gc.isenabled()
    gc.disable()  # a hundred thousand new objects, none of them garbage
    try:
        return _recover(loaded, settings)
    finally:
        if collecting:
            gc.enable()


def _recover(loaded: Loaded, settings: Settings | None) -> ClusterState:
    """The nodes and the policy first: jobs take their places on them."""
    state = ClusterState(settings or Settings())
    state.last_at_us = loaded.last_at_us
    for row in loaded.nodes:
        if row.record:
            put_node(state, None, _node_from_row(row))
    if loaded.policy:
        take_policy(state, _policy_from_text(loaded.policy))
    jobs: list[Job] = []
    asked: Counter[str] = Counter()
    waiting: defaultdict[tuple[int, str, str], list[Job]] = defaultdict(list)
    for line in loaded.jobs:
        job = job_from_row(line)
        jobs.append(job)
        asked[line.demand] += 1
        if job.course is FRESH:
            waiting[line.priority, line.demand, job.user if state.queue.fair else ""].append(job)
    enter_recovered(state, jobs, waiting.values())
    for entry in loaded.accounts:  # over those that the jobs have opened by taking their places
        state.usage.accounts[entry.queue] = _account_from_row(entry)
    for text, count in asked.items():
        state.workload.learn(shape_from_text(text).demand, count)
    shapes = {id(job.shape): job.shape for job in jobs}
    state.shapes = {shape: shape for shape in shapes.values()}
    state.demands = {shape.demand: shape.demand for shape in shapes.values()}
    state.last_job = loaded.last_job
    state.last_seq = loaded.last_seq
    return state


def _node_from_row(row: NodeRow) -> Node:
    try:
        return _node_of(row.record)
    except msgspec.DecodeError as error:
        raise _damaged(f"node {row.node}", error) from error


def _account_from_row(row: AccountRow) -> Account:
    try:
        return _account_of(row.record)
    except msgspec.DecodeError as error:
        raise _damaged(f"the usage of queue {row.queue}", error) from error


def _policy_from_text(text: str) -> PolicyChanged:
    try:
        return _policy_of(text)
    except msgspec.DecodeError as error:
        raise _damaged("the policy", error) from error


@lru_cache(maxsize=4096)
def _shape_text(shape: Shape) -> str:
    return _encode(shape).decode()


def _damaged(what: str, error: Exception) -> StoreFailure:
    return StoreFailure(
        f"the store's record of {what} cannot be read: {error}",
        hint="the store was written by another version, or is damaged: restore a backup or use that version",
        what=what,
    )


__all__ = [
    "event_from_row",
    "event_row",
    "events_from_rows",
    "forgotten_row",
    "job_from_row",
    "job_row",
    "node_row",
    "recover",
    "shape_from_text",
]
