"""The clients' verbs on what has been and what would be: blocking and asyncio, on the transports of sdk.py
and aio.py. None of them changes anything.
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar

from ..spec.errors import Unavailable
from . import answer_views, calls, rpc
from .documents import Prepared, sent_jobs
from .policy_verbs import PolicySource, sent_policy

T = TypeVar("T")
OnProgress = Callable[[answer_views.UsageSoFar], None]


class AnswerVerbs:
    """Of the blocking client."""

    def usage(
        self, by: str = "user", *, since_us: int = 0, on_progress: OnProgress | None = None
    ) -> answer_views.Usage:
        """GPU hours by "user", "queue" or "project", of all jobs since then. Raises InvalidRequest."""
        for told in self._stream(calls.UsageCursor(by, since_us)):
            if isinstance(told, answer_views.Usage):
                return told
            if on_progress is not None:
                on_progress(told)
        raise _cut_short()

    def plan(self, jobs: Sequence[Prepared], *, seed: int = 0) -> answer_views.Plan:
        """Where they would go, when they would start, whom they would preempt; nothing is kept."""
        call = calls.plan(sent_jobs(jobs), user=rpc.user_name(), seed=seed)
        return self._call(call)

    def simulate(
        self,
        *,
        add: Sequence[Prepared] = (),
        remove: Sequence[str] = (),
        policy: PolicySource | None = None,
        until_s: float = 0.0,
        seed: int = 0,
    ) -> answer_views.Simulated:
        """The live queue and cluster run forward, as they are and with jobs added, nodes removed and another
        policy in force. Raises what a submission, a drain and `apply_policy` raise."""
        call = _simulate(add, remove, policy, until_s, seed)
        return self._call(call)

    def decision(self, seq: int) -> answer_views.Decision:
        """A placement or a stop of the past, taken again; `seq` as in a timeline. Raises NotFound."""
        return self._call(calls.decision(seq))

    @abstractmethod
    def _call(self, call: rpc.Call[T]) -> T: ...

    @abstractmethod
    def _stream(self, cursor: calls.Cursor) -> Iterator[Any]: ...


class AsyncAnswerVerbs:
    """Of the asyncio client; see AnswerVerbs."""

    async def usage(
        self, by: str = "user", *, since_us: int = 0, on_progress: OnProgress | None = None
    ) -> answer_views.Usage:
        """GPU hours; see AnswerVerbs.usage."""
        async for told in self._stream(calls.UsageCursor(by, since_us)):
            if isinstance(told, answer_views.Usage):
                return told
            if on_progress is not None:
                on_progress(told)
        raise _cut_short()

    async def plan(self, jobs: Sequence[Prepared], *, seed: int = 0) -> answer_views.Plan:
        """Where they would go, when they would start, whom they would preempt; nothing is kept."""
        call = calls.plan(sent_jobs(jobs), user=rpc.user_name(), seed=seed)
        return await self._call(call)

    async def simulate(
        self,
        *,
        add: Sequence[Prepared] = (),
        remove: Sequence[str] = (),
        policy: PolicySource | None = None,
        until_s: float = 0.0,
        seed: int = 0,
    ) -> answer_views.Simulated:
        """The live queue and cluster run forward; see AnswerVerbs.simulate."""
        call = _simulate(add, remove, policy, until_s, seed)
        return await self._call(call)

    async def decision(self, seq: int) -> answer_views.Decision:
        """A placement or a stop of the past, taken again; `seq` as in a timeline. Raises NotFound."""
        return await self._call(calls.decision(seq))

    @abstractmethod
    async def _call(self, call: rpc.Call[T]) -> T: ...

    @abstractmethod
    def _stream(self, cursor: calls.Cursor) -> AsyncIterator[Any]: ...


def _simulate(
    add: Sequence[Prepared], remove: Sequence[str], policy: PolicySource | None, until_s: float, seed: int
) -> rpc.Call[answer_views.Simulated]:
    sent, changed = sent_jobs(add), None if policy is None else sent_policy(policy)
    return calls.simulate(sent, remove, changed, until_s=until_s, user=rpc.user_name(), seed=seed)


def _cut_short() -> Unavailable:
    return Unavailable("the scheduler broke its answer off", hint="ask again")
