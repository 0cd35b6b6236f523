"""A scheduler served in the test's own process on loopback, and a scripted agent on the real wire."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
from paceline.client.calls import FORECAST_S
from paceline.proto.channels import open_aio_channel, target
from paceline.proto.generated import (
    agent_pb2,
    agent_pb2_grpc,
    answers_pb2_grpc,
    common_pb2,
    content_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    logs_pb2,
    logs_pb2_grpc,
    nodes_pb2,
    nodes_pb2_grpc,
    policy_pb2_grpc,
    registry_pb2_grpc,
    studies_pb2_grpc,
)
from paceline.scheduler.config import SchedulerConfig
from paceline.scheduler.opening import open_state
from paceline.scheduler.server import Serving, serving

T = TypeVar("T")
GIB = 1 << 30


class Wire:
    """The served scheduler with a stub for each service, for both roles."""

    def __init__(self, made: Serving, config: SchedulerConfig) -> None:
        self.made = made
        self.config = config
        self._client = self._channel(made.tokens.client)
        self._agent = self._channel(made.tokens.agent)
        self.answers: Any = answers_pb2_grpc.AnswersStub(self._client)
        self.content: Any = content_pb2_grpc.ContentStub(self._client)
        self.jobs: Any = jobs_pb2_grpc.JobsStub(self._client)
        self.logs: Any = logs_pb2_grpc.LogsStub(self._client)
        self.nodes: Any = nodes_pb2_grpc.NodesStub(self._client)
        self.policy: Any = policy_pb2_grpc.PolicyStub(self._client)
        self.registry: Any = registry_pb2_grpc.RegistryStub(self._client)
        self.studies: Any = studies_pb2_grpc.StudiesStub(self._client)
        self.sessions: Any = agent_pb2_grpc.AgentSessionStub(self._agent)
        self.shipping: Any = logs_pb2_grpc.LogShippingStub(self._agent)

    def _channel(self, token: str) -> grpc.aio.Channel:
        """As patient as a client that asks for a forecast: a busy machine first has to start its process."""
        made = self.made
        return open_aio_channel(target(made.address, token, ca_file=made.ca_file, deadline_s=FORECAST_S))

    async def close(self) -> None:
        await self._client.close()
        await self._agent.close()

    async def submit(self, count: int = 1, *, key: str = "", **spec: object) -> list[int]:
        """Jobs from keys of the job file; returns their numbers."""
        document = json.dumps({"type": "command", "command": "true", "code": "/tmp", **spec})
        request = jobs_pb2.SubmitRequest(
            key=key or f"k{next(_keys)}",
            user="tester",
            jobs=[jobs_pb2.JobDocument(document=document, source="job.yaml")] * count,
        )
        return list((await self.jobs.Submit(request)).jobs)

    async def get(self, job: int) -> jobs_pb2.JobView:
        view: jobs_pb2.JobView = await self.jobs.Get(jobs_pb2.GetJobRequest(job=job))
        return view

    async def wait_state(self, job: int, state: str) -> jobs_pb2.JobView:
        async def there() -> jobs_pb2.JobView | None:
            view = await self.get(job)
            return view if view.state == state else None

        return await until(f"job {job} is {state}", there)

    @asynccontextmanager
    async def agent(self, node: str = "n1", **inventory: Any) -> AsyncIterator["Agent"]:
        agent = Agent(self, node, **inventory)
        await agent.connect()
        try:
            yield agent
        finally:
            await agent.close()


class Agent:
    """A node that does what the test says. `starts` and `acks` collect what came down."""

    def __init__(self, wire: Wire, node: str, *, cpus: int = 4, **inventory: Any) -> None:
        self.node = node
        self._wire = wire
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._seqs: dict[tuple[int, int, int], int] = {}
        self.inventory = nodes_pb2.Inventory(
            name=f"{node}-name",
            address="127.0.0.1",
            capacity=common_pb2.Resources(cpu_milli=1000 * cpus, memory_bytes=16 * GIB),
            **inventory,
        )
        self.welcome: agent_pb2.Welcome = agent_pb2.Welcome()
        self.starts: dict[int, agent_pb2.StartTask] = {}
        self.stops: list[agent_pb2.StopTask] = []
        self.acks: dict[tuple[int, int, int], int] = {}
        self.beats: list[int] = []
        self.error: Any = None

    async def connect(self, *, incarnation: str = "i1", tasks: Any = ()) -> None:
        self._call = self._wire.sessions.Session()
        await self.say(
            hello=agent_pb2.Hello(
                node_id=self.node, incarnation=incarnation, inventory=self.inventory, tasks=tasks
            )
        )
        self.welcome = (await self._call.read()).welcome
        self._reader = asyncio.create_task(self._read())

    async def say(self, **kind: Any) -> None:
        await self._call.write(agent_pb2.FromAgent(**kind))

    async def beat(self, sequence: int, **more: Any) -> None:
        sent_s = sequence + 0.5
        await self.say(heartbeat=agent_pb2.Heartbeat(sequence=sequence, sent_monotonic_s=sent_s, **more))

    async def report(self, task: common_pb2.TaskKey, **kind: Any) -> int:
        """One journal entry; returns its seq."""
        key = (task.job, task.attempt, task.task)
        seq = self._seqs[key] = self._seqs.get(key, 0) + 1
        await self.say(
            reports=agent_pb2.Reports(entries=[agent_pb2.JournalEntry(task=task, seq=seq, **kind)])
        )
        return seq

    async def wait_start(self, job: int) -> agent_pb2.StartTask:
        return await until(f"a start of job {job}", lambda: self.starts.get(job))

    async def run(self, job: int) -> common_pb2.TaskKey:
        """Say that the task of this job runs here."""
        start = await self.wait_start(job)
        await self.report(
            start.task, started=agent_pb2.TaskStarted(pids=[1] * start.processes, start_mode="warm")
        )
        return start.task

    async def end(
        self, task: common_pb2.TaskKey, *, codes: tuple[int, ...] = (0,), log_bytes: Any = None
    ) -> None:
        for rank, code in enumerate(codes):
            await self.report(task, exited=agent_pb2.RankExited(local_rank=rank, exit_code=code))
        sizes = log_bytes if log_bytes is not None else [0] * len(codes)
        seq = await self.report(
            task, ended=agent_pb2.TaskEnded(exit_codes=codes, log_bytes=sizes, why="exited")
        )
        key = (task.job, task.attempt, task.task)
        await until("the end is acknowledged", lambda: self.acks.get(key) == seq or None)

    async def close(self) -> None:
        if self._reader is not None:
            self._call.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    def is_over(self) -> bool | None:
        """The stream has ended; `error` says how."""
        return True if self._reader is not None and self._reader.done() else None

    async def _read(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                kind = message.WhichOneof("kind")
                if kind == "start":
                    self.starts.update({start.task.job: start for start in message.start.tasks})
                elif kind == "stop":
                    self.stops.append(message.stop)
                elif kind == "heartbeat":
                    self.beats.append(message.heartbeat.sequence)
                for position in message.ack.positions:
                    task = position.task
                    key = (task.job, task.attempt, task.task)
                    self.acks[key] = max(self.acks.get(key, 0), position.journal_seq)
        except BaseException as error:
            self.error = error
            raise


@asynccontextmanager
async def wire(state: Path, **changes: Any) -> AsyncIterator[Wire]:
    """Serve a fresh or standing state folder on a free port."""
    config = replace(SchedulerConfig(state, "127.0.0.1:0"), **changes)
    async with serving(config, asyncio.to_thread(open_state, config)) as made:
        opened = Wire(made, config)
        try:
            yield opened
        finally:
            await opened.close()


async def until(what: str, found: Callable[[], Any], deadline_s: float = 30.0) -> Any:
    """Wait until `found()` (plain or async) gives something that is not None."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + deadline_s
    while True:
        result = found()
        if asyncio.iscoroutine(result):
            result = await result
        if result is not None:
            return result
        assert loop.time() < end_s, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(0.005)


def in_mig_mode(*slices: nodes_pb2.GpuSlice, **more: Any) -> nodes_pb2.Gpu:
    return nodes_pb2.Gpu(index=1, name="NVIDIA A100-SXM4-40GB", mig_enabled=True, slices=slices, **more)


def mig_slice(gpu_instance: int, profile: str, gib: int, **more: Any) -> nodes_pb2.GpuSlice:
    return nodes_pb2.GpuSlice(
        gpu_instance=gpu_instance,
        uuid=f"MIG-{gpu_instance}",
        name=f"NVIDIA A100-SXM4-40GB MIG {profile}",
        memory_total_bytes=gib << 30,
        **more,
    )


def ship(
    task: common_pb2.TaskKey, rank: int, offset: int, data: bytes, node: str = "n1"
) -> logs_pb2.ShipRequest:
    piece = logs_pb2.LogPiece(task=task, rank=rank, offset=offset, size=len(data))
    return logs_pb2.ShipRequest(data=data, pieces=[piece], node_id=node)


def _count() -> Any:
    number = 0
    while True:
        number += 1
        yield number


_keys = _count()
