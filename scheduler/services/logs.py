"""Logs: a job's output, from an offset, then live until every byte has come.

A follower is woken by arrivals and by the job's events. It reads one chunk at a time and only when the one
before was taken, so a slow follower costs nothing but its file. Attempts follow one another whole.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import grpc.aio

from ...proto.codecs import job_id_of
from ...proto.generated import logs_pb2
from ...proto.limits import CHUNK_BYTES_FIRST, CHUNK_BYTES_MAX
from ...proto.payload import encode
from ...spec.errors import InvalidRequest, NotFound, StoreFailure, Unavailable
from ...spec.ids import Attempt, JobId
from ...spec.lifecycle import NodeContact
from ..core.job import Job, TaskState
from ..core.state import ClusterState
from ..core.task_events import TaskEnded, TaskStarted
from ..logs import Bell, LogStore, Stream
from ..records import event_from_row
from .lookup import Lookup

LOST_WAIT_S: Final = 5.0
"""How long an attempt that is over is waited for when its node is away: no byte for so long, and it ends."""
LATE_WAIT_S: Final = 60.0
"""The same when its node is there."""
_LOOK_AGAIN_S: Final = 1.0
"""How often those bounds are looked at; everything else wakes the follower."""
_POSITIONS_MAX: Final = 100_000

_Context = grpc.aio.ServicerContext[Any, Any]


class LogService:
    """Role: client."""

    def __init__(self, lookup: Lookup, logs: LogStore) -> None:
        self._lookup = lookup
        self._logs = logs

    async def Follow(self, request: logs_pb2.FollowRequest, context: _Context) -> AsyncIterator[bytes]:
        job = await self._lookup.job(job_id_of(request.job))
        _check(request, job)
        with self._logs.following(job.number) as bell:
            watching = asyncio.create_task(self._watch(job.number, bell)) if request.follow else None
            try:
                async for chunk in _Follower(self._lookup, self._logs, bell, request).chunks():
                    yield chunk
            except OSError as error:
                raise StoreFailure(f"the output of job {request.job} cannot be read: {error}") from error
            finally:
                if watching is not None:
                    watching.cancel()

    async def _watch(self, number: JobId, bell: Bell) -> None:
        """Ring at each event of the job. A watch that is cut off is taken up again."""
        while True:
            watch = self._lookup.loop.watch(number)
            try:
                async for _ in watch:
                    bell.ring()
                bell.ring()
                return
            except Unavailable:
                bell.ring()
                await asyncio.sleep(_LOOK_AGAIN_S)
            finally:
                watch.close()


@dataclass(slots=True)
class _Follower:
    """Where one call stands."""

    lookup: Lookup
    logs: LogStore
    bell: Bell
    request: logs_pb2.FollowRequest
    at: dict[Stream, int] = field(default_factory=dict)
    quiet_since_s: float = 0.0
    chunk_bytes: int = CHUNK_BYTES_FIRST

    async def chunks(self) -> AsyncIterator[bytes]:
        number = job_id_of(self.request.job)
        job = await self.lookup.job(number)
        attempt = self._first_attempt(job)
        self._start(number, attempt)
        looked_at: Attempt | None = None
        while True:
            if self.logs.ending:
                raise Unavailable("the scheduler is stopping", hint="follow again in a moment")
            self.bell.event.clear()
            grown, self.bell.grown = self.bell.grown, set()
            if not _is_settled(job):
                job = await self.lookup.job(number)
            attempt = attempt or job.attempt
            streams = sorted(grown) if looked_at == attempt else self.logs.streams(number, attempt)
            looked_at = attempt
            async for chunk in self._new_chunks(attempt, streams):
                self.quiet_since_s = time.monotonic()
                yield chunk
            if not self.request.follow:
                return
            if self.bell.event.is_set():
                continue
            if await self._is_whole(job, attempt):
                if self.request.attempt or (job.over and attempt == job.attempt):
                    return
                if attempt < job.attempt:
                    attempt = Attempt(attempt + 1)
                    self.quiet_since_s = time.monotonic()
                    continue
            await self._wait()

    def _start(self, number: JobId, attempt: Attempt) -> None:
        """Where each stream that is there begins for this caller; others begin at 0."""
        self.quiet_since_s = time.monotonic()
        for position in self.request.positions:
            self.at[Stream(number, Attempt(position.attempt), position.rank)] = position.offset
        if self.request.positions or not self.request.offset:
            return
        for stream in self.logs.streams(number, attempt):
            size = self.logs.size(stream)
            offset = self.request.offset
            self.at[stream] = offset if offset >= 0 else max(0, size + offset)

    async def _new_chunks(self, attempt: Attempt, streams: list[Stream]) -> AsyncIterator[bytes]:
        """What there is beyond where we stand, the streams in turn, one chunk each."""
        streams = [
            each for each in streams if each.attempt == attempt and self.request.rank in (-1, each.rank)
        ]
        while streams:
            more = []
            for stream in streams:
                chunk = await self._next_chunk(stream)
                if chunk is not None:
                    yield chunk
                    more.append(stream)
            streams = more

    async def _next_chunk(self, stream: Stream) -> bytes | None:
        at = self.at.get(stream, 0)
        piece = await self.logs.read(stream, at, self.chunk_bytes)
        if piece.end <= at:
            return None
        self.at[stream] = piece.end
        self.chunk_bytes = min(2 * self.chunk_bytes, CHUNK_BYTES_MAX)
        head = logs_pb2.LogChunk(
            job=stream.job,
            attempt=stream.attempt,
            rank=stream.rank,
            offset=piece.offset,
            dropped_bytes=piece.dropped_bytes,
        )
        return encode(head, piece.data)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await self.bell.event.wait()
        except TimeoutError:
            return

    async def _is_whole(self, job: Job, attempt: Attempt) -> bool:
        """No byte of the attempt will come any more, or has come for too long."""
        if not attempt:
            return job.over
        current = attempt == job.attempt
        if current and not job.over and any(task.state is not TaskState.ENDED for task in job.tasks):
            return False
        sizes = _sizes_now(job) if current else await self._sizes_in_history(job.number, attempt)
        noted = self.logs.noted_sizes(job.number, attempt) if None in sizes.values() else {}
        if all(self._has_come(job, attempt, task, said, noted) for task, said in sizes.items()):
            return True
        quiet_s = time.monotonic() - self.quiet_since_s
        if quiet_s < LOST_WAIT_S:
            return False
        nodes = {task.node for task in job.tasks} if current else set()
        present = await self.lookup.loop.read(lambda state: _all_connected(state, nodes))
        return not present or quiet_s >= LATE_WAIT_S

    def _has_come(
        self, job: Job, attempt: Attempt, task: int, said: tuple[int, ...] | None, noted: dict[int, int]
    ) -> bool:
        """Every byte of the wanted ranks of a task. None: it never said how many there are."""
        processes = job.demand.processes_per_task
        ranks = range(task * processes, (task + 1) * processes)
        wanted = [rank for rank in ranks if self._is_wanted(rank)]
        sizes = dict(zip(ranks, said, strict=False)) if said is not None else noted
        if said is None and not all(rank in noted for rank in wanted):
            return False
        return all(self.at.get(Stream(job.number, attempt, rank), 0) >= sizes.get(rank, 0) for rank in wanted)

    async def _sizes_in_history(self, number: JobId, attempt: Attempt) -> dict[int, tuple[int, ...] | None]:
        """As `_sizes_now`, of an attempt that was followed by another."""
        sizes: dict[int, tuple[int, ...] | None] = {}
        for row in await asyncio.to_thread(self.lookup.store.events, job=number):
            if row.kind not in ("TaskStarted", "TaskEnded"):
                continue
            event = event_from_row(row)
            if isinstance(event, TaskStarted | TaskEnded) and event.task.attempt == attempt:
                sizes[event.task.task] = event.log_bytes if isinstance(event, TaskEnded) else None
        return sizes

    def _is_wanted(self, rank: int) -> bool:
        return self.request.rank in (-1, rank)

    def _first_attempt(self, job: Job) -> Attempt:
        """0: the job has not started yet; the attempt that comes then."""
        if self.request.attempt:
            return Attempt(self.request.attempt)
        named = [position.attempt for position in self.request.positions]
        return Attempt(min(named)) if named else job.attempt


def _is_settled(job: Job) -> bool:
    """Nothing about it changes any more: what is over is in the store, where looking costs."""
    return job.over and all(task.state is TaskState.ENDED for task in job.tasks)


def _sizes_now(job: Job) -> dict[int, tuple[int, ...] | None]:
    """By task that ever ran: the final sizes of its ranks' streams; None: it never said."""
    return {
        task.task: task.log_bytes if task.state is TaskState.ENDED else None
        for task in job.tasks
        if task.state is not TaskState.ASSIGNED
    }


def _check(request: logs_pb2.FollowRequest, job: Job) -> None:
    ranks = job.demand.instance_count_max * job.demand.processes_per_task
    if not -1 <= request.rank < ranks:
        raise InvalidRequest(f"job {job.number} has ranks 0 to {ranks - 1}, and no rank {request.rank}")
    if not 0 <= request.attempt <= job.attempt:
        raise NotFound(f"job {job.number} has had {job.attempt} attempts, and no attempt {request.attempt}")
    if len(request.positions) > _POSITIONS_MAX or any(p.offset < 0 for p in request.positions):
        raise InvalidRequest("the positions to go on from make no sense")


def _all_connected(state: ClusterState, nodes: set[Any]) -> bool:
    return bool(nodes) and all(
        node in state.nodes and state.nodes[node].contact is NodeContact.CONNECTED for node in nodes
    )
