"""Watches tasks that have been started: hears of their journals, and finishes what a dead shim left.

A task is over when its journal says so, and every journal comes to that: by its shim, or, where that is gone,
from here, when nothing of the task is left alive.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

from . import containment, kernel
from .claims import forbid
from .disk import Disk
from .memory import MemoryFolders
from .peer_door import PeerDoor
from .shim_link import ShimLink, dial
from .shim_pool import ShimPool
from .task import Task, kill_leftovers, missing_entries, write_entries

log = logging.getLogger(__name__)

_FOR_GOOD = frozenset({"cancelled", "timed-out", "timeout", "agent stopped"})
"""Whys of stops after which the job is over, or this agent is."""
_DYING_S = 0.2
"""A shim that lives so long after its connection has ended has only dropped us."""


class Watcher:
    """Belongs to the event loop's thread. `on_growth(task)` must return at once."""

    def __init__(
        self,
        disk: Disk,
        shims: ShimPool,
        memory: MemoryFolders,
        answer_s: float,
        on_growth: Callable[[Task], None],
        *,
        door: PeerDoor,
    ) -> None:
        self._disk = disk
        self._shims = shims
        self._memory = memory
        self._door = door
        self._answer_s = answer_s
        self._on_growth = on_growth
        self._background: set[asyncio.Task[None]] = set()
        self._closed = False

    def link(self, task: Task, sock: socket.socket) -> ShimLink:
        """Hear of the task over this connection to its shim."""
        link = ShimLink(sock)
        self.bind(task, link)
        return link

    def bind(self, task: Task, link: ShimLink) -> None:
        """The connection is that task's from now on."""
        task.link = link
        link.on_growth = lambda: self.grow(task)
        link.on_end = lambda: self._on_link_end(task)
        link.on_free = link.close

    def grow(self, task: Task) -> None:
        """Read what its journal has more."""
        grown = task.journal.grow()
        if task.journal.last is not None and not task.over.is_set():
            task.over.set()
            self._door.revoke(task.key)
            self._memory.release(task.key.job, over=_job_is_over(task.journal.last))
            self.let_go(task)
        if grown:
            self._on_growth(task)

    def _on_link_end(self, task: Task) -> None:
        task.link = None
        self.grow(task)
        if not task.over.is_set() and not task.starting:
            self._in_background(self._on_shim_lost(task))

    async def _on_shim_lost(self, task: Task) -> None:
        """The connection ended before the journal did: the shim died, or has only dropped us."""
        shim = task.shim()
        if shim is not None and await _lives_on(*shim, _DYING_S) and await self._redial(task):
            return
        await self.bury(task)

    async def _redial(self, task: Task) -> bool:
        """Connect to a shim that lives. False: it cannot be reached, and is dead now."""
        until = time.monotonic() + self._answer_s
        while (shim := task.shim()) is not None and kernel.is_alive(*shim):
            try:
                sock = dial(task.folder)
            except OSError as error:
                if time.monotonic() > until:
                    log.warning("task %s: its shim cannot be reached (%s); killing it", task.key, error)
                    self.kill_shim(task)
                    return False
                await asyncio.sleep(0.01)
                continue
            self.link(task, sock).send({"op": "watch"})
            return True
        return False

    def kill_shim(self, task: Task) -> None:
        """SIGKILL; its end is seen where its connection ends."""
        shim = task.shim()
        if shim is not None and kernel.is_alive(*shim):
            containment.signal_all([shim[0]], signal.SIGKILL)

    async def bury(self, task: Task) -> None:
        """There is no shim: kill what it left, then write the end that it could not write."""
        await self._disk.run_alone(lambda: forbid(str(task.folder)))
        left = await self._disk.run_alone(lambda: kill_leftovers(task))
        self.grow(task)
        if task.over.is_set():
            return
        if task.journal.started is None:
            reason = {"code": "shim-died", "text": "the task's shim died before it had started the ranks"}
            await self.append(task, [("refused", {"reason": reason, "transient": True})])
            return
        unkillable = f"; {len(left)} processes cannot be killed: {left[:10]}" if left else ""
        await self.append(task, missing_entries(task, (task.stop_why or "shim died") + unkillable))

    async def append(self, task: Task, entries: list[tuple[str, dict[str, Any]]]) -> None:
        """Write what no shim will. Where the disk refuses, it is kept in memory: somebody must hear of it."""
        try:
            await self._disk.run_alone(lambda: write_entries(task.folder, entries))
        except OSError as error:
            log.error("task %s: cannot write its journal: %s", task.key, error)
            for kind, fields in entries:
                task.journal.keep(kind, fields, time.monotonic())
            self._on_growth(task)
        self.grow(task)

    async def adopt(self, task: Task) -> None:
        """After a restart of the agent: go on watching it, or bury it."""
        await self._disk.run_alone(lambda: forbid(str(task.folder)))
        self.grow(task)
        if not task.request.processes and (started := task.journal.started):  # task.json did not survive
            task.request.processes = len(started["pids"])
            task.request.first_rank = started.get("first_rank", 0)
        if not task.over.is_set() and not await self._redial(task):
            await self.bury(task)

    def hand_on(self, link: ShimLink, before: Task, task: Task) -> None:
        """The shim at the other end has gone on from one task to the next."""
        self.bind(task, link)
        if not link.alive:
            self._on_link_end(task)
        self.grow(before)
        self.grow(task)

    def let_go(self, task: Task) -> None:
        """Keep nothing open for it. Of one that is over, the shim may serve another."""
        link, shim = task.link, task.shim_to_keep
        task.link = task.shim_to_keep = None
        if task.hands_on and task.over.is_set():  # whoever asked it to has both
            link = None
        if task.overdue is not None:
            task.overdue.cancel()
            task.overdue = None
        if link is not None and shim is not None and task.over.is_set():
            self._shims.give(shim, lambda: _set_left(task))
        elif link is not None:
            link.close()
        if task.acked_fd >= 0:
            os.close(task.acked_fd)
            task.acked_fd = -1

    def look_after(self, task: Task) -> None:
        """Its connection ended while its shim was being started: there may be none."""
        self._in_background(self._on_shim_lost(task))

    async def close(self) -> None:
        """Shims and their tasks live on."""
        self._closed = True
        for running in self._background:
            running.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            work.close()
            return
        running = asyncio.ensure_future(work)
        self._background.add(running)
        running.add_done_callback(self._on_background_done)

    def _on_background_done(self, done: "asyncio.Future[None]") -> None:
        self._background.discard(done)
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("a task could not be looked after", exc_info=error)


def _job_is_over(last: dict[str, Any]) -> bool:
    """As far as one node can tell: what ended well, or was stopped for good, does not come back."""
    codes, why = last.get("exit_codes", ()), last.get("why")
    return why in _FOR_GOOD or (why == "exited" and bool(codes) and not any(codes))


def _set_left(task: Task) -> None:
    task.is_left = True


async def _lives_on(pid: int, started: int, patience_s: float) -> bool:
    """False as soon as the process is dead; True when it still lives after that time."""
    until = time.monotonic() + patience_s
    while kernel.is_alive(pid, started):
        if time.monotonic() > until:
            return True
        await asyncio.sleep(0.005)
    return False
