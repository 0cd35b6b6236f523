"""AgentSession: one stream per node. Hello and reports become stimuli, committed effects become messages.

The first reply is Welcome; a report is acknowledged only after its commit; a newer stream of a node takes
the older one's place. What waits to be sent is bounded: an agent that does not read loses its stream, not
its jobs.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc.aio

from ...proto.auth import Router, Tokens, Worker
from ...proto.codecs import task_key_message, task_key_of
from ...proto.generated import agent_pb2, agent_pb2_grpc
from ...proto.limits import REPORTS_MAX, TASKS_PER_NODE_MAX
from ...spec.deployment import REPLICA, ROUTER
from ...spec.errors import Conflict, InvalidRequest, LimitExceeded, Unavailable
from ...spec.ids import Micros, NodeId, TaskKey
from ...spec.sweep import WORKER
from ..core import stimuli
from ..core.effects import Acked, AskSave, InspectTask, StartTask, StopTask, Welcome
from ..core.job import Job, TaskState
from ..core.settings import Settings
from ..core.state import ClusterState
from ..logs import LogStore
from ..loop import Loop
from .documents import Documents
from .inventories import inventory_of
from .outbox import Outbox, Outgoing, Rendered
from .reports import Arrival, entry_of
from .starts import nodes_named, start_message, stop_message

_log = logging.getLogger(__name__)

REPORTS_IN_FLIGHT_MAX: Final = 8
"""Batches of one agent that wait for their commit; further ones wait in the connection."""
HELLO_TIMEOUT_S: Final = 20.0
REDIAL_S_MIN: Final = 0.1
NODES_BACK_PER_S: Final = 2_000
"""So many are to come back in a second at most when all have lost us: each is a handshake and a hello."""
_NODE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_SECOND_US: Final = 1_000_000

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Samples:
    """The newest GPU readings of each connected node; not kept."""

    by_node: dict[NodeId, tuple[agent_pb2.GpuSample, ...]] = field(default_factory=dict)


class AgentService(agent_pb2_grpc.AgentSessionServicer):
    """Role: agent."""

    def __init__(
        self,
        loop: Loop,
        documents: Documents,
        logs: LogStore,
        *,
        cluster_id: str,
        storage: Path,
        settings: Settings,
        samples: Samples,
        tokens: Tokens,
    ) -> None:
        self._loop = loop
        self._documents = documents
        self._logs = logs
        self._cluster_id = cluster_id
        self._storage = storage
        self._settings = settings
        self._samples = samples
        self._tokens = tokens
        self._partings: set[asyncio.Task[None]] = set()
        self._outboxes: set[Outbox] = set()

    async def Session(
        self, request_iterator: AsyncIterator[agent_pb2.FromAgent], context: _Context
    ) -> AsyncIterator[agent_pb2.ToAgent]:
        hello = await _first(request_iterator)
        node = _node_id(hello.node_id)
        session = self._loop.next_session()
        outbox = Outbox(node)
        self._loop.attach(node, session, outbox)
        self._outboxes.add(outbox)
        reader: asyncio.Task[None] | None = None
        try:
            welcome = await self._loop.submit(_hello_stimulus(hello, node, session))
            _log.info("node %s (%s) connected, %d tasks", hello.inventory.name, node, len(hello.tasks))
            nodes = await self._loop.read(lambda state: len(state.nodes))
            yield self._welcome_message(welcome, nodes)
            reader = asyncio.create_task(self._read(request_iterator, node, session, outbox))
            async for messages in outbox.batches():
                for message in await self._rendered(messages):
                    yield message
        finally:
            if reader is not None:
                reader.cancel()
            self._outboxes.discard(outbox)
            self._part(node, session, outbox.why)
        if outbox.error is not None:
            raise outbox.error

    def end_all(self, why: str) -> None:
        """End every stream: the agents dial again."""
        for outbox in tuple(self._outboxes):
            outbox.close(why)

    async def drained(self) -> None:
        """All partings that are under way have reached the loop."""
        await asyncio.gather(*self._partings, return_exceptions=True)

    async def _read(
        self, requests: AsyncIterator[agent_pb2.FromAgent], node: NodeId, session: int, outbox: Outbox
    ) -> None:
        """Until the agent closes, errs, or is replaced. How it ends is what the stream ends with."""
        in_flight = asyncio.Semaphore(REPORTS_IN_FLIGHT_MAX)
        try:
            async with asyncio.TaskGroup() as group:
                async for message in requests:
                    kind = message.WhichOneof("kind")
                    if kind == "heartbeat":
                        self._on_heartbeat(message.heartbeat, node, session, outbox)
                    elif kind == "reports":
                        arrival = Arrival(Micros(self._loop.now_us()), message.reports.sent_monotonic_s)
                        await in_flight.acquire()
                        group.create_task(self._report(message.reports, arrival, node, outbox, in_flight))
                    elif kind == "inventory":
                        inventory = inventory_of(message.inventory)
                        await self._loop.submit(stimuli.InventoryChanged(node, session, inventory))
                    else:
                        raise InvalidRequest(f"an agent's stream goes on with {kind or 'an empty message'}")
            outbox.end("the agent closed its stream")
        except BaseExceptionGroup as group_error:
            outbox.fail(_first_of(group_error))
        except Exception as error:  # noqa: BLE001 - the stream ends with it, and the guard tells it
            outbox.fail(error)

    def _on_heartbeat(
        self, heartbeat: agent_pb2.Heartbeat, node: NodeId, session: int, outbox: Outbox
    ) -> None:
        if not self._loop.heard(node, session):
            raise Conflict(f"node {node} has a newer stream; this one is over")
        if heartbeat.gpus:
            self._samples.by_node[node] = tuple(heartbeat.gpus)
        reply = agent_pb2.HeartbeatReply(
            sequence=heartbeat.sequence, sent_monotonic_s=heartbeat.sent_monotonic_s
        )
        outbox.put(agent_pb2.ToAgent(heartbeat=reply))

    async def _report(
        self,
        reports: agent_pb2.Reports,
        arrival: Arrival,
        node: NodeId,
        outbox: Outbox,
        in_flight: asyncio.Semaphore,
    ) -> None:
        try:
            if len(reports.entries) > REPORTS_MAX:
                raise LimitExceeded(f"{len(reports.entries)} entries in one report; at most {REPORTS_MAX}")
            entries = tuple(entry_of(entry, arrival) for entry in reports.entries)
            acked = await self._loop.submit(stimuli.Reports(node, entries))
            endings = [(entry.task, entry.said) for entry in entries if isinstance(entry.said, stimuli.Ended)]
            if endings:
                await self._note_untold(endings)
            outbox.put(agent_pb2.ToAgent(ack=_ack_message(acked)))
        finally:
            in_flight.release()

    async def _note_untold(self, endings: Sequence[tuple[TaskKey, stimuli.Ended]]) -> None:
        """An attempt that was over before its task: no event tells that end, and followers wait for it."""

        def untold(state: ClusterState) -> list[tuple[TaskKey, stimuli.Ended]]:
            return [
                (task, said) for task, said in endings if not _is_told(state.jobs.get(task.job), task, said)
            ]

        for task, said in await self._loop.read(untold):
            await self._logs.note_sizes(task, said.log_bytes)

    async def _rendered(self, messages: Sequence[Outgoing]) -> list[agent_pb2.ToAgent]:
        specs = await self._documents.of_jobs(m.key.job for m in messages if isinstance(m, StartTask))
        rendered = Rendered()
        for message in messages:
            if isinstance(message, StartTask) and message.key.job not in specs:
                self._refuse_start(message)
            elif isinstance(message, StartTask):
                spec = specs[message.key.job]
                addresses = await self._addresses(nodes_named(message, spec))
                start = start_message(message, spec, self._storage, addresses, cluster=self._cluster_id)
                if spec.command.startswith(WORKER):
                    await self._admit(message, start)
                elif spec.command.startswith(ROUTER):
                    start.endpoint_token = self._tokens.router_token(
                        Router(message.key.job, message.key.attempt)
                    )
                elif spec.command.startswith(REPLICA):
                    start.endpoint_token = self._tokens.replica_secret(message.key.job, message.key.attempt)
                rendered.add_start(start)
            elif isinstance(message, StopTask):
                rendered.add(agent_pb2.ToAgent(stop=stop_message(message)))
            elif isinstance(message, AskSave):
                save = agent_pb2.AskSave(task=task_key_message(message.key), request=message.number)
                rendered.add(agent_pb2.ToAgent(save=save))
            elif isinstance(message, InspectTask):
                inspect = agent_pb2.InspectTask(task=task_key_message(message.key))
                rendered.add(agent_pb2.ToAgent(inspect=inspect))
            else:
                rendered.add(message)
        return rendered.messages

    async def _admit(self, effect: StartTask, start: agent_pb2.StartTask) -> None:
        """A sweep's worker is let in to its study."""
        study = await self._loop.read_studies(lambda studies: studies.by_worker.get(effect.key.job))
        if study is not None:
            start.study = study
            start.study_token = self._tokens.worker_token(Worker(study, effect.key.job, effect.key.attempt))

    async def _addresses(self, nodes: Collection[NodeId]) -> dict[NodeId, str]:
        """None when one of them has gone for good since."""

        def read(state: ClusterState) -> dict[NodeId, str]:
            if any(node not in state.nodes for node in nodes):
                return {}
            return {node: state.nodes[node].inventory.address for node in nodes}

        return await self._loop.read(read) if nodes else {}

    def _refuse_start(self, effect: StartTask) -> None:
        """In the node's place: nobody can start a job whose document cannot be read."""
        text = "its stored document cannot be read by this version of the scheduler; see the scheduler's log"
        entry = stimuli.Entry(effect.key, 1, stimuli.Refused("unreadable-document", text, transient=False))
        self._keep(self._loop.submit(stimuli.Reports(effect.node, (entry,))))

    def _keep(self, act: Coroutine[Any, Any, Any]) -> None:
        """Run it to its end, whatever becomes of the stream that asked for it."""
        task = asyncio.create_task(_unless_away(act))
        self._partings.add(task)
        task.add_done_callback(self._partings.discard)

    def _welcome_message(self, welcome: Welcome, nodes: int) -> agent_pb2.ToAgent:
        settings = self._settings
        return agent_pb2.ToAgent(
            welcome=agent_pb2.Welcome(
                cluster_id=self._cluster_id,
                heartbeat_s=settings.heartbeat_us / _SECOND_US,
                lease_exclusive_s=settings.lease_exclusive_us / _SECOND_US,
                lease_fenced_s=settings.lease_fenced_us / _SECOND_US,
                positions=_ack_message(Acked(welcome.positions)).positions,
                forget=[task_key_message(key) for key in welcome.forget],
                redial_s=redial_s(nodes),
            )
        )

    def _part(self, node: NodeId, session: int, why: str) -> None:
        """Tell the loop, in a task of its own: the stream's handler may be cancelled at any await."""
        self._loop.detach(node, session)
        _log.info("node %s: the stream ended: %s", node, why)
        self._keep(self._loop.submit(stimuli.ContactLost(node, session, why)))


def redial_s(nodes: int) -> float:
    """How far apart at most the first dials of each node are, when so many have lost us at once."""
    return max(REDIAL_S_MIN, nodes / NODES_BACK_PER_S)


async def _unless_away(act: Coroutine[Any, Any, Any]) -> None:
    try:
        await act
    except Unavailable as error:
        # The loop starts anew or is closing: then all contact is unknown, and what was placed is sent again.
        _log.debug("the loop is away: %s", error)


async def _first(requests: AsyncIterator[agent_pb2.FromAgent]) -> agent_pb2.Hello:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            message = await anext(requests)
    except (TimeoutError, StopAsyncIteration) as error:
        raise InvalidRequest("an agent's stream begins with Hello, and none came") from error
    if message.WhichOneof("kind") != "hello":
        raise InvalidRequest(f"an agent's stream begins with Hello, not {message.WhichOneof('kind')}")
    return message.hello


def _hello_stimulus(hello: agent_pb2.Hello, node: NodeId, session: int) -> stimuli.Hello:
    if len(hello.tasks) > TASKS_PER_NODE_MAX:
        raise LimitExceeded(f"{len(hello.tasks)} tasks on one node; at most {TASKS_PER_NODE_MAX}")
    tasks = tuple(task_key_of(key) for key in hello.tasks)
    return stimuli.Hello(node, session, hello.incarnation[:100], inventory_of(hello.inventory), tasks)


def _node_id(text: str) -> NodeId:
    if not _NODE_ID.fullmatch(text):
        raise InvalidRequest(f"{text[:100]!r} is no node id", hint="1 to 100 characters of A-Z a-z 0-9 _ . -")
    return NodeId(text)


def _is_told(job: Job | None, task: TaskKey, said: stimuli.Ended) -> bool:
    if job is None:
        return said.why == "exited" and not any(said.exit_codes)
    if job.attempt != task.attempt or task.task >= len(job.tasks):
        return False
    return job.tasks[task.task].state is TaskState.ENDED


def _ack_message(acked: Acked) -> agent_pb2.ReportsAck:
    return agent_pb2.ReportsAck(
        positions=[
            agent_pb2.TaskPosition(task=task_key_message(position.task), journal_seq=position.seq)
            for position in acked.positions
        ]
    )


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
