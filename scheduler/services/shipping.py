"""LogShipping: bytes of the ranks' output come up, what is stored goes back.

Offsets make it safe to send anything again. All but the last byte of a stream is acknowledged as soon as it
is written (a crash of this process loses none of it); the last one when the stream is on disk. So an agent
keeps its file until a power cut here can take nothing, and does not wait for the disk while it sends.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio

from ...proto.codecs import task_key_message, task_key_of
from ...proto.generated import logs_pb2, logs_pb2_grpc
from ...proto.limits import CHUNK_BYTES_MAX
from ...spec.errors import InvalidRequest, LimitExceeded, NotFound, StoreFailure, Unavailable
from ...spec.ids import TaskKey
from ..core.job import Job
from ..logs import LogStore, Stream
from .documents import Documents
from .lookup import Lookup

_log = logging.getLogger(__name__)

SYNC_AFTER_IDLE_S: Final = 0.03
SYNC_EVERY_S: Final = 1.0
STREAMS_MAX: Final = 100_000
"""Streams of one connection."""
_OFFSET_MAX: Final = 1 << 50

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Incoming:
    """One stream of one connection. `bytes_max` 0: it is refused."""

    task: TaskKey
    stream: Stream
    bytes_max: int
    size: int = 0
    written_s: float = 0.0
    synced_s: float = 0.0


class ShippingService(logs_pb2_grpc.LogShippingServicer):
    """Role: agent."""

    def __init__(self, lookup: Lookup, documents: Documents, logs: LogStore, *, bytes_max: int) -> None:
        self._lookup = lookup
        self._documents = documents
        self._logs = logs
        self._bytes_max = bytes_max
        self._connections: set[_Connection] = set()

    async def Ship(
        self, request_iterator: AsyncIterator[logs_pb2.ShipRequest], context: _Context
    ) -> AsyncIterator[logs_pb2.ShipReply]:
        connection = _Connection(self._logs, self._verdict)
        self._connections.add(connection)
        working = [
            asyncio.create_task(connection.take(request_iterator), name="ship: take"),
            asyncio.create_task(connection.keep_syncing(), name="ship: sync"),
        ]
        for task in working:
            task.add_done_callback(connection.on_done)
        try:
            async for reply in connection.replies():
                yield reply
        finally:
            self._connections.discard(connection)
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    def end_all(self, why: str) -> None:
        """End every stream: the agents dial again, and ask where to go on from."""
        for connection in tuple(self._connections):
            connection.fail(Unavailable(why))

    async def _verdict(self, task: TaskKey, rank: int, node: str) -> _Incoming:
        """Whether this node may ship this rank's output, and how much of it is kept."""
        refused = _Incoming(task, Stream(task.job, task.attempt, rank), 0)
        try:
            job = await self._lookup.job(task.job)
        except NotFound:
            return refused
        if not _may_ship(job, task, rank, node):
            _log.warning("node %s ships rank %d of task %s, which is not its own: refused", node, rank, task)
            return refused
        specs = await self._documents.of_jobs([task.job])
        spec = specs.get(task.job)
        wanted = spec.limits.log_size if spec is not None else self._bytes_max
        return _Incoming(task, refused.stream, min(wanted, self._bytes_max))


class _Connection:
    """What one agent ships: appended as it comes, synced in the background, acknowledged by stream."""

    def __init__(self, logs: LogStore, verdict: Any) -> None:
        self._logs = logs
        self._verdict = verdict
        self._node = ""
        self._streams: dict[tuple[TaskKey, int], _Incoming] = {}
        self._dirty: dict[Stream, _Incoming] = {}
        self._is_dirty = asyncio.Event()
        self._replies: dict[Stream, logs_pb2.ShipReply] = {}
        self._is_answered = asyncio.Event()
        self._over = False
        self._error: BaseException | None = None

    async def take(self, requests: AsyncIterator[logs_pb2.ShipRequest]) -> None:
        """Append what comes until the agent ends its side; then sync the rest."""
        async for request in requests:
            self._node = self._node or request.node_id
            incoming = await self._incoming(request)
            if not incoming.bytes_max:
                self._reply(incoming, 0, refused=True)
            elif request.data:
                await self._append(incoming, request.offset, request.data)
            else:
                await self._sync(incoming)
        for incoming in list(self._dirty.values()):
            await self._sync(incoming)

    async def keep_syncing(self) -> None:
        """A stream that pauses is synced at once, a busy one every second."""
        while True:
            await self._is_dirty.wait()
            await asyncio.sleep(SYNC_AFTER_IDLE_S)
            now_s = time.monotonic()
            due = [incoming for incoming in self._dirty.values() if _is_due(incoming, now_s)]
            await asyncio.gather(*(self._sync(incoming) for incoming in due))
            if not self._dirty:
                self._is_dirty.clear()

    async def replies(self) -> AsyncIterator[logs_pb2.ShipReply]:
        """The newest of each stream; raises what went wrong."""
        while True:
            await self._is_answered.wait()
            self._is_answered.clear()
            replies, self._replies = self._replies, {}
            for reply in replies.values():
                yield reply
            if self._error is not None:
                raise self._error
            if self._over and not self._replies:
                return

    def fail(self, error: BaseException) -> None:
        """End with this error; the first one counts."""
        self._error = self._error or error
        self._over = True
        self._is_answered.set()

    def on_done(self, task: "asyncio.Task[None]") -> None:
        """Taking or syncing has ended: so does the stream."""
        if not task.cancelled() and self._error is None:
            self._error = task.exception()
        self._over = True
        self._is_answered.set()

    async def _incoming(self, request: logs_pb2.ShipRequest) -> _Incoming:
        task = task_key_of(request.task)
        known = self._streams.get((task, request.rank))
        if known is None:
            _check_room(len(self._streams))
            known = self._streams[task, request.rank] = await self._verdict(task, request.rank, self._node)
        if len(request.data) > CHUNK_BYTES_MAX or not 0 <= request.offset <= _OFFSET_MAX:
            raise InvalidRequest(f"{len(request.data)} bytes at offset {request.offset}: no part of a log")
        return known

    async def _append(self, incoming: _Incoming, offset: int, data: bytes) -> None:
        try:
            incoming.size = await self._logs.append(incoming.stream, offset, data, incoming.bytes_max)
        except OSError as error:
            raise _disk_failed(incoming, error) from error
        incoming.written_s = time.monotonic()
        if incoming.stream not in self._dirty:
            incoming.synced_s = incoming.written_s
            self._dirty[incoming.stream] = incoming
            self._is_dirty.set()
        self._reply(incoming, incoming.size - 1)

    async def _sync(self, incoming: _Incoming) -> None:
        try:
            size = await self._logs.sync(incoming.stream)
        except OSError as error:
            raise _disk_failed(incoming, error) from error
        incoming.synced_s = time.monotonic()
        if size >= incoming.size:
            self._dirty.pop(incoming.stream, None)
        self._reply(incoming, size)

    def _reply(self, incoming: _Incoming, stored: int, *, refused: bool = False) -> None:
        self._replies[incoming.stream] = logs_pb2.ShipReply(
            task=task_key_message(incoming.task),
            rank=incoming.stream.rank,
            stored_bytes=max(stored, 0),
            refused=refused,
        )
        self._is_answered.set()


def _may_ship(job: Job, task: TaskKey, rank: int, node: str) -> bool:
    """Its ranks only; and of the current attempt only what was placed there."""
    processes = job.demand.processes_per_task
    if not task.task * processes <= rank < (task.task + 1) * processes:
        return False
    if task.attempt != job.attempt:
        return task.attempt < job.attempt and task.task < job.demand.instance_count_max
    return task.task < len(job.tasks) and job.tasks[task.task].node == node


def _is_due(incoming: _Incoming, now_s: float) -> bool:
    return now_s - incoming.written_s >= SYNC_AFTER_IDLE_S or now_s - incoming.synced_s >= SYNC_EVERY_S


def _check_room(streams: int) -> None:
    if streams >= STREAMS_MAX:
        raise LimitExceeded(f"one node ships {streams} streams over one connection; at most {STREAMS_MAX}")


def _disk_failed(incoming: _Incoming, error: OSError) -> StoreFailure:
    _log.error("output of %s cannot be stored: %s", incoming.stream, error)
    return StoreFailure(
        f"output of task {incoming.task} rank {incoming.stream.rank} cannot be stored: {error.strerror}",
        hint="look at the disk of the scheduler's state folder",
    )
