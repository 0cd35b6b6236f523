"""When a task is over: what is left of it is killed, told and shipped, then its folder goes.

Each task leaves in its own time; one that has left is remembered for a while, so that a late start of it
starts nothing. All of it belongs to the event loop's thread.
"""

import asyncio
from collections import OrderedDict
from typing import Final, Protocol

from ..proto.generated import agent_pb2
from ..spec.ids import TaskKey
from .reports import Reports
from .turns import Turns

FORGOTTEN_MAX: Final = 10_000


class Tasks(Protocol):
    """What leaving needs of agent.supervisor.Supervisor, whose docstrings say what each does."""

    async def stop(self, key: TaskKey, grace_s: float, why: str, keep_s: float) -> None: ...
    async def forget(self, key: TaskKey) -> None: ...
    async def wait_ended(self, key: TaskKey) -> None: ...
    def tasks(self) -> tuple[TaskKey, ...]: ...
    def entries(self, key: TaskKey, after_seq: int, limit: int) -> list[agent_pb2.JournalEntry]: ...
    def ended(self, key: TaskKey) -> bool: ...


class Logs(Protocol):
    """What leaving needs of agent.shipping.LogShipper."""

    def watch(self, key: TaskKey) -> None: ...
    def drop(self, key: TaskKey) -> None: ...
    async def wait_shipped(self, key: TaskKey) -> None: ...


class Leaving:
    """Of one agent."""

    def __init__(self, tasks: Tasks, logs: Logs, reports: Reports, turns: Turns) -> None:
        self._tasks = tasks
        self._logs = logs
        self._reports = reports
        self._turns = turns
        self._leaving: dict[TaskKey, asyncio.Task[None]] = {}
        self._forgotten: OrderedDict[TaskKey, None] = OrderedDict()
        self._left = asyncio.Event()
        self._acked = asyncio.Event()

    def is_over(self, key: TaskKey) -> bool:
        """It has been here, and leaves or has left."""
        return key in self._forgotten or key in self._leaving

    def on_ack(self) -> None:
        """The scheduler has committed more of some journal."""
        self._acked.set()

    def leave_if_done(self, key: TaskKey) -> None:
        if self._is_told(key):
            self.leave(key, "ended")

    def leave(self, key: TaskKey, why: str) -> None:
        """Kill what is left, ship the rest of the logs, drop the folder: all in its own time."""
        if not self.is_over(key):
            self._leaving[key] = asyncio.create_task(self._finish(key, why))

    async def wait_left(self, key: TaskKey) -> None:
        """Return when the task's folder is gone: it has ended and the scheduler knows all of it."""
        while key in self._tasks.tasks():
            self._left.clear()
            await self._left.wait()

    async def close(self) -> None:
        """What has not left yet stays for the next agent."""
        pending = list(self._leaving.values())
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)

    def _is_told(self, key: TaskKey) -> bool:
        """It has ended, and this stream's scheduler has all of its journal."""
        position = self._reports.position(key)
        if position is None or not self._tasks.ended(key):
            return False
        return not self._tasks.entries(key, position.stored, 1)

    async def _wait_told(self, key: TaskKey) -> None:
        while not self._is_told(key):
            self._acked.clear()
            await self._acked.wait()

    async def _finish(self, key: TaskKey, why: str) -> None:
        try:
            if not self._tasks.ended(key):
                await self._turns.then(key, lambda: self._tasks.stop(key, 0.0, why, 0.0))
                await self._tasks.wait_ended(key)
            self._logs.watch(key)
            await self._wait_told(key)
            await self._logs.wait_shipped(key)
            self._logs.drop(key)  # its files are not to be open when the folder goes
            await self._turns.then(key, lambda: self._tasks.forget(key))
            self._forgotten[key] = None
            while len(self._forgotten) > FORGOTTEN_MAX:
                self._forgotten.popitem(last=False)
        finally:
            self._logs.drop(key)
            self._leaving.pop(key, None)
            self._reports.drop(key)
            self._left.set()
