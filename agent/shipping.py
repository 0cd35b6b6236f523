"""Ships the ranks' output to the scheduler, by offset: nothing twice, nothing missing, whoever dies.

What counts is the scheduler's "stored up to here"; a new stream asks for it before it sends a byte. Bytes
in flight are bounded, in all and per file, and files take turns chunk by chunk; what many files have to
say at one time goes in one message. A stretch that the log's
bound has dropped (a hole in the file) is skipped: the next offset jumps, and the scheduler sees how far.
"""

import asyncio
import errno
import logging
import os
import time
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import grpc

from ..proto.codecs import task_key_message, task_key_of
from ..proto.generated import logs_pb2
from ..proto.limits import CHUNK_BYTES_FIRST, CHUNK_BYTES_MAX, PIECES_MAX
from ..proto.payload import LogShippingStub, encode
from ..spec.errors import InvalidRequest
from ..spec.ids import TaskKey
from .streams import Backoff, Dial, StreamLost, describe, first_to_end, next_message, write_message

log = logging.getLogger(__name__)

FILE_WINDOW_BYTES: Final = 2 << 20
WINDOW_BYTES: Final = 8 << 20
OPEN_FILES_MAX: Final = 256

LOOK_BUSY_S: Final = 0.02
LOOK_IDLE_S: Final = 0.06
BUSY_S: Final = 2.0

SILENT_S: Final = 20.0
"""With bytes in flight and no answer for this long, the stream is given up."""


_Call = grpc.aio.StreamStreamCall[bytes, logs_pb2.ShipReply]


class Sources(Protocol):
    """What the shipper needs of agent.supervisor.Supervisor."""

    def log_files(self, key: TaskKey) -> dict[int, Path]: ...


@dataclass(slots=True)
class _Tail:
    """One rank's file and how far it has come. `stored` None: not yet told where to go on from."""

    key: TaskKey
    rank: int
    path: Path
    stored: int | None = None
    sent: int = 0
    size: int = 0
    asked: bool = False
    refused: bool = False

    @property
    def flying(self) -> int:
        return self.sent - self.stored if self.stored is not None else 0


@dataclass(slots=True)
class _Watched:
    """A task's tails, and who waits for them to be stored."""

    tails: dict[int, _Tail] = field(default_factory=dict)
    stored_more: asyncio.Event = field(default_factory=asyncio.Event)


class LogShipper:
    """Tails and ships until cancelled. All of it belongs to the event loop's thread."""

    def __init__(self, node_id: str, sources: Sources, dial: Dial) -> None:
        self._node_id = node_id
        self._sources = sources
        self._dial = dial
        self._watched: dict[TaskKey, _Watched] = {}
        self._asking: deque[_Tail] = deque()
        self._ready: OrderedDict[tuple[TaskKey, int], _Tail] = OrderedDict()
        self._flying = 0
        self._message_bytes = CHUNK_BYTES_FIRST
        self._may_dial = asyncio.Event()
        self._dial_now = asyncio.Event()
        self._wake = asyncio.Event()
        self._heard_s = 0.0
        self._grew_s = 0.0
        self._files = _OpenFiles()

    @property
    def flying_bytes(self) -> int:
        """Sent and not yet known to be stored."""
        return self._flying

    def on_connected(self, connected: bool) -> None:
        """The session is up or gone: while it is gone, no stream is dialled (one that stands goes on)."""
        if connected:
            self._may_dial.set()
            self._dial_now.set()
        else:
            self._may_dial.clear()

    def watch(self, key: TaskKey) -> None:
        """Ship this task's output from now on; again and again is harmless."""
        watched = self._watched.setdefault(key, _Watched())
        for rank, path in self._sources.log_files(key).items():
            if rank not in watched.tails:
                tail = watched.tails[rank] = _Tail(key, rank, path)
                self._measure(tail)

    def look(self, key: TaskKey) -> None:
        """See now, not at the next turn, how far this task's output has grown."""
        watched = self._watched.get(key)
        for tail in watched.tails.values() if watched else ():
            self._measure(tail)

    def drop(self, key: TaskKey) -> None:
        """No more of this task."""
        watched = self._watched.pop(key, None)
        for tail in watched.tails.values() if watched else ():
            self._flying -= tail.flying
            self._ready.pop((key, tail.rank), None)
            self._files.close(tail.path)

    async def wait_shipped(self, key: TaskKey) -> None:
        """Of a task that has ended: return when every byte of its output is stored, or is not wanted."""
        self.look(key)
        while (watched := self._watched.get(key)) is not None:
            if all(self._is_stored(tail) for tail in watched.tails.values()):
                return
            watched.stored_more.clear()
            await watched.stored_more.wait()

    def _is_stored(self, tail: _Tail) -> bool:
        if tail.refused:
            return True
        size = _size(tail.path)
        if size == 0 or tail.stored is None:
            return size == 0
        try:
            return tail.stored >= size or self._files.next_data(tail.path, tail.stored) is None
        except OSError as error:
            self._give_up(tail, error)
            return True

    def _give_up(self, tail: _Tail, error: OSError) -> None:
        """The file is gone, or no file any more: nothing of it can be had."""
        log.error("task %s rank %d: its output cannot be read: %s", tail.key, tail.rank, error)
        tail.refused = True

    # The stream's life.

    async def run(self) -> None:
        """Look for growth and keep a stream to the scheduler."""
        await first_to_end(self._keep_looking(), self._keep_streaming())

    async def _keep_streaming(self) -> None:
        backoff = Backoff()
        while True:
            await self._may_dial.wait()
            self._dial_now.clear()
            backoff.began()
            try:
                await self._one_stream()
            except StreamLost as lost:
                why = str(lost)
            except grpc.aio.AioRpcError as error:
                why = describe(error)
            except InvalidRequest as error:
                why = f"the scheduler sent what makes no sense: {error.message}"
            wait_s = backoff.failed()
            log.info("the log stream broke (%s); trying again in %.1f s", why, wait_s)
            # The session has its own pacing: when it is back, so is this stream.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._dial_now.wait()

    async def _one_stream(self) -> None:
        self._start_over()
        channel = self._dial()
        try:
            call = LogShippingStub(channel).Ship()
            await first_to_end(self._keep_reading(call), self._keep_writing(call))
        except TimeoutError as error:
            raise StreamLost(f"no answer for {SILENT_S:.0f} s") from error
        finally:
            await channel.close(grace=None)

    def _start_over(self) -> None:
        """Forget what was in flight, ask for every file anew."""
        self._ready.clear()
        self._asking.clear()
        self._flying = 0
        self._message_bytes = CHUNK_BYTES_FIRST
        for watched in self._watched.values():
            for tail in watched.tails.values():
                tail.stored, tail.sent, tail.asked = None, 0, False
                self._mark(tail)

    # Down: how far the scheduler has stored.

    async def _keep_reading(self, call: _Call) -> None:
        while True:
            reply: logs_pb2.ShipReply = await next_message(call)
            self._heard_s = time.monotonic()
            self._message_bytes = min(2 * self._message_bytes, CHUNK_BYTES_MAX)
            for stored in reply.stored:
                self._on_stored(stored)
            self._wake.set()  # there is room again, also for others than those

    def _on_stored(self, stored: logs_pb2.LogStored) -> None:
        watched = self._watched.get(task_key_of(stored.task))
        tail = watched.tails.get(stored.rank) if watched else None
        if watched is None or tail is None:
            return
        before = tail.flying
        if stored.refused:
            log.info("task %s rank %d: the scheduler wants no more of its output", tail.key, tail.rank)
            tail.refused = True
            tail.stored = tail.sent
        elif tail.stored is None or stored.stored_bytes > tail.stored:
            tail.stored = stored.stored_bytes
            tail.sent = max(tail.sent, tail.stored)
        self._flying += tail.flying - before
        self._mark(tail)
        watched.stored_more.set()

    # Up: chunks in turn.

    def _mark(self, tail: _Tail) -> None:
        """Give this file a turn if it has something to send and may; silent ones are not even asked for."""
        if tail.refused or tail.size <= tail.sent or tail.flying >= FILE_WINDOW_BYTES:
            return
        if tail.stored is not None:
            self._ready[(tail.key, tail.rank)] = tail
        elif not tail.asked:
            tail.asked = True
            self._asking.append(tail)
        self._wake.set()

    async def _keep_writing(self, call: _Call) -> None:
        node_id = self._node_id
        while True:
            self._wake.clear()
            request = logs_pb2.ShipRequest(node_id=node_id)
            data = self._fill(request)
            if not request.pieces:
                await self._wait_for_work()
                continue
            node_id = ""
            await write_message(call, encode(request, *data), SILENT_S)

    async def _wait_for_work(self) -> None:
        asked_s = time.monotonic()
        while self._flying and not self._wake.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._wake.wait()
            if self._flying and time.monotonic() - max(asked_s, self._heard_s) > SILENT_S:
                raise StreamLost(f"no answer for {SILENT_S:.0f} s")
        await self._wake.wait()

    def _fill(self, request: logs_pb2.ShipRequest) -> list[bytes]:
        """Put in questions and chunks in turn, as many as one message holds; returns the chunks."""
        while self._asking and len(request.pieces) < PIECES_MAX:
            tail = self._asking.popleft()
            if tail.stored is None and tail.key in self._watched:
                request.pieces.add(task=task_key_message(tail.key), rank=tail.rank)
        chunks = []
        room = self._message_bytes
        while self._ready and room and self._flying < WINDOW_BYTES and len(request.pieces) < PIECES_MAX:
            _, tail = self._ready.popitem(last=False)
            offset, data = self._next_chunk(tail, room)
            if data:
                request.pieces.add(
                    task=task_key_message(tail.key), rank=tail.rank, offset=offset, size=len(data)
                )
                chunks.append(data)
                room -= len(data)
        return chunks

    def _next_chunk(self, tail: _Tail, room: int) -> tuple[int, bytes]:
        """Where it stands and at most `room` bytes; none when none are to be had."""
        try:
            offset, data = self._files.read(tail.path, tail.sent, room)
        except OSError as error:
            self._give_up(tail, error)
            self._watched[tail.key].stored_more.set()
            return 0, b""
        if not data:
            tail.size = min(tail.size, tail.sent)
            return 0, b""
        before = tail.flying
        tail.sent = offset + len(data)
        # A full chunk has probably more behind it: do not wait for the next look.
        tail.size = max(tail.size, tail.sent + (len(data) == room))
        self._flying += tail.flying - before
        self._mark(tail)
        return offset, data

    # Growth.

    async def _keep_looking(self) -> None:
        while True:
            now_s = time.monotonic()
            for watched in self._watched.values():
                for tail in watched.tails.values():
                    self._measure(tail)
            await asyncio.sleep(LOOK_BUSY_S if now_s - self._grew_s < BUSY_S else LOOK_IDLE_S)

    def _measure(self, tail: _Tail) -> None:
        size = _size(tail.path)
        if size > tail.size:
            tail.size = size
            self._grew_s = time.monotonic()
            self._mark(tail)

    def close(self) -> None:
        self._files.close_all()


class _OpenFiles:
    """A bounded number of open files, the least used closed first."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def _descriptor(self, path: Path) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            self._open[path] = descriptor
            if len(self._open) > OPEN_FILES_MAX:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(path)
        return descriptor

    def read(self, path: Path, offset: int, length: int) -> tuple[int, bytes]:
        """Bytes from `offset`, or from the first byte after it that has not been dropped; empty at the end.

        The bound may drop a stretch while it is read, which then reads as zeros: what is a hole afterwards
        was not read.
        """
        while (start := self.next_data(path, offset)) is not None:
            data = os.pread(self._descriptor(path), length, start)
            if self.next_data(path, start) == start or not data:
                return start, data
            offset = start
        return offset, b""

    def next_data(self, path: Path, offset: int) -> int | None:
        """The first offset from `offset` on that has not been dropped; None when nothing is left there."""
        descriptor = self._descriptor(path)
        try:
            return os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno != errno.EINVAL:
                raise
        # A file system that has no holes.
        return offset if offset < os.fstat(descriptor).st_size else None

    def close(self, path: Path) -> None:
        descriptor = self._open.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def close_all(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:  # not there yet, or no longer
        return 0
