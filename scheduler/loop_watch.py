"""Who follows a job: a bounded line of committed events each; who falls behind is cut off."""

import asyncio
from collections.abc import AsyncIterator

from ..spec.errors import PacelineError, Unavailable
from ..spec.ids import JobId
from .loop_engine import Committed

WATCH_MAX = 4096


class Watch(AsyncIterator[Committed]):
    """Yields a job's events as they are committed; ends after the one that ends the job."""

    def __init__(self, watchers: "Watchers", job: JobId) -> None:
        self.job = job
        self._watchers = watchers
        self._line: asyncio.Queue[Committed | PacelineError] = asyncio.Queue(WATCH_MAX + 1)
        self._over = False

    def __aiter__(self) -> "Watch":
        return self

    async def __anext__(self) -> Committed:
        if self._over and self._line.empty():
            raise StopAsyncIteration
        item = await self._line.get()
        if isinstance(item, PacelineError):
            self.close()
            raise item
        if item.job is not None and item.job.over and self._line.empty():
            self.close()
        return item

    def close(self) -> None:
        """Stop listening; what has arrived can still be read."""
        self._over = True
        self._watchers.drop(self)

    def tell(self, item: Committed | PacelineError) -> None:
        if self._line.qsize() < WATCH_MAX:
            self._line.put_nowait(item)
            return
        self._watchers.drop(self)
        self._line.put_nowait(
            Unavailable(
                f"job {self.job} had more than {WATCH_MAX} events that nobody read", hint="watch again"
            )
        )


class Watchers:
    """All watches, by job."""

    def __init__(self) -> None:
        self._watches: dict[JobId, set[Watch]] = {}

    def add(self, job: JobId) -> Watch:
        watch = Watch(self, job)
        self._watches.setdefault(job, set()).add(watch)
        return watch

    def drop(self, watch: Watch) -> None:
        watches = self._watches.get(watch.job, set())
        watches.discard(watch)
        if not watches:
            self._watches.pop(watch.job, None)

    def tell(self, committed: Committed) -> None:
        if committed.job is None or committed.job.number not in self._watches:
            return
        for watch in tuple(self._watches[committed.job.number]):
            watch.tell(committed)

    def end_all(self, error: PacelineError) -> None:
        for watches in list(self._watches.values()):
            for watch in tuple(watches):
                watch.tell(error)
        self._watches.clear()
