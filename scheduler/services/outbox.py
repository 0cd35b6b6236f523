"""What goes to one agent: it waits in order and in bounds, and starts that follow each other go together."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final

from ...proto.generated import agent_pb2
from ...proto.limits import STARTS_BYTES_MAX, STARTS_MAX
from ...spec.errors import LimitExceeded, PacelineError, Unavailable
from ...spec.ids import NodeId
from ..core.effects import Effect

Outgoing = agent_pb2.ToAgent | Effect
OUTBOX_MAX: Final = 50_000
"""Messages that wait for one agent."""


class Outbox:
    """What waits to be sent to one agent, in order. The loop's Sink for its node."""

    def __init__(self, node: NodeId) -> None:
        self._node = node
        self._waiting: deque[Outgoing] = deque()
        self._filled = asyncio.Event()
        self._over = False
        self.error: BaseException | None = None
        self.why = "the connection broke"

    def send(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            self.put(effect)

    def close(self, why: str) -> None:
        self.fail(Unavailable(why))

    def put(self, message: Outgoing) -> None:
        if len(self._waiting) >= OUTBOX_MAX:
            self.fail(LimitExceeded(f"node {self._node} does not read: {OUTBOX_MAX} messages wait for it"))
            return
        self._waiting.append(message)
        self._filled.set()

    def end(self, why: str) -> None:
        """Send what waits, then end."""
        self._over = True
        self.why = why
        self._filled.set()

    def fail(self, error: BaseException) -> None:
        """End now, with this error; the first one counts."""
        if self.error is None:
            self.error = error
            self.why = error.message if isinstance(error, PacelineError) else repr(error)
        self._waiting.clear()
        self.end(self.why)

    async def batches(self) -> AsyncIterator[Sequence[Outgoing]]:
        """What waits, all at once; ends after `end` or `fail`."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            taken = tuple(self._waiting)
            self._waiting.clear()
            if taken:
                yield taken
            if self._over and not self._waiting:
                return


class Rendered:
    """`messages`, as they are to be sent. Each costs its reader more than a start in it does."""

    def __init__(self) -> None:
        self.messages: list[agent_pb2.ToAgent] = []
        self._starts: agent_pb2.StartTasks | None = None
        self._starts_bytes = 0

    def add(self, message: agent_pb2.ToAgent) -> None:
        self.messages.append(message)
        self._starts = None

    def add_start(self, start: agent_pb2.StartTask) -> None:
        """To those just before it, as far as a message may be long."""
        size = start.ByteSize()
        starts = self._starts
        if starts is None or len(starts.tasks) >= STARTS_MAX or self._starts_bytes + size > STARTS_BYTES_MAX:
            self.add(agent_pb2.ToAgent(start=agent_pb2.StartTasks()))
            starts = self._starts = self.messages[-1].start
            self._starts_bytes = 0
        starts.tasks.append(start)
        self._starts_bytes += size
