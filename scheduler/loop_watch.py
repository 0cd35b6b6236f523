"""Who hears what is committed.

A node has a Sink. Who follows a job has a bounded line of committed events; who falls behind is cut off. Who
follows a study or an endpoint hears only that it has changed.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Protocol

from ..spec.errors import PacelineError, Unavailable
from ..spec.ids import JobId
from .core.effects import Effect
from .loop_step import Committed

WATCH_MAX = 4096


class Sink(Protocol):
    """Where a node's messages go. Called in the loop's thread after the commit; must not block."""

    def send(self, effects: tuple[Effect, ...]) -> None: ...

    def close(self, why: str) -> None:
        """The loop starts anew, or another session took the node's place: end the stream."""


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


class ChangeWatch:
    """Says that a study, or an endpoint, has changed since it was last asked."""

    def __init__(self, watchers: "Watchers", key: int | str) -> None:
        self.key = key
        self._watchers = watchers
        self._news = asyncio.Event()
        self._error: PacelineError | None = None

    async def changed(self) -> None:
        """Returns after the commit of a change; at once, if there was one since the last return. Raises
        Unavailable when the loop starts anew or ends."""
        await self._news.wait()
        if self._error is not None:
            raise self._error
        self._news.clear()

    def close(self) -> None:
        self._watchers.drop_change(self)

    def tell(self, error: PacelineError | None = None) -> None:
        self._error = error
        self._news.set()


class Watchers:
    """All watches: by job, by study's number and endpoint's name."""

    def __init__(self) -> None:
        self._watches: dict[JobId, set[Watch]] = {}
        self._changes: dict[int | str, set[ChangeWatch]] = {}

    def add_change(self, key: int | str) -> "ChangeWatch":
        watch = ChangeWatch(self, key)
        self._changes.setdefault(key, set()).add(watch)
        return watch

    def drop_change(self, watch: "ChangeWatch") -> None:
        watches = self._changes.get(watch.key, set())
        watches.discard(watch)
        if not watches:
            self._changes.pop(watch.key, None)

    def tell_changes(self, keys: Iterable[int | str]) -> None:
        for key in keys:
            for watch in self._changes.get(key, ()):
                watch.tell()

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
        for following in self._changes.values():
            for change_watch in following:
                change_watch.tell(error)
        self._changes.clear()
