"""LogShipping: bytes of the ranks' output come up, what is stored goes back.

Offsets make it safe to send anything again. All but the last byte of a stream is acknowledged as soon as it
is written (a crash of this process loses none of it); the last one when the stream is on disk. So an agent
keeps its file until a power cut here can take nothing, and does not wait for the disk while it sends.
What comes while a batch is being written is the next batch; the disk is asked to sync in pauses.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import grpc.aio

from ...proto.codecs import task_key_message, task_key_of
from ...proto.generated import logs_pb2
from ...proto.limits import CHUNK_BYTES_MAX, PIECES_MAX
from ...proto.payload import Payload
from ...spec.errors import InvalidRequest, LimitExceeded, NotFound, StoreFailure, Unavailable
from ...spec.ids import TaskKey
from ..core.job import Job
from ..logs import LogStore, Part, Stream
from .documents import Documents
from .lookup import Lookup

_log = logging.getLogger(__name__)

SYNC_AFTER_IDLE_S: Final = 0.03
SYNC_EVERY_S: Final = 1.0
GATHERED_MAX: Final = 2
"""Messages of one connection, of at most CHUNK_BYTES_MAX each, that wait while a batch is written."""
STREAMS_MAX: Final = 100_000
"""Streams of one connection."""
_OFFSET_MAX: Final = 1 << 50

_Context = grpc.aio.ServicerContext[Any, Any]
_Requests = AsyncIterator[Payload[logs_pb2.ShipRequest]]


@dataclass(slots=True)
class _Incoming:
    """One stream of one connection. `bytes_max` 0: it is refused."""

    task: TaskKey
    stream: Stream
    bytes_max: int
    size: int = 0


class ShippingService:
    """Role: agent."""

    def __init__(self, lookup: Lookup, documents: Documents, logs: LogStore, *, bytes_max: int) -> None:
        self._lookup = lookup
        self._documents = documents
        self._logs = logs
        self._bytes_max = bytes_max
        self._connections: set[_Connection] = set()

    async def Ship(self, request_iterator: _Requests, context: _Context) -> AsyncIterator[logs_pb2.ShipReply]:
        connection = _Connection(self._logs, self._verdict)
        self._connections.add(connection)
        working = [
            asyncio.create_task(connection.take(request_iterator), name="ship: take"),
            asyncio.create_task(connection.keep_storing(), name="ship: store"),
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


class _Arrival(NamedTuple):
    """One piece. Empty data asks where to go on from."""

    incoming: _Incoming
    offset: int
    data: memoryview


class _Connection:
    """What one agent ships: appended as it comes, synced in the background, acknowledged by stream."""

    def __init__(self, logs: LogStore, verdict: Any) -> None:
        self._logs = logs
        self._verdict = verdict
        self._node = ""
        self._streams: dict[tuple[TaskKey, int], _Incoming] = {}
        self._gathered: asyncio.Queue[list[_Arrival] | None] = asyncio.Queue(GATHERED_MAX)
        self._stored_s = 0.0
        self._dirty_s = 0.0
        self._dirty: dict[Stream, _Incoming] = {}
        self._is_dirty = asyncio.Event()
        self._replies: dict[Stream, logs_pb2.LogStored] = {}
        self._is_answered = asyncio.Event()
        self._over = False
        self._error: BaseException | None = None

    async def take(self, requests: _Requests) -> None:
        """Gather what comes until the agent ends its side."""
        async for request in requests:
            self._node = self._node or request.head.node_id
            await self._gathered.put(await self._arrivals(request))
        await self._gathered.put(None)

    async def keep_storing(self) -> None:
        """Store what was gathered, batch by batch; at the end of the agent's side, sync the rest."""
        while True:
            batch = [await self._gathered.get()]
            while not self._gathered.empty():
                batch.append(self._gathered.get_nowait())
            arrivals = [arrival for message in batch if message is not None for arrival in message]
            await self._append([arrival for arrival in arrivals if arrival.data])
            await self._tell_stored([arrival.incoming for arrival in arrivals if not arrival.data])
            if batch[-1] is None:
                await self._sync(list(self._dirty.values()))
                self._end()
                return

    async def keep_syncing(self) -> None:
        """When nothing has come for a moment, else every second."""
        while True:
            await self._is_dirty.wait()
            await asyncio.sleep(SYNC_AFTER_IDLE_S)
            now_s = time.monotonic()
            if now_s - self._stored_s >= SYNC_AFTER_IDLE_S or now_s - self._dirty_s >= SYNC_EVERY_S:
                self._is_dirty.clear()
                await self._sync(list(self._dirty.values()))

    async def replies(self) -> AsyncIterator[logs_pb2.ShipReply]:
        """The newest of each stream; raises what went wrong."""
        while True:
            await self._is_answered.wait()
            self._is_answered.clear()
            replies, self._replies = self._replies, {}
            if replies:
                yield logs_pb2.ShipReply(stored=replies.values())
            if self._error is not None:
                raise self._error
            if self._over and not self._replies:
                return

    def fail(self, error: BaseException) -> None:
        """End with this error; the first one counts."""
        self._error = self._error or error
        self._end()

    def on_done(self, task: "asyncio.Task[None]") -> None:
        """What goes wrong in one part of the work ends the stream."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def _end(self) -> None:
        self._over = True
        self._is_answered.set()

    async def _arrivals(self, request: Payload[logs_pb2.ShipRequest]) -> list[_Arrival]:
        """The pieces of a message that are wanted."""
        pieces = request.head.pieces
        if len(pieces) > PIECES_MAX or len(request.data) > CHUNK_BYTES_MAX:
            raise InvalidRequest(
                f"{len(pieces)} pieces of {len(request.data)} bytes in one message;"
                f" at most {PIECES_MAX} of {CHUNK_BYTES_MAX} are taken"
            )
        arrivals = []
        at = 0
        for piece in pieces:
            data = request.data[at : at + piece.size]
            at += piece.size
            if len(data) != piece.size or not 0 <= piece.offset <= _OFFSET_MAX:
                raise InvalidRequest(f"{piece.size} bytes at offset {piece.offset}: no part of a log")
            incoming = await self._incoming(task_key_of(piece.task), piece.rank)
            if incoming.bytes_max:
                arrivals.append(_Arrival(incoming, piece.offset, data))
            else:
                self._reply(incoming, 0, refused=True)
        return arrivals

    async def _incoming(self, task: TaskKey, rank: int) -> _Incoming:
        known = self._streams.get((task, rank))
        if known is None:
            _check_room(len(self._streams))
            known = self._streams[task, rank] = await self._verdict(task, rank, self._node)
        return known

    async def _append(self, arrivals: list[_Arrival]) -> None:
        if not arrivals:
            return
        parts = [
            Part(each.incoming.stream, each.offset, each.data, each.incoming.bytes_max) for each in arrivals
        ]
        try:
            sizes = await self._logs.append(parts)
        except OSError as error:
            raise self._disk_failed(error) from error
        self._stored_s = time.monotonic()
        if not self._is_dirty.is_set():
            self._dirty_s = self._stored_s
            self._is_dirty.set()
        for each, size in zip(arrivals, sizes, strict=True):
            each.incoming.size = size
            self._dirty[each.incoming.stream] = each.incoming
            self._reply(each.incoming, size - 1)

    async def _tell_stored(self, asked: list[_Incoming]) -> None:
        """Of those that are asked for. What is not there yet needs no disk."""
        there = []
        for incoming in asked:
            if self._logs.size(incoming.stream):
                there.append(incoming)
            else:
                self._reply(incoming, 0)
        await self._sync(there)

    async def _sync(self, streams: list[_Incoming]) -> None:
        if not streams:
            return
        try:
            sizes = await self._logs.sync([incoming.stream for incoming in streams])
        except OSError as error:
            raise self._disk_failed(error) from error
        for incoming, size in zip(streams, sizes, strict=True):
            if size >= incoming.size:
                self._dirty.pop(incoming.stream, None)
                self._reply(incoming, size)

    def _reply(self, incoming: _Incoming, stored: int, *, refused: bool = False) -> None:
        self._replies[incoming.stream] = logs_pb2.LogStored(
            task=task_key_message(incoming.task),
            rank=incoming.stream.rank,
            stored_bytes=max(stored, 0),
            refused=refused,
        )
        self._is_answered.set()

    def _disk_failed(self, error: OSError) -> StoreFailure:
        _log.error("output of node %s cannot be stored: %s", self._node, error)
        return StoreFailure(
            f"output that node {self._node} ships cannot be stored: {error.strerror}",
            hint="look at the disk of the scheduler's state folder",
        )


def _may_ship(job: Job, task: TaskKey, rank: int, node: str) -> bool:
    """Its ranks only; and of the current attempt only what was placed there."""
    processes = job.demand.processes_per_task
    if not task.task * processes <= rank < (task.task + 1) * processes:
        return False
    if task.attempt != job.attempt:
        return task.attempt < job.attempt and task.task < job.demand.instance_count_max
    return task.task < len(job.tasks) and job.tasks[task.task].node == node


def _check_room(streams: int) -> None:
    if streams >= STREAMS_MAX:
        raise LimitExceeded(f"one node ships {streams} streams over one connection; at most {STREAMS_MAX}")
