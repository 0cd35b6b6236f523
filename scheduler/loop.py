"""The one writer: gathers what has arrived, decides, evolves, places, commits ONE batch, then answers.

Effects and answers never leave before their commit. A commit that fails answers every waiting caller with
Unavailable, closes the agents' streams and starts again from `store.load()`; it never runs ahead.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

from ..spec.ids import JobId, NodeId
from .core.effects import Acked, Effect, Submitted, Welcome
from .core.events import Event
from .core.job import Job
from .core.settings import Settings
from .core.state import ClusterState
from .core.stimuli import (
    Cancel,
    ContactLost,
    Heartbeat,
    Hello,
    InventoryChanged,
    Reports,
    Stimulus,
    Submit,
    Tick,
    TrustCluster,
)
from .store.base import Store

T = TypeVar("T")


class Sink(Protocol):
    """Where a node's messages go. Called in the loop's thread after the commit; must not block."""

    def send(self, effects: tuple[Effect, ...]) -> None: ...

    def close(self, why: str) -> None:
        """The loop starts anew, or another session took the node's place: end the stream."""


@dataclass(frozen=True, slots=True)
class Committed:
    """An event as it was stored, with the job as of the end of its batch (None: not about a job)."""

    seq: int
    event: Event
    job: Job | None


class Loop:
    """`loop = Loop(store); await loop.start(); ...; await loop.close()`. All calls from one asyncio loop."""

    def __init__(
        self,
        store: Store,
        settings: Settings | None = None,
        *,
        now_us: Callable[[], int] | None = None,
        arrivals_max: int = 100_000,
    ) -> None: ...

    async def start(self) -> None:
        """Load the store, recover the state, run. Raises StoreFailure when the first load fails."""

    async def close(self) -> None:
        """Commit what has arrived, then stop. Sinks are closed, watchers end."""

    @overload
    async def submit(self, stimulus: Submit) -> Submitted: ...
    @overload
    async def submit(self, stimulus: Cancel) -> Job: ...
    @overload
    async def submit(self, stimulus: Hello) -> Welcome: ...
    @overload
    async def submit(self, stimulus: Reports) -> Acked: ...
    @overload
    async def submit(self, stimulus: Heartbeat) -> bool: ...
    @overload
    async def submit(self, stimulus: InventoryChanged | ContactLost | TrustCluster | Tick) -> None: ...
    async def submit(self, stimulus: Stimulus) -> Any:
        """Answer after the commit. Raises the decision's refusal (a PacelineError), Unavailable when the
        commit failed or the loop is recovering, LimitExceeded when too much waits."""
        raise NotImplementedError

    async def read(self, read: Callable[[ClusterState], T]) -> T:
        """Run `read` between commits, on committed state. It must be quick and must not keep the state."""
        raise NotImplementedError

    def heard(self, node: NodeId, session: int) -> bool:
        """A heartbeat arrived: renews at once, not by the queue. False: not the node's session, close it."""
        raise NotImplementedError

    def next_session(self) -> int:
        """A number for a new agent stream, growing."""
        raise NotImplementedError

    def attach(self, node: NodeId, session: int, sink: Sink) -> None:
        """Call before submitting the Hello of that session. An older sink of the node is closed."""

    def detach(self, node: NodeId, session: int) -> None:
        """The stream is over (submit ContactLost as well)."""

    def watch(self, job: JobId) -> AsyncIterator[Committed]:
        """Events of the job committed from now on; ends after the one that ends the job, or with Unavailable
        when the loop starts anew or the watcher is too slow (read the store's history and watch again)."""
        raise NotImplementedError
