"""What is asked for a task is done one after the other: a stop never overtakes its start. Tasks do not wait
for each other. All of it belongs to the event loop's thread.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ..spec.errors import PacelineError
from ..spec.ids import TaskKey

log = logging.getLogger(__name__)


class Turns:
    """Of one agent's tasks. What goes wrong is logged."""

    def __init__(self) -> None:
        self._last: dict[TaskKey, asyncio.Task[None]] = {}

    def then(self, key: TaskKey, act: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Act on this task after what was asked before for it."""
        before = self._last.get(key)

        async def run() -> None:
            if before is not None:
                await asyncio.wait([before])
            try:
                await act()
            except (OSError, PacelineError) as error:
                log.error("task %s: %s", key, error)

        task = self._last[key] = asyncio.create_task(run())
        task.add_done_callback(lambda done: self._on_done(key, done))
        return task

    async def close(self) -> None:
        """Drop what is under way for the tasks; they themselves go on."""
        pending = list(self._last.values())
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)

    def _on_done(self, key: TaskKey, done: asyncio.Task[None]) -> None:
        if self._last.get(key) is done:
            del self._last[key]
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("task %s: an operation failed", key, exc_info=error)
