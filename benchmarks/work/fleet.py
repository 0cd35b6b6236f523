"""Simulated nodes: real agent streams over gRPC, with tasks that are said to run and, where asked, to end.

A node answers each StartTask with a journal that says `started`. When it dials in again it names the tasks it
has, as an agent does; a StartTask for one of them would be a job started twice.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from paceline.agent.session import RETRY_HEARTBEATS
from paceline.agent.streams import BACKOFF_MAX_S, Backoff
from paceline.proto import channels
from paceline.proto.generated import agent_pb2, agent_pb2_grpc, common_pb2, nodes_pb2

Key = tuple[int, int, int]
HEARTBEAT_S = 1.0
Lasting = Callable[[int], float]
"""How long a job runs, by its number: all of its tasks end then, wherever they are."""
_Said = asyncio.Queue[agent_pb2.FromAgent | None]
"""What a node says on one connection; None: no more."""


class SimNode:
    """One node. `tasks` outlive its connections; without `lasts_s` they never end."""

    def __init__(self, name: str, cpus: int, lasts_s: Lasting | None = None) -> None:
        self.name = name
        self.lasts_s = lasts_s
        self.ended = 0
        self.tasks: dict[Key, float] = {}
        """Key to the time at which the start arrived."""
        self.doubled: list[Key] = []
        self.connected = asyncio.Event()
        self.cpus = cpus
        self.redial_s = 0.0
        """As the scheduler said."""
        self.heartbeat_s = HEARTBEAT_S
        """Likewise."""
        self.dials = 0

    async def serve(self, address: str, token: str) -> None:
        """One connection, until it breaks."""
        self.dials += 1
        said: _Said = asyncio.Queue()
        said.put_nowait(agent_pb2.FromAgent(hello=self._hello()))
        beats = asyncio.create_task(self._beat(said))
        try:
            async with channels.open_aio_channel(channels.target(address, token)) as channel:
                stream = agent_pb2_grpc.AgentSessionStub(channel).Session(_messages(said))
                async for message in stream:
                    self._on_message(message, said)
        finally:
            self.connected.clear()
            beats.cancel()
            said.put_nowait(None)

    def _on_message(self, message: agent_pb2.ToAgent, said: _Said) -> None:
        if message.HasField("welcome"):
            self.redial_s = message.welcome.redial_s
            self.heartbeat_s = message.welcome.heartbeat_s
            self.connected.set()
        elif message.HasField("start"):
            for start in message.start.tasks:
                self._on_start(start.task, said)

    def _on_start(self, task: common_pb2.TaskKey, said: _Said) -> None:
        key = (task.job, task.attempt, task.task)
        if key in self.tasks:
            self.doubled.append(key)
        self.tasks.setdefault(key, time.time())
        if self.lasts_s is not None:
            asyncio.get_running_loop().call_later(self.lasts_s(task.job), self._end, task, said)
        started = agent_pb2.TaskStarted(pids=[1], start_mode="warm", shim_pid=1)
        entry = agent_pb2.JournalEntry(task=task, seq=1, at_monotonic_s=time.monotonic(), started=started)
        said.put_nowait(agent_pb2.FromAgent(reports=agent_pb2.Reports(entries=[entry])))

    def _end(self, task: common_pb2.TaskKey, said: _Said) -> None:
        del self.tasks[task.job, task.attempt, task.task]
        self.ended += 1
        over = agent_pb2.TaskEnded(exit_codes=[0], log_bytes=[0], why="exited")
        now_s = time.monotonic()
        exited = agent_pb2.JournalEntry(task=task, seq=2, at_monotonic_s=now_s, exited=agent_pb2.RankExited())
        ended = agent_pb2.JournalEntry(task=task, seq=3, at_monotonic_s=now_s, ended=over)
        said.put_nowait(agent_pb2.FromAgent(reports=agent_pb2.Reports(entries=[exited, ended])))

    async def _beat(self, said: _Said) -> None:
        """Each node at its own moments."""
        sequence = 0
        await self.connected.wait()
        await asyncio.sleep(random.random() * self.heartbeat_s)
        while True:
            sequence += 1
            beat = agent_pb2.Heartbeat(sequence=sequence, sent_monotonic_s=time.monotonic())
            said.put_nowait(agent_pb2.FromAgent(heartbeat=beat))
            await asyncio.sleep(self.heartbeat_s)

    def _hello(self) -> agent_pb2.Hello:
        inventory = nodes_pb2.Inventory(
            name=self.name,
            address="127.0.0.1",
            capacity=common_pb2.Resources(cpu_milli=self.cpus * 1000, memory_bytes=1 << 40),
            gpu_status="none: simulated",
            warm_pool="ready",
        )
        keys = [common_pb2.TaskKey(job=job, attempt=attempt, task=task) for job, attempt, task in self.tasks]
        incarnation = f"{self.name}-{self.dials}"
        return agent_pb2.Hello(node_id=self.name, incarnation=incarnation, inventory=inventory, tasks=keys)


async def _messages(said: _Said) -> AsyncIterator[agent_pb2.FromAgent]:
    while (message := await said.get()) is not None:
        yield message


class Fleet:
    """Nodes that keep dialling the scheduler of a state folder."""

    def __init__(self, state: Path, address: str) -> None:
        self.nodes: list[SimNode] = []
        self._state = state
        self._address = address
        self._dialling: dict[str, asyncio.Task[Any]] = {}

    @property
    def started(self) -> int:
        return sum(len(node.tasks) for node in self.nodes)

    @property
    def doubled(self) -> list[Key]:
        """Tasks that were started twice: on one node, or of one job on two."""
        seen: set[Key] = set()
        twice = [key for node in self.nodes for key in node.doubled]
        for node in self.nodes:
            twice += [key for key in node.tasks if key in seen]
            seen |= node.tasks.keys()
        return twice

    def add(
        self, count: int, cpus: int, *, first: int | None = None, lasts_s: Lasting | None = None
    ) -> list[SimNode]:
        """Nodes that dial from `dial` on, numbered from `first` on."""
        first = len(self.nodes) if first is None else first
        new = [SimNode(f"sim-{first + number}", cpus, lasts_s) for number in range(count)]
        self.nodes += new
        return new

    def dial(self, nodes: list[SimNode]) -> None:
        """Now, and again as soon as a connection breaks."""
        for node in nodes:
            self._keep(node, lambda: 0.02)

    def dial_as_agents_do(self, node: SimNode) -> None:
        """With the pauses that an agent makes."""
        backoff = Backoff()

        def pause_s() -> float:
            wait_s = backoff.failed(min(BACKOFF_MAX_S, RETRY_HEARTBEATS * HEARTBEAT_S), node.redial_s)
            backoff.began()
            return wait_s

        backoff.began()
        self._keep(node, pause_s)

    def _keep(self, node: SimNode, pause_s: Callable[[], float]) -> None:
        token = (self._state / "agent.token").read_text().strip()

        async def keep() -> None:
            while True:
                with suppress(grpc.RpcError):
                    await node.serve(self._address, token)
                await asyncio.sleep(pause_s())

        self._dialling[node.name] = asyncio.create_task(keep())

    async def hang_up(self, *, but: SimNode | None = None) -> None:
        """Every connection ends, and none is made, but for that node's; the tasks stay."""
        ended = [self._dialling.pop(node.name, None) for node in self.nodes if node is not but]
        for task in ended:
            if task is not None:
                task.cancel()
        for task in ended:
            if task is not None:
                with suppress(asyncio.CancelledError):
                    await task
