"""Jobs: submit, list, get, cancel, why, timeline, watch. What a reply says was committed before it is sent.

A live job is read from the loop, a finished one from the store; a listing is read from the store alone.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import grpc.aio

from ...proto.codecs import job_id_of, page_of
from ...proto.generated import jobs_pb2
from ...proto.limits import PAGE_BYTES_MAX, SUBMIT_JOBS_MAX
from ...spec.errors import Conflict, InvalidRequest, NotFound
from ...spec.ids import JobId, Micros, NodeId
from ...spec.lifecycle import TERMINAL, JobState
from ...spec.problems import escaped
from ...spec.retention import Retention
from ..core import stimuli
from ..core.attempt_events import AttemptStarted, PlacesClaimed
from ..core.events import Event, node_of
from ..core.job import Job
from ..core.ledger import ledger_of
from ..core.paces import pace_lines
from ..core.reason import Reason
from ..core.reasons import SMALLER, ending_reason, why
from ..core.reasons import Why as Told
from ..core.state import ClusterState
from ..forecaster import Forecaster
from ..records import event_from_row, event_row, events_from_rows, job_from_row
from ..store.base import EventRow
from .checkpoints import CheckpointCalls
from .checks import check_asked
from .documents import Documents
from .expected import expected_reasons
from .holds import HoldCalls
from .lookup import Lookup, no_job
from .messages import add_document, add_output, entry_message, job_message, reason_message
from .pinning import Pinning
from .starts import output_folders
from .submissions import new_job, parsed

_SECOND_US: Final = 1_000_000
_WAITS_BUDGET_S: Final = 0.005
"""Of processor time: where others have the processor, the list is not what takes long."""
_EVENTS_AT_ONCE: Final = 1000
_PATIENCE_MAX_S: Final = 10.0

_Context = grpc.aio.ServicerContext[Any, Any]


class JobService(HoldCalls, CheckpointCalls):
    """Role: client."""

    def __init__(
        self,
        lookup: Lookup,
        documents: Documents,
        pinning: Pinning,
        forecaster: Forecaster,
        *,
        storage: Path,
        now_us: Callable[[], int],
    ) -> None:
        self._lookup = lookup
        self._loop = lookup.loop
        self._store = lookup.store
        self._now_us = now_us
        self._documents = documents
        self._pinning = pinning
        self._forecaster = forecaster
        self._storage = storage

    async def Submit(self, request: jobs_pb2.SubmitRequest, context: _Context) -> jobs_pb2.SubmitReply:
        _check_submit(request)
        specs = await self._pinning.pinned(await parsed(self._documents, request.jobs))
        jobs = tuple(new_job(spec, self._documents.canonical(spec)) for spec in specs)
        if request.reproduces:
            jobs = tuple([await self._reproducing(one, request.reproduces) for one in jobs])
        done = await self._loop.submit(stimuli.Submit(request.key, request.user, jobs))
        if not done.repeated:
            self._documents.remember(done.jobs, specs)
        return jobs_pb2.SubmitReply(jobs=done.jobs, repeated_call=done.repeated)

    async def List(self, request: jobs_pb2.ListJobsRequest, context: _Context) -> jobs_pb2.ListJobsReply:
        limit, before = page_of(request.page)
        states = [_state(name) for name in request.states]
        rows = await asyncio.to_thread(
            self._store.jobs,
            states=states,
            user=request.user,
            name_contains=request.name_contains,
            before=None if before is None else JobId(before),
            limit=limit,
        )
        jobs = [job_from_row(row) for row in rows]
        names, waits = await self._loop.read(
            lambda state: (_names(state, jobs), _waits(state, jobs, self._now_us()))
        )
        reply = jobs_pb2.ListJobsReply()
        size = 0
        for job in jobs:
            view = job_message(job, node_names=names, why=waits.get(job.number))
            size += view.ByteSize()
            if reply.jobs and size > PAGE_BYTES_MAX:
                break
            reply.jobs.append(view)
        if len(rows) == limit or len(reply.jobs) < len(rows):
            reply.next_cursor = str(reply.jobs[-1].job)
        return reply

    async def Get(self, request: jobs_pb2.GetJobRequest, context: _Context) -> jobs_pb2.JobView:
        return await self._view(job_id_of(request.job))

    async def Cancel(self, request: jobs_pb2.CancelRequest, context: _Context) -> jobs_pb2.JobView:
        number = job_id_of(request.job)
        if not 0 <= request.grace_s <= 86_400:
            raise InvalidRequest(f"grace_s is {request.grace_s}; expected 0 to 86400 seconds")
        grace_us = round(request.grace_s * _SECOND_US) or None
        try:
            await self._loop.submit(stimuli.Cancel(number, grace_us, by="a client"))
        except NotFound:
            job = await self._lookup.job(number)
            # A cancel whose reply was lost is asked again: what it wanted is so.
            if job.state is not JobState.CANCELLED:
                raise Conflict(
                    f"job {number} is over: {job.state}",
                    hint="there is nothing to cancel",
                    job=number,
                    state=job.state,
                ) from None
        return await self._view(number)

    async def Why(self, request: jobs_pb2.GetJobRequest, context: _Context) -> jobs_pb2.WhyReply:
        job, view, said = await self._seen(job_id_of(request.job))
        told = None
        if job.state is JobState.QUEUED and not said.never:
            told = await self._forecaster.standing(min(request.patience_s, _PATIENCE_MAX_S))
        more: list[Reason] = []
        if not said.never:
            more = await self._loop.read(
                lambda state: expected_reasons(state, job, told, Micros(self._now_us()))
            )
        return jobs_pb2.WhyReply(
            job=view,
            reasons=[reason_message(reason) for reason in (*said.reasons, *more)],
            never=said.never,
        )

    async def Timeline(self, request: jobs_pb2.GetJobRequest, context: _Context) -> jobs_pb2.TimelineReply:
        number = job_id_of(request.job)
        view = await self._view(number)
        rows = [row async for row in self._history(number, 0)]
        events = events_from_rows(rows)
        names = await self._loop.read(lambda state: _names_of(state, _nodes_in(events)))
        ledger = ledger_of(events, Micros(self._now_us()))
        reply = jobs_pb2.TimelineReply(job=view, ledger=jobs_pb2.Ledger(**asdict(ledger)))
        size = view.ByteSize()
        for row, event in zip(rows, events, strict=True):
            entry = entry_message(row, event, names)
            size += entry.ByteSize()
            if size > PAGE_BYTES_MAX:
                break  # Watch gives the rest, from a seq on
            reply.entries.append(entry)
        return reply

    async def Watch(
        self, request: jobs_pb2.WatchRequest, context: _Context
    ) -> AsyncIterator[jobs_pb2.WatchReply]:
        number = job_id_of(request.job)
        if request.after_seq < 0:
            raise InvalidRequest(f"after_seq is {request.after_seq}; expected 0 or the seq of an entry")
        watch = self._loop.watch(number)  # before the history is read, so that nothing falls between
        try:
            seen = request.after_seq
            view = await self._view(number)
            async for row in self._history(number, seen):
                seen = row.seq
                yield jobs_pb2.WatchReply(entry=await self._entry(row), job=view)
            if JobState(view.state) in TERMINAL:
                return
            async for committed in watch:
                if committed.seq > seen:
                    seen = committed.seq
                    row = event_row(committed.seq, committed.event)
                    view = await self._view(number)
                    yield jobs_pb2.WatchReply(entry=await self._entry(row), job=view)
        finally:
            watch.close()

    async def _history(self, number: JobId, after_seq: int) -> AsyncIterator[EventRow]:
        while True:
            rows = await asyncio.to_thread(
                self._store.events, job=number, after_seq=after_seq, limit=_EVENTS_AT_ONCE
            )
            for row in rows:
                yield row
            if len(rows) < _EVENTS_AT_ONCE:
                return
            after_seq = rows[-1].seq

    async def _entry(self, row: EventRow) -> jobs_pb2.TimelineEntry:
        event = event_from_row(row)
        names = await self._loop.read(lambda state: _names_of(state, _nodes_in([event])))
        return entry_message(row, event, names)

    async def _view(self, number: JobId) -> jobs_pb2.JobView:
        """A job with its document."""
        return (await self._seen(number))[1]

    async def _seen(self, number: JobId) -> tuple[Job, jobs_pb2.JobView, Told]:
        """A job, and why it waits, runs or ended: live from the loop, over from the store."""
        found = await self._loop.read(lambda state: _live(state, number, self._now_us()))
        pace: list[str] = []
        size = ""
        if found is not None:
            job, names, said, pace = found
            size = next((reason.text for reason in said.reasons if reason.code == SMALLER), "")
            document = (await asyncio.to_thread(self._store.documents, [number])).get(number)
        else:
            row = await asyncio.to_thread(self._store.job, number)
            if row is None:
                raise no_job(number)
            job, document = job_from_row(row), row.document
            said = Told((ending_reason(job),))
            names = await self._loop.read(lambda state: _names(state, [job]))
        reason = said.reasons[0] if found is not None else None
        view = job_message(job, node_names=names, why=reason, pace=pace, size=size)
        add_output(view, job)
        if document is not None:
            self._add_document(view, job, document)
        outputs = await self._loop.read_registry(lambda registry: registry.outputs.get(number))
        if outputs is not None and outputs.refused:
            view.warnings.add(key="outputs", text=f"not registered: {outputs.refused}")
        return job, view, said

    async def _policy(self, number: JobId) -> Retention:
        """What its document says to keep; the default where this version cannot read it."""
        spec = (await self._documents.of_jobs([number])).get(number)
        return spec.checkpoint.retention if spec is not None else Retention()

    def _add_document(self, view: jobs_pb2.JobView, job: Job, document: str) -> None:
        try:
            spec = self._documents.parse(document)
        except InvalidRequest as error:  # another version's: it can still be shown
            view.document = document
            view.warnings.add(key="", text=f"this version cannot read the stored document: {error}")
            return
        outputs = output_folders(self._storage, job.number, job.attempt, spec) if job.attempt else {}
        add_document(view, document, spec, outputs)


def _check_submit(request: jobs_pb2.SubmitRequest) -> None:
    check_asked(request.key, request.user)
    if not 1 <= len(request.jobs) <= SUBMIT_JOBS_MAX:
        raise InvalidRequest(f"{len(request.jobs)} jobs in one call; expected 1 to {SUBMIT_JOBS_MAX}")
    if request.reproduces and len(request.jobs) > 1:
        raise InvalidRequest(f"{len(request.jobs)} jobs that run job {request.reproduces} again; expected 1")


def _state(name: str) -> JobState:
    try:
        return JobState(name)
    except ValueError:
        raise InvalidRequest(
            f"there is no job state {escaped(name[:40])!r}", hint=f"expected one of {', '.join(JobState)}"
        ) from None


def _live(
    state: ClusterState, number: JobId, now_us: int
) -> tuple[Job, dict[NodeId, str], Told, list[str]] | None:
    job = state.jobs.get(number)
    if job is None:
        return None
    return job, _names(state, [job]), why(state, job, Micros(now_us)), pace_lines(state, job)


def _waits(state: ClusterState, jobs: Iterable[Job], now_us: int) -> dict[JobId, Reason]:
    """Why they wait, as far as it can be said without holding up the loop; `Why` says the rest."""
    until_s = time.thread_time() + _WAITS_BUDGET_S
    said: dict[JobId, Reason] = {}
    for listed in jobs:
        job = state.jobs.get(listed.number)
        if job is None or job.placed:
            continue
        if time.thread_time() > until_s:
            break
        said[job.number] = why(state, job, Micros(now_us)).reasons[0]
    return said


def _nodes_in(events: Iterable[Event]) -> set[NodeId]:
    nodes = {place.node for event in events if isinstance(event, AttemptStarted) for place in event.places}
    nodes |= {node for event in events if isinstance(event, PlacesClaimed) for node in event.nodes}
    return nodes | {node for event in events if (node := node_of(event)) is not None}


def _names(state: ClusterState, jobs: Iterable[Job]) -> dict[NodeId, str]:
    return _names_of(state, {node for job in jobs for node in _nodes_of(job)})


def _nodes_of(job: Job) -> Iterable[NodeId]:
    """Those of its last attempt, and that of the rank whose failure ended the attempt before."""
    yield from (task.node for task in job.tasks)
    failure = job.course.ending.failure if job.course.ending is not None else None
    if failure is not None and failure.node is not None:
        yield failure.node


def _names_of(state: ClusterState, nodes: Iterable[NodeId]) -> dict[NodeId, str]:
    return {node: state.nodes[node].name for node in nodes if node in state.nodes}
