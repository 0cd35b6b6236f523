"""The other end of the agent's two streams, for tests: a real gRPC server that keeps what the contract says.

It stores journal entries and log bytes as a scheduler does (each once, in order), and writes down whatever an
agent should never do in `offences`. It decides nothing: the test says what to start, stop and forget.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from paceline.proto.generated import agent_pb2, agent_pb2_grpc, common_pb2, logs_pb2, logs_pb2_grpc
from paceline.proto.limits import CHUNK_BYTES_MAX
from paceline.spec.ids import Attempt, JobId, TaskKey


def key_of(message: common_pb2.TaskKey) -> TaskKey:
    return TaskKey(JobId(message.job), Attempt(message.attempt), message.task)


def message_of(key: TaskKey) -> common_pb2.TaskKey:
    return common_pb2.TaskKey(job=key.job, attempt=key.attempt, task=key.task)


def key(job: int, attempt: int = 1, task: int = 0) -> TaskKey:
    return TaskKey(JobId(job), Attempt(attempt), task)


class SmallScheduler(agent_pb2_grpc.AgentSessionServicer, logs_pb2_grpc.LogShippingServicer):
    """Use as an async context manager. Everything is public: tests look and meddle."""

    def __init__(self, *, cluster_id: str = "cluster-a", heartbeat_s: float = 1.0, port: int = 0) -> None:
        self.cluster_id = cluster_id
        self.heartbeat_s = heartbeat_s
        self.redial_s = 0.0
        self.lease_exclusive_s = 20.0
        self.lease_fenced_s = 600.0
        self.wanted_port = port
        self.live: set[TaskKey] = set()
        self.forget: set[TaskKey] = set()
        self.entries: defaultdict[TaskKey, list[agent_pb2.JournalEntry]] = defaultdict(list)
        self.entry_at: dict[tuple[TaskKey, int], float] = {}
        self.logs: defaultdict[tuple[TaskKey, int], bytearray] = defaultdict(bytearray)
        self.stored: defaultdict[tuple[TaskKey, int], int] = defaultdict(int)
        self.jumps: list[tuple[TaskKey, int, int, int]] = []
        self.hellos: list[agent_pb2.Hello] = []
        self.inventories: list[Any] = []
        self.heartbeats: list[agent_pb2.Heartbeat] = []
        self.offences: list[str] = []
        self.chunks: list[tuple[TaskKey, int, int]] = []
        self.streams = 0
        self.log_streams = 0
        self.answering = True
        self.acknowledging = True
        self.storing = asyncio.Event()
        self.storing.set()
        self.refuse_with: tuple[grpc.StatusCode, str] | None = None
        self._down: asyncio.Queue[agent_pb2.ToAgent | None] | None = None

    # What a test says.

    def start(self, request: agent_pb2.StartTask) -> None:
        task = key_of(request.task)
        self.live.add(task)
        self._say(agent_pb2.ToAgent(start=agent_pb2.StartTasks(tasks=[request])))

    def stop(self, task: TaskKey, grace_s: float = 0.0, why: str = "cancelled") -> None:
        self._say(agent_pb2.ToAgent(stop=agent_pb2.StopTask(task=message_of(task), grace_s=grace_s, why=why)))

    def hang_up(self) -> None:
        """End the session's stream politely."""
        assert self._down is not None
        self._down.put_nowait(None)

    def _say(self, message: agent_pb2.ToAgent) -> None:
        assert self._down is not None, "no agent is connected"
        self._down.put_nowait(message)

    # What a test waits for.

    async def until(self, what: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        """Wait until `what()` is true; its value."""
        until_s = time.monotonic() + timeout_s
        while not (value := what()):
            assert time.monotonic() < until_s, f"not within {timeout_s} s; offences: {self.offences}"
            await asyncio.sleep(0.005)
        return value

    async def until_connected(self, times: int = 1, timeout_s: float = 60.0) -> None:
        await self.until(lambda: len(self.hellos) >= times and self._down is not None, timeout_s)

    def kinds(self, task: TaskKey) -> list[str]:
        return [entry.WhichOneof("kind") or "" for entry in self.entries[task]]

    def ended(self, task: TaskKey) -> agent_pb2.TaskEnded | None:
        entry = self.entries[task][-1] if self.entries[task] else None
        return entry.ended if entry is not None and entry.HasField("ended") else None

    # Life.

    async def __aenter__(self) -> "SmallScheduler":
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        agent_pb2_grpc.add_AgentSessionServicer_to_server(self, self.server)
        logs_pb2_grpc.add_LogShippingServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.wanted_port}")
        await self.server.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.server.stop(grace=None)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    # The session.

    async def Session(
        self, requests: AsyncIterator[agent_pb2.FromAgent], context: Any
    ) -> AsyncIterator[agent_pb2.ToAgent]:
        self.streams += 1
        if self.refuse_with is not None:
            await context.abort(*self.refuse_with)
        down: asyncio.Queue[agent_pb2.ToAgent | None] = asyncio.Queue()
        reader = asyncio.ensure_future(self._hear(requests, down))
        reader.add_done_callback(lambda _: down.put_nowait(None))
        try:
            while (message := await down.get()) is not None:
                yield message
        finally:
            reader.cancel()
            if self._down is down:
                self._down = None

    async def _hear(self, requests: AsyncIterator[agent_pb2.FromAgent], down: asyncio.Queue[Any]) -> None:
        first = True
        async for message in requests:
            kind = message.WhichOneof("kind")
            if first != (kind == "hello"):
                self.offences.append(f"{kind} came {'first' if first else 'later'}")
            first = False
            if kind == "hello":
                self._on_hello(message.hello, down)
            elif kind == "heartbeat":
                self._on_heartbeat(message.heartbeat, down)
            elif kind == "inventory":
                self.inventories.append(message.inventory)
            elif kind == "reports":
                self._on_reports(message.reports, down)

    def _on_hello(self, hello: agent_pb2.Hello, down: asyncio.Queue[Any]) -> None:
        self.hellos.append(hello)
        here = [key_of(each) for each in hello.tasks]
        welcome = agent_pb2.Welcome(
            cluster_id=self.cluster_id,
            heartbeat_s=self.heartbeat_s,
            redial_s=self.redial_s,
            lease_exclusive_s=self.lease_exclusive_s,
            lease_fenced_s=self.lease_fenced_s,
            positions=[
                agent_pb2.TaskPosition(task=message_of(task), journal_seq=len(self.entries[task]))
                for task in here
                if task in self.live
            ],
            forget=[message_of(task) for task in here if task not in self.live],
        )
        down.put_nowait(agent_pb2.ToAgent(welcome=welcome))
        self._down = down

    def _on_heartbeat(self, beat: agent_pb2.Heartbeat, down: asyncio.Queue[Any]) -> None:
        self.heartbeats.append(beat)
        if self.answering:
            reply = agent_pb2.HeartbeatReply(sequence=beat.sequence, sent_monotonic_s=beat.sent_monotonic_s)
            down.put_nowait(agent_pb2.ToAgent(heartbeat=reply))

    def _on_reports(self, reports: agent_pb2.Reports, down: asyncio.Queue[Any]) -> None:
        if len(reports.entries) > 1000 or reports.ByteSize() > 1 << 20:
            self.offences.append(f"reports of {len(reports.entries)} entries, {reports.ByteSize()} bytes")
        for entry in reports.entries:
            task = key_of(entry.task)
            stored = self.entries[task]
            if entry.seq > len(stored) + 1:
                self.offences.append(f"{task}: entry {entry.seq} after {len(stored)}")
            if entry.seq == len(stored) + 1:
                stored.append(entry)
                self.entry_at[task, entry.seq] = time.monotonic()
        if self.acknowledging:
            tasks = {key_of(entry.task) for entry in reports.entries}
            positions = [
                agent_pb2.TaskPosition(task=message_of(task), journal_seq=len(self.entries[task]))
                for task in tasks
            ]
            down.put_nowait(agent_pb2.ToAgent(ack=agent_pb2.ReportsAck(positions=positions)))
        self.live -= {task for task in self.live if self.ended(task) or "refused" in self.kinds(task)}

    # The logs.

    async def Ship(
        self, requests: AsyncIterator[logs_pb2.ShipRequest], context: Any
    ) -> AsyncIterator[logs_pb2.ShipReply]:
        self.log_streams += 1
        asked: set[tuple[TaskKey, int]] = set()
        first = True
        async for request in requests:
            if first and not request.node_id:
                self.offences.append("the log stream does not say whose it is")
            first = False
            if len(request.data) > CHUNK_BYTES_MAX:
                self.offences.append(f"a message of {len(request.data)} bytes")
            at = 0
            for piece in request.pieces:
                task, rank = key_of(piece.task), piece.rank
                if piece.size and (task, rank) not in asked:
                    self.offences.append(f"{task} rank {rank}: bytes before asking where to go on")
                asked.add((task, rank))
                if piece.size:
                    await self.storing.wait()
                self._store(task, rank, piece.offset, request.data[at : at + piece.size])
                at += piece.size
            if at != len(request.data):
                self.offences.append(f"{len(request.data)} bytes, but pieces of {at}")
            yield logs_pb2.ShipReply(stored=[self._stored(piece) for piece in request.pieces])

    def _stored(self, piece: logs_pb2.LogPiece) -> logs_pb2.LogStored:
        task = key_of(piece.task)
        return logs_pb2.LogStored(
            task=piece.task,
            rank=piece.rank,
            stored_bytes=self.stored[task, piece.rank],
            refused=task in self.forget,
        )

    def _store(self, task: TaskKey, rank: int, offset: int, data: bytes) -> None:
        stored = self.stored[task, rank]
        if not data:
            return
        self.chunks.append((task, rank, len(data)))
        if offset < stored:
            self.offences.append(f"{task} rank {rank}: bytes from {offset} again, {stored} are stored")
            return
        if offset > stored:
            self.jumps.append((task, rank, stored, offset))
        self.logs[task, rank] += data
        self.stored[task, rank] = offset + len(data)
