"""The SDK's `AsyncClient`: the same verbs for asyncio; sdk.py says what holds for both."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from ..proto import channels  # before grpc, which it keeps quiet

# isort: split
import grpc

from ..proto.failures import error_of
from ..spec.errors import PacelineError
from ..spec.ids import JobId
from ..spec.lifecycle import JobState
from . import calls, rpc, submit_calls, views
from .answer_verbs import AsyncAnswerVerbs
from .base import DRAIN_LOOK_S, Base, not_drained, not_yet, timed_out
from .checkpoint_verbs import AsyncCheckpointVerbs
from .documents import JobSource, Prepared, prepare, sent_jobs
from .endpoint_verbs import AsyncEndpointVerbs
from .packing import Calling, packed
from .patience import Patience
from .policy_verbs import AsyncPolicyVerbs
from .registry_verbs import AsyncRegistryVerbs
from .stubs import Stubs
from .sweep_verbs import AsyncSweepVerbs

T = TypeVar("T")


class AsyncClient(
    Base,
    AsyncCheckpointVerbs,
    AsyncPolicyVerbs,
    AsyncAnswerVerbs,
    AsyncSweepVerbs,
    AsyncEndpointVerbs,
    AsyncRegistryVerbs,
):
    """The same verbs for asyncio. An async context manager."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._channel = channels.open_aio_channel(self._target)
        self._stubs = Stubs(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; open streams end."""
        await self._channel.close()

    async def submit(self, job: JobSource, *, overrides: Sequence[str] = (), name: str = "") -> JobId:
        """Submit one job; see Client.submit."""
        return (await self.submit_prepared([prepare(job, overrides=overrides, name=name)]))[0]

    async def submit_many(self, jobs: Iterable[JobSource]) -> tuple[JobId, ...]:
        """Submit many; see Client.submit_many."""
        return await self.submit_prepared([prepare(job) for job in jobs])

    async def submit_prepared(self, jobs: Sequence[Prepared]) -> tuple[JobId, ...]:
        """Submit what `documents.prepare` has checked."""
        ids: list[JobId] = []
        ready = await self._drive(packed(jobs, self.settings))
        for part in submit_calls.batches(sent_jobs(ready)):
            made = await self._call(submit_calls.jobs(part, key=rpc.new_key(), user=rpc.user_name()))
            ids.extend(made)
        return tuple(ids)

    async def jobs(
        self,
        *,
        states: Sequence[JobState | str] = (),
        user: str = "",
        name_contains: str = "",
        limit: int = 100,
    ) -> tuple[views.Job, ...]:
        """The newest `limit` jobs, newest first, without documents."""
        found: list[views.Job] = []
        cursor = ""
        while len(found) < limit:
            page, cursor = await self._call(
                calls.jobs_page(
                    states=states,
                    user=user,
                    name_contains=name_contains,
                    limit=limit - len(found),
                    cursor=cursor,
                )
            )
            found += page
            if not cursor:
                break
        return tuple(found)

    async def job(self, job: int) -> views.Job:
        """All about one job. Raises NotFound."""
        return await self._call(calls.job(job))

    async def cancel(self, job: int, *, grace_s: float = 0.0) -> views.Job:
        """Ask a job to stop; see Client.cancel."""
        return await self._call(calls.cancel(job, grace_s=grace_s))

    async def why(self, job: int, *, patience_s: float = 0.0) -> views.Why:
        """Why it waits, or how it ended. `patience_s`: for the predicted start, where it is not known yet."""
        return await self._call(calls.why(job, patience_s=patience_s))

    async def timeline(self, job: int) -> views.Timeline:
        """What happened, and where the time went."""
        return await self._call(calls.timeline(job))

    async def nodes(self) -> views.Cluster:
        """All nodes."""
        nodes: list[views.Node] = []
        cursor = ""
        while True:
            page, cursor = await self._call(calls.nodes_page(cursor=cursor))
            nodes += page.nodes
            if not cursor:
                return views.Cluster(tuple(nodes), page.suspected)

    async def trust(self) -> views.Trust:
        """Say that the silent nodes are really gone; see Client.trust."""
        return await self._call(calls.trust(by=rpc.user_name()))

    async def cordon(self, *nodes: str, why: str = "") -> views.Cordoned:
        """No new task is placed there; see Client.cordon."""
        call = calls.cordon(nodes, why=why, key=rpc.new_key(), by=rpc.user_name())
        return await self._call(call)

    async def drain(self, *nodes: str, why: str = "", deadline_s: float = 0.0) -> views.Cordoned:
        """What runs there moves, too; see Client.drain."""
        call = calls.drain(nodes, why=why, deadline_s=deadline_s, key=rpc.new_key(), by=rpc.user_name())
        return await self._call(call)

    async def watch_drain(
        self, *nodes: str, why: str = "", deadline_s: float = 0.0, timeout_s: float | None = None
    ) -> AsyncIterator[views.Cordoned]:
        """`drain`, and how these nodes stand until nothing runs there; see Client.watch_drain."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        call = calls.drain(nodes, why=why, deadline_s=deadline_s, key=rpc.new_key(), by=rpc.user_name())
        done, told = await self._call(call), None
        while True:
            if told is None or done.stands != told.stands:
                told = done
                yield done
            if not done.tasks_left:
                return
            left_s = DRAIN_LOOK_S if until_s is None else until_s - time.monotonic()
            if left_s <= 0:
                raise not_drained(done, timeout_s)
            await asyncio.sleep(min(DRAIN_LOOK_S, left_s))
            done = await self._call(call, self._stream_patience_s)

    async def uncordon(self, *nodes: str) -> views.Cordoned:
        """Put these nodes back into service."""
        return await self._call(calls.uncordon(nodes, key=rpc.new_key(), by=rpc.user_name()))

    def watch(self, job: int, *, after_seq: int = 0) -> AsyncIterator[views.Change]:
        """A job's events after `after_seq`, then live, until it is over."""
        return self._stream(calls.WatchCursor(job, after_seq))

    def logs(
        self, job: int, *, attempt: int = 0, rank: int = -1, offset: int = 0, follow: bool = False
    ) -> AsyncIterator[views.LogChunk]:
        """A job's output; see Client.logs."""
        return self._stream(calls.LogCursor(job, attempt=attempt, rank=rank, offset=offset, follow=follow))

    async def wait(self, job: int, timeout_s: float | None = None) -> views.Job:
        """Wait until the job is over; the job. Raises WaitTimedOut after `timeout_s`."""
        last = await self.job(job)
        if last.is_over:
            return last
        try:
            async with asyncio.timeout(timeout_s):
                async for change in self.watch(job):
                    last = change.job
                    if last.is_over:
                        break
        except TimeoutError:
            raise timed_out(last, timeout_s) from None
        return await self.job(job)

    async def _call(self, call: rpc.Call[T], patience_s: float | None = None) -> T:
        patience = Patience(self._patience_s if patience_s is None else patience_s)
        while True:
            try:
                return call.decode(await call.method(self._stubs)(call.request, timeout=call.try_s))
            except grpc.RpcError as failed:
                await asyncio.sleep(self._pause_s(patience, error_of(failed)))

    async def _drive(self, calling: Calling[T]) -> T:
        """Make the calls that it yields; it hears of one that fails, too. What it does between them may
        block."""
        go_on: Callable[[], rpc.Call[Any]] = partial(calling.send, None)
        with contextlib.closing(calling):
            while True:
                call, done = await asyncio.to_thread(_next, go_on)
                if call is None:
                    return done  # type: ignore[no-any-return]
                try:
                    go_on = partial(calling.send, await self._call(call))
                except PacelineError as error:
                    go_on = partial(calling.throw, error)

    async def _stream(self, cursor: calls.Cursor) -> AsyncIterator[Any]:
        patience = Patience(self._stream_patience_s)
        while True:
            method, request = cursor.open(self._stubs)
            stream = method(request)
            try:
                async for message in stream:
                    patience.on_success()
                    item = cursor.accept(message)
                    if item is not None:
                        yield item
                if cursor.ends_by_itself:
                    return
                # It ended, which a stopping scheduler may also bring about: look, and ask once more.
                cursor.ends_by_itself = cursor.gives_all(await self.job(cursor.job))
            except grpc.RpcError as failed:
                await asyncio.sleep(self._pause_s(patience, error_of(failed)))
            finally:
                stream.cancel()

    async def _watch_for(
        self, job: int, after_seq: int, timeout_s: float | None
    ) -> AsyncIterator[views.Change]:
        try:
            async with asyncio.timeout(timeout_s):
                async for change in self.watch(job, after_seq=after_seq):
                    yield change
        except TimeoutError:
            raise not_yet(job, timeout_s) from None


def _next(go_on: Callable[[], rpc.Call[Any]]) -> tuple[rpc.Call[Any] | None, Any]:
    """The next call, or none and what it returns."""
    try:
        return go_on(), None
    except StopIteration as done:
        return None, done.value
