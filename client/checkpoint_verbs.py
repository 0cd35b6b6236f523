"""The clients' verbs on checkpoints: blocking and asyncio, on the transports of sdk.py and aio.py.

`checkpoint` asks, then follows the job's history from that request on: what answers it is an event there.
"""

import json
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from ..spec.errors import Conflict, PacelineError
from ..spec.ids import JobId
from . import calls, rpc, views
from .documents import Prepared, prepare
from .packing import Calling, packed
from .settings import Settings

T = TypeVar("T")


class SaveFailed(PacelineError):
    """The job could not make the checkpoint that was asked for; it goes on."""

    code = "save-failed"


class CheckpointVerbs:
    """Of the blocking client."""

    settings: Settings

    def checkpoints(self, job: int) -> tuple[views.Checkpoint, ...]:
        """All that were ever accepted, newest first: what became of each, and why it is kept."""
        return self._call(calls.checkpoints(job))

    def preempt(self, job: int, *, grace_s: float = 0.0) -> views.Job:
        """End the running attempt after a save; the job waits again. `grace_s` 0: what its saves take."""
        return self._call(calls.preempt(job, grace_s=grace_s, key=rpc.new_key(), user=rpc.user_name()))

    def checkpoint(self, job: int, timeout_s: float | None = None) -> views.Checkpoint:
        """Have a running job save at its next step; the checkpoint, once it is on disk. Raises Conflict when
        the job cannot save, SaveFailed when it tried, or left, WaitTimedOut."""
        asked = self._call(calls.ask_checkpoint(job, key=rpc.new_key(), user=rpc.user_name()))
        for change in self._watch_for(job, asked.request, timeout_s):
            if (step := answer_of(change, asked)) is not None:
                found = self._call(calls.checkpoints(job))
                return next(one for one in found if one.step == step)
        raise _left(job)

    def restore(self, job: int, step: int) -> views.Job:
        """Send a live job back to that step. Raises NotFound, and Conflict for a job that is over."""
        return self._call(calls.restore(job, step, key=rpc.new_key(), user=rpc.user_name()))

    def fork(self, job: int, from_step: int, *, overrides: Sequence[str] = (), name: str = "") -> JobId:
        """A new job with the same document (but `overrides`) that goes on from that checkpoint of `job`."""
        parent = self._call(calls.job(job))
        [prepared] = self._drive(packed([fork_of(parent, overrides, name)], self.settings))
        call = calls.fork(job, from_step, prepared.sent, key=rpc.new_key(), user=rpc.user_name())
        return self._call(call)[0]

    @abstractmethod
    def _call(self, call: rpc.Call[T]) -> T: ...

    @abstractmethod
    def _drive(self, calling: Calling[T]) -> T: ...

    @abstractmethod
    def _watch_for(self, job: int, after_seq: int, timeout_s: float | None) -> Iterator[views.Change]: ...


class AsyncCheckpointVerbs:
    """Of the asyncio client; see CheckpointVerbs."""

    settings: Settings

    async def checkpoints(self, job: int) -> tuple[views.Checkpoint, ...]:
        return await self._call(calls.checkpoints(job))

    async def preempt(self, job: int, *, grace_s: float = 0.0) -> views.Job:
        call = calls.preempt(job, grace_s=grace_s, key=rpc.new_key(), user=rpc.user_name())
        return await self._call(call)

    async def checkpoint(self, job: int, timeout_s: float | None = None) -> views.Checkpoint:
        asked = await self._call(calls.ask_checkpoint(job, key=rpc.new_key(), user=rpc.user_name()))
        async for change in self._watch_for(job, asked.request, timeout_s):
            if (step := answer_of(change, asked)) is not None:
                found = await self._call(calls.checkpoints(job))
                return next(one for one in found if one.step == step)
        raise _left(job)

    async def restore(self, job: int, step: int) -> views.Job:
        return await self._call(calls.restore(job, step, key=rpc.new_key(), user=rpc.user_name()))

    async def fork(self, job: int, from_step: int, *, overrides: Sequence[str] = (), name: str = "") -> JobId:
        parent = await self._call(calls.job(job))
        [prepared] = await self._drive(packed([fork_of(parent, overrides, name)], self.settings))
        call = calls.fork(job, from_step, prepared.sent, key=rpc.new_key(), user=rpc.user_name())
        return (await self._call(call))[0]

    @abstractmethod
    async def _call(self, call: rpc.Call[T]) -> T: ...

    @abstractmethod
    async def _drive(self, calling: Calling[T]) -> T: ...

    @abstractmethod
    def _watch_for(
        self, job: int, after_seq: int, timeout_s: float | None
    ) -> AsyncIterator[views.Change]: ...


def fork_of(parent: views.Job, overrides: Sequence[str], name: str) -> Prepared:
    """The parent's document as a new job's. It runs where its parent ran, unless `code` says where."""
    document = json.loads(parent.document)
    if any(one.partition("=")[0].strip() == "code" for one in overrides):  # not what was packed then
        for key in ("code_tree", "code_git", "code_in_place"):
            document.pop(key, None)
        return prepare(document, overrides=overrides, name=name)
    made = prepare(document, overrides=overrides, name=name)
    if document.get("code"):
        return made
    return replace(made, spec=made.spec.model_copy(update={"code": None, "code_in_place": False}))


def answer_of(change: views.Change, asked: views.SaveAsked) -> int | None:
    """The step of the checkpoint that answers the request; None: this event is no answer. Raises
    SaveFailed."""
    entry = change.entry
    if entry.kind in ("AttemptEnded", "JobEnded"):
        raise SaveFailed(f"attempt {asked.attempt} ended before it saved: {entry.text}")
    if entry.kind not in ("CheckpointAccepted", "CheckpointFailed"):
        return None
    told = json.loads(entry.body)
    if told.get("request", 0) < asked.request:
        return None
    if entry.kind == "CheckpointFailed":
        raise SaveFailed(entry.text, hint="training goes on without it; ask again")
    return int(told["step"])


def _left(job: int) -> Conflict:
    return Conflict(f"job {job} was over before it saved", job=job)
