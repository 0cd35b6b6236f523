"""The clients' verbs on sweeps: blocking and asyncio, on the transports of sdk.py and aio.py."""

import asyncio
import os
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from . import calls, promotion, rpc, submit_calls, sweep_calls
from .documents import JobSource, Prepared, prepared_sweep
from .packing import Calling, packed
from .promotion import Promoted
from .settings import Settings
from .sweep_calls import Verb
from .sweep_views import Sweep, Trial

T = TypeVar("T")


class SweepVerbs:
    """Of the blocking client, which submits them in submitter.py."""

    def sweep(self, sweep: int) -> Sweep:
        """All about one sweep, its best trials too. Raises NotFound."""
        return self._call(sweep_calls.sweep(sweep))

    def sweeps(self, *, limit: int = 100) -> tuple[Sweep, ...]:
        """The newest `limit` sweeps, newest first."""
        return self._call(sweep_calls.page(limit=limit, cursor=""))[0]

    def trials(self, sweep: int) -> Iterator[Trial]:
        """All trials of a sweep, by number."""
        first = 0
        while some := self._call(sweep_calls.trials(sweep, first)):
            yield from some
            first += len(some)

    def pause_sweep(self, sweep: int) -> Sweep:
        """Start no further trials; those that run go on. Raises NotFound, Conflict."""
        return self._call(_change(sweep, Verb.PAUSE))

    def resume_sweep(self, sweep: int) -> Sweep:
        """Go on with one that was paused."""
        return self._call(_change(sweep, Verb.RESUME))

    def stop_sweep(self, sweep: int) -> Sweep:
        """End it: trials that run are cancelled, with notice."""
        return self._call(_change(sweep, Verb.STOP))

    def extend_sweep(self, sweep: int, trials: int) -> Sweep:
        """Add so many trials, also to one that is over."""
        return self._call(_change(sweep, Verb.EXTEND, trials))

    def enqueue(self, sweep: int, *points: Mapping[str, Any]) -> tuple[int, ...]:
        """Points (name -> value) that are tried next; the numbers of their trials. Raises InvalidRequest."""
        return self._call(sweep_calls.enqueue(sweep, points, key=rpc.new_key()))

    def promote(self, sweep: int, to: str | os.PathLike[str], *, trial: int | None = None) -> Promoted:
        """Put the best trial's outputs and newest checkpoint, or those of `trial`, into the folder `to`,
        which is new or empty. Raises NotFound, Conflict, InvalidRequest."""
        found = self.sweep(sweep)
        number = promotion.chosen(found) if trial is None else trial
        some = self._call(sweep_calls.trials(sweep, number, 1))
        one, job = promotion.with_job(found, number, some)
        return promotion.carry_out(found, one, self._call(calls.job(job)), to)

    def watch_sweep(self, sweep: int) -> Iterator[Sweep]:
        """The sweep as it stands, and again when that has changed, until it is over."""
        return self._stream(sweep_calls.SweepCursor(sweep))

    def wait_sweep(self, sweep: int) -> Sweep:
        """Block until it is over."""
        last = self.sweep(sweep)
        for seen in self.watch_sweep(sweep):
            last = seen
        return last

    @abstractmethod
    def _call(self, call: rpc.Call[T]) -> T: ...

    @abstractmethod
    def _stream(self, cursor: calls.Cursor) -> Iterator[Any]: ...


class AsyncSweepVerbs:
    """Of the asyncio client."""

    settings: Settings

    async def submit_sweep(
        self, sweep: "JobSource | Prepared", *, overrides: Sequence[str] = (), name: str = ""
    ) -> int:
        """Submit a sweep; see Client.submit_sweep."""
        [ready] = await self._drive(packed([prepared_sweep(sweep, overrides, name)], self.settings))
        return await self._call(submit_calls.sweep(ready.sent, key=rpc.new_key(), user=rpc.user_name()))

    async def sweep(self, sweep: int) -> Sweep:
        """All about one sweep."""
        return await self._call(sweep_calls.sweep(sweep))

    async def sweeps(self, *, limit: int = 100) -> tuple[Sweep, ...]:
        """The newest `limit` sweeps."""
        return (await self._call(sweep_calls.page(limit=limit, cursor="")))[0]

    async def trials(self, sweep: int) -> AsyncIterator[Trial]:
        """All trials of a sweep, by number."""
        first = 0
        while some := await self._call(sweep_calls.trials(sweep, first)):
            for trial in some:
                yield trial
            first += len(some)

    async def pause_sweep(self, sweep: int) -> Sweep:
        """Start no further trials."""
        return await self._call(_change(sweep, Verb.PAUSE))

    async def resume_sweep(self, sweep: int) -> Sweep:
        """Go on with one that was paused."""
        return await self._call(_change(sweep, Verb.RESUME))

    async def stop_sweep(self, sweep: int) -> Sweep:
        """End it: trials that run are cancelled, with notice."""
        return await self._call(_change(sweep, Verb.STOP))

    async def extend_sweep(self, sweep: int, trials: int) -> Sweep:
        """Add so many trials, also to one that is over."""
        return await self._call(_change(sweep, Verb.EXTEND, trials))

    async def enqueue(self, sweep: int, *points: Mapping[str, Any]) -> tuple[int, ...]:
        """Points that are tried next."""
        return await self._call(sweep_calls.enqueue(sweep, points, key=rpc.new_key()))

    async def promote(self, sweep: int, to: str | os.PathLike[str], *, trial: int | None = None) -> Promoted:
        """Put the best trial's outputs and newest checkpoint into a folder; see Client.promote."""
        found = await self.sweep(sweep)
        number = promotion.chosen(found) if trial is None else trial
        some = await self._call(sweep_calls.trials(sweep, number, 1))
        one, job = promotion.with_job(found, number, some)
        return await asyncio.to_thread(promotion.carry_out, found, one, await self._call(calls.job(job)), to)

    async def wait_sweep(self, sweep: int) -> Sweep:
        """Wait until it is over."""
        last = await self.sweep(sweep)
        async for seen in self.watch_sweep(sweep):
            last = seen
        return last

    def watch_sweep(self, sweep: int) -> AsyncIterator[Sweep]:
        """The sweep as it stands, and again when that has changed, until it is over."""
        return self._stream(sweep_calls.SweepCursor(sweep))

    @abstractmethod
    async def _call(self, call: rpc.Call[T]) -> T: ...

    @abstractmethod
    async def _drive(self, calling: Calling[T]) -> T: ...

    @abstractmethod
    def _stream(self, cursor: calls.Cursor) -> AsyncIterator[Any]: ...


def _change(sweep: int, verb: "Verb.ValueType", trials: int = 0) -> rpc.Call[Sweep]:
    return sweep_calls.change(sweep, verb, user=rpc.user_name(), trials=trials)
