"""The stream to the scheduler: hello, heartbeats, reports up; starts, stops, acknowledgements down.

What must reach the scheduler lies in the tasks' journals; here is only how far each was sent and stored. A
stream that breaks loses nothing: the next one goes on from the positions in Welcome. One coroutine writes,
one reads; what is unacknowledged is bounded, and nothing waits in memory.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import grpc

from ..proto.codecs import task_key_message, task_key_of
from ..proto.generated import agent_pb2, agent_pb2_grpc, nodes_pb2
from ..proto.limits import TASKS_PER_NODE_MAX
from ..spec.errors import InvalidRequest, PacelineError
from ..spec.ids import TaskKey
from . import leaving
from .leases import LeaseKeeper, boottime_s
from .reports import Reports
from .streams import (
    BACKOFF_MAX_S,
    Backoff,
    Dial,
    StreamLost,
    describe,
    first_to_end,
    next_message,
    write_message,
)
from .turns import Turns

log = logging.getLogger(__name__)

OPERATIONS_MAX: Final = 256
GRACE_S_MAX: Final = 7 * 86400.0

HEARTBEAT_S: Final = 1.0
SILENT_HEARTBEATS: Final = 4
RETRY_HEARTBEATS: Final = 2
REDIAL_S_MIN: Final = 0.05
WELCOME_S: Final = 10.0
GATHER_S: Final = 0.005
"""Between two batches of reports: what comes alone goes at once, what comes in a stream goes together."""
WRITE_S: Final = 30.0


_Call = grpc.aio.StreamStreamCall[agent_pb2.FromAgent, agent_pb2.ToAgent]


class Tasks(leaving.Tasks, Protocol):
    """What the session needs of agent.supervisor.Supervisor, whose docstrings say what each does."""

    async def start(self, request: agent_pb2.StartTask) -> None: ...
    async def inspect(self, key: TaskKey) -> None: ...
    async def ask_save(self, key: TaskKey, request: int) -> None: ...
    def acknowledge(self, key: TaskKey, seq: int) -> None: ...
    def request(self, key: TaskKey) -> agent_pb2.StartTask: ...


class Logs(leaving.Logs, Protocol):
    """What the session needs of agent.shipping.LogShipper."""

    def look(self, key: TaskKey) -> None: ...


class Refused(PacelineError):
    """The scheduler does not let this agent in; trying again unchanged is of no use."""

    code = "refused"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling."""

    node_id: str
    incarnation: str


class Session:
    """Keeps the stream up until cancelled. All of it belongs to the event loop's thread.

    `run` raises WrongCluster at once, and Refused when the scheduler has never let this process in.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        tasks: Tasks,
        logs: Logs,
        leases: LeaseKeeper,
        dial: Dial,
        inventory: Callable[[], nodes_pb2.Inventory],
        samples: Callable[[], list[agent_pb2.GpuSample]],
        check_cluster: Callable[[str], None],
        on_connected: Callable[[bool], None] = lambda connected: None,
        log_bytes_max: int = 1 << 30,
    ) -> None:
        """`check_cluster` raises WrongCluster; `samples` gives the same list object while nothing is new."""
        self._identity = identity
        self._tasks = tasks
        self._logs = logs
        self._leases = leases
        self._dial = dial
        self._inventory = inventory
        self._samples = samples
        self._check_cluster = check_cluster
        self._on_connected = on_connected
        self._log_bytes_max = log_bytes_max
        self._reports = Reports(tasks.entries)
        self._turns = Turns()
        self.leaving = leaving.Leaving(tasks, logs, self._reports, self._turns)
        self._wake = asyncio.Event()
        self._inventory_due = False
        self._heartbeat_s = HEARTBEAT_S
        self._redial_s = 0.0
        self._ever_welcome = False
        self._operations = asyncio.Semaphore(OPERATIONS_MAX)
        self._expired: set[TaskKey] = set()

    # What others tell us.

    def on_growth(self, key: TaskKey) -> None:
        """The task's journal has grown."""
        self._reports.grew(key)
        self._wake.set()
        if self._tasks.ended(key):
            self._logs.look(key)

    def on_inventory(self) -> None:
        """The inventory says something new."""
        self._inventory_due = True
        self._wake.set()

    def on_expired(self, exclusive: bool) -> None:
        """That kind of lease has run out: its tasks here may already run elsewhere."""
        self._expired.intersection_update(self._tasks.tasks())
        for key in self._tasks.tasks():
            if key in self._expired or self._tasks.ended(key):
                continue
            if self._tasks.request(key).exclusive == exclusive:
                log.warning("task %s: its lease has run out without word from the scheduler; killing it", key)
                self._expired.add(key)
                self._stop(key, 0.0, "lease ran out")

    # The stream's life.

    async def run(self) -> None:
        backoff = Backoff()
        while True:
            backoff.began()
            try:
                await self._one_stream()
            except StreamLost as lost:
                why = str(lost)
            except grpc.aio.AioRpcError as error:
                self._raise_if_refused(error)
                why = describe(error)
            except InvalidRequest as error:
                why = f"the scheduler sent what makes no sense: {error.message}"
            finally:
                self._on_connected(False)
            # A scheduler takes a node for lost after a few heartbeats, also when it has just started itself.
            most_s = min(BACKOFF_MAX_S, RETRY_HEARTBEATS * self._heartbeat_s)
            wait_s = backoff.failed(most_s, self._redial_s)
            log.warning("no contact with the scheduler (%s); trying again in %.1f s", why, wait_s)
            await asyncio.sleep(wait_s)

    def _raise_if_refused(self, error: grpc.aio.AioRpcError) -> None:
        # Later on it may be the scheduler's passing trouble, and tasks are running here: go on trying.
        refused = error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        if refused and not self._ever_welcome:
            raise Refused(
                f"the scheduler refuses this agent: {error.details()}",
                hint="Give the scheduler's agent token with --token-file (STATE/agent.token on its machine).",
            ) from error

    async def _one_stream(self) -> None:
        channel = self._dial()
        try:
            stub = agent_pb2_grpc.AgentSessionStub(channel)
            call = stub.Session()
            sent_s = boottime_s()
            async with asyncio.timeout(WELCOME_S):
                await write_message(call, agent_pb2.FromAgent(hello=self._hello()), WELCOME_S)
                first: agent_pb2.ToAgent = await next_message(call)
            if first.WhichOneof("kind") != "welcome":
                raise StreamLost("the scheduler's first message was not a welcome")
            self._on_welcome(first.welcome, sent_s)
            await first_to_end(self._keep_reading(call), self._keep_writing(call))
        except TimeoutError as error:
            raise StreamLost("the scheduler did not answer in time") from error
        finally:
            await channel.close(grace=None)

    def _hello(self) -> agent_pb2.Hello:
        self._inventory_due = False
        return agent_pb2.Hello(
            node_id=self._identity.node_id,
            incarnation=self._identity.incarnation,
            inventory=self._inventory(),
            tasks=[task_key_message(key) for key in self._tasks.tasks()[:TASKS_PER_NODE_MAX]],
        )

    def _on_welcome(self, welcome: agent_pb2.Welcome, sent_s: float) -> None:
        self._check_cluster(welcome.cluster_id)
        self._leases.on_terms(welcome.lease_exclusive_s, welcome.lease_fenced_s, sent_s)
        self._heartbeat_s = welcome.heartbeat_s if 0.01 <= welcome.heartbeat_s <= 60.0 else HEARTBEAT_S
        self._redial_s = max(REDIAL_S_MIN, welcome.redial_s) if welcome.redial_s > 0 else 0.0
        self._ever_welcome = True
        superseded = self._reports.start_over()
        for position in welcome.positions:
            key = task_key_of(position.task)
            seq = position.journal_seq
            self._reports.track(key, seq, superseded=key in superseded)
            if key not in superseded:
                self._tasks.acknowledge(key, seq)
            self._logs.watch(key)
            self.on_growth(key)
            self.leaving.leave_if_done(key)
        for message in welcome.forget:
            key = task_key_of(message)
            # Its end is still told: whoever follows its output waits to hear how long that is.
            self._reports.track(key, 0, superseded=True)
            self.on_growth(key)
            self.leaving.leave(key, "superseded")
        self._on_connected(True)

    # Down: what the scheduler says.

    async def _keep_reading(self, call: _Call) -> None:
        while True:
            async with asyncio.timeout(SILENT_HEARTBEATS * self._heartbeat_s):
                message: agent_pb2.ToAgent = await next_message(call)
            match message.WhichOneof("kind"):
                case "heartbeat":
                    self._leases.on_renewed(message.heartbeat.sent_monotonic_s, boottime_s())
                case "ack":
                    self._on_ack(message.ack.positions)
                case "start":
                    for start in message.start.tasks:
                        await self._on_start(start)
                case "stop":
                    self._on_stop(message.stop)
                case "save":
                    self._on_save(message.save)
                case "inspect":
                    self._on_inspect(message.inspect)
                case "welcome":
                    raise StreamLost("the scheduler said welcome twice")
                case other:
                    log.warning("the scheduler sent %s, which this version does not know", other)

    def _on_ack(self, positions: Iterable[agent_pb2.TaskPosition]) -> None:
        for message in positions:
            key = task_key_of(message.task)
            position = self._reports.position(key)
            if position is None or not position.on_stored(message.journal_seq):
                continue
            if not position.superseded:
                self._tasks.acknowledge(key, message.journal_seq)
            self.leaving.leave_if_done(key)
        self.leaving.on_ack()
        self._wake.set()  # room in the window

    async def _on_start(self, start: agent_pb2.StartTask) -> None:
        key = task_key_of(start.task)
        if self.leaving.is_over(key):
            log.warning("task %s has been here and is over: not started again", key)
            return
        if start.log_bytes_max <= 0 or start.log_bytes_max > self._log_bytes_max:
            start.log_bytes_max = self._log_bytes_max
        await self._operations.acquire()  # the stream waits, not a queue
        if self._reports.position(key) is None:
            self._reports.track(key, 0, superseded=False)

        async def begin() -> None:
            try:
                await self._tasks.start(start)
                self._logs.watch(key)
            finally:
                self._operations.release()

        self._turns.then(key, begin)

    def _on_stop(self, stop: agent_pb2.StopTask) -> None:
        key = task_key_of(stop.task)
        if position := self._reports.position(key):
            position.superseded = True
        if position or key in self._tasks.tasks():
            grace_s, keep_s = (min(max(0.0, each), GRACE_S_MAX) for each in (stop.grace_s, stop.keep_s))
            self._stop(key, grace_s, stop.why or "stopped", keep_s)

    def _on_save(self, save: agent_pb2.AskSave) -> None:
        key = task_key_of(save.task)
        if key in self._tasks.tasks():
            self._turns.then(key, lambda: self._tasks.ask_save(key, save.request))

    def _on_inspect(self, inspect: agent_pb2.InspectTask) -> None:
        key = task_key_of(inspect.task)
        if key in self._tasks.tasks():
            self._turns.then(key, lambda: self._tasks.inspect(key))

    def _stop(self, key: TaskKey, grace_s: float, why: str, keep_s: float = 0.0) -> None:
        self._turns.then(key, lambda: self._tasks.stop(key, grace_s, why, keep_s))

    # Up: heartbeats, inventory, reports.

    async def _keep_writing(self, call: _Call) -> None:
        sequence = 0
        due_s = time.monotonic()
        samples: list[agent_pb2.GpuSample] | None = None
        reported_s = 0.0
        while True:
            now_s = time.monotonic()
            if now_s >= due_s:
                sequence += 1
                newest = self._samples()
                beat = agent_pb2.Heartbeat(
                    sequence=sequence,
                    sent_monotonic_s=boottime_s(),
                    gpus=newest if newest is not samples else (),
                )
                samples = newest
                await write_message(call, agent_pb2.FromAgent(heartbeat=beat), WRITE_S)
                due_s = max(due_s + self._heartbeat_s, now_s)
            if self._inventory_due:
                self._inventory_due = False
                await write_message(call, agent_pb2.FromAgent(inventory=self._inventory()), WRITE_S)
            if self._reports.waiting and (early_s := reported_s + GATHER_S - time.monotonic()) > 0:
                await asyncio.sleep(early_s)
            self._wake.clear()
            entries = self._reports.next_batch()
            if entries:
                reported_s = time.monotonic()
                reports = agent_pb2.Reports(entries=entries, sent_monotonic_s=reported_s)
                await write_message(call, agent_pb2.FromAgent(reports=reports), WRITE_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due_s - time.monotonic())):
                    await self._wake.wait()

    async def close(self) -> None:
        """Drop what is under way for the tasks; they themselves go on."""
        await self.leaving.close()
        await self._turns.close()
