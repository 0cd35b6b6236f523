"""The one writer: gathers what has arrived, decides, evolves, places, commits ONE batch, then answers.

Effects and answers never leave before their commit. A commit that fails answers every waiting caller with
Unavailable, closes the agents' streams and starts again from `store.load()`; it never runs ahead.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from ..spec.errors import LimitExceeded, PacelineError, Unavailable
from ..spec.ids import JobId, Micros, NodeId
from .core.admin_stimuli import ApplyPolicy, HoldJob, ReleaseJob, SetPriority
from .core.effects import Acked, Effect, SaveAsked, Submitted, Welcome
from .core.job import Job
from .core.runs import Runs
from .core.settings import Settings
from .core.stimuli import (
    AskCheckpoint,
    Cancel,
    CordonNodes,
    Heartbeat,
    Hello,
    Reports,
    Submit,
    UncordonNodes,
)
from .endpoints.stimuli import StartReplica, StartRouter
from .loop_clock import steady_clock
from .loop_engine import Engine
from .loop_lookup import NOTHING, Known, load, to_look_up
from .loop_openings import Arrival, Openings
from .loop_poison import PoisonWatch
from .loop_reads import Reads
from .loop_step import Asked, Committed, Poison, Step, Unanswered
from .loop_watch import ChangeWatch, Sink, Watch, Watchers
from .registry.assets import Asset, Named
from .registry.ops import DeleteAsset, MoveAlias, Register
from .store.base import Store
from .sweeps.driving import StartTrial, StartWorker, SubmitSweep
from .sweeps.ops import CreateStudy, StudyOps

T = TypeVar("T")

ARRIVALS_PER_STEP_MAX = 2_000
NAP_S = 0.005
"""What is due by time alone is gathered for so long: thousands of nodes have as many deadlines."""
BACKOFF_FIRST_S = 0.05
BACKOFF_MOST_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Reading:
    read: Callable[[Engine], Any]
    answer: asyncio.Future[Any]


class Loop(Reads):
    """`loop = Loop(store); await loop.start(); ...; await loop.close()`. All calls from one asyncio loop."""

    def __init__(
        self,
        store: Store,
        settings: Settings | None = None,
        *,
        now_us: Callable[[], int] | None = None,
        arrivals_max: int = 100_000,
    ) -> None:
        self._store = store
        self._settings = settings or Settings()
        self._clock = now_us or steady_clock()
        self._behind_us = 0
        self._poison = PoisonWatch(self.now_us)
        self._falls = 0
        self._arrivals_max = arrivals_max
        self._arrivals: deque[Arrival] = deque()
        self._readings: list[_Reading] = []
        self._openings = Openings(store, self._again)
        self._sinks: dict[NodeId, tuple[int, Sink]] = {}
        self._watchers = Watchers()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._engine: Engine | None = None
        self._runs = Runs()
        self._committing = False
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._sessions = 0
        self._away = "the scheduler has not started yet"
        self.outputs_due = asyncio.Event()
        """Set when outputs of a job may be there to be registered; whoever does that clears it."""

    async def start(self) -> None:
        """Load the store, recover the state, run. Raises StoreFailure when the first load fails."""
        await self._recover()
        self._task = asyncio.create_task(self._run(), name="loop")

    async def close(self) -> None:
        """Commit what has arrived, then stop. Sinks are closed, watchers end."""
        self._closing = True
        self._away = "the scheduler is stopping"
        self._wake.set()
        if self._task is not None:
            await self._task
        self._abandon(Unavailable(self._away), "the scheduler is stopping")
        await self._openings.close()
        self._thread.shutdown()

    def now_us(self) -> int:
        """The scheduler's time: goes at the clock's pace, and is never before what the store has seen."""
        return self._clock() + self._behind_us

    def remember(self, runs: Runs) -> None:
        """What was learnt before this start, and of jobs that have ended since then, too."""
        self._runs = runs
        if self._engine is not None:
            self._engine.state.runs = runs

    @property
    def ready(self) -> bool:
        """False while the state is being recovered from the store."""
        return self._engine is not None and not self._closing

    @overload
    async def submit(self, stimulus: Submit) -> Submitted: ...
    @overload
    async def submit(self, stimulus: Cancel | HoldJob | ReleaseJob | SetPriority) -> Job: ...
    @overload
    async def submit(self, stimulus: AskCheckpoint) -> SaveAsked: ...
    @overload
    async def submit(self, stimulus: CordonNodes | UncordonNodes | ApplyPolicy) -> tuple[JobId, ...]: ...
    @overload
    async def submit(self, stimulus: Hello) -> Welcome: ...
    @overload
    async def submit(self, stimulus: Reports) -> Acked: ...
    @overload
    async def submit(self, stimulus: Heartbeat) -> bool: ...
    @overload
    async def submit(self, stimulus: CreateStudy | SubmitSweep) -> int: ...
    @overload
    async def submit(self, stimulus: StudyOps) -> tuple[object, ...]: ...
    @overload
    async def submit(self, stimulus: StartTrial | StartWorker | StartReplica | StartRouter) -> JobId: ...
    @overload
    async def submit(self, stimulus: Register | DeleteAsset) -> Asset: ...
    @overload
    async def submit(self, stimulus: MoveAlias) -> Named: ...
    @overload
    async def submit(self, stimulus: Unanswered) -> None: ...
    async def submit(self, stimulus: Asked) -> Any:
        """Answer after the commit. Raises the decision's refusal (a PacelineError), Unavailable when the
        commit failed or the loop is recovering, LimitExceeded when too much waits."""
        self._check_ready()
        self._poison.check(stimulus)
        waiting = len(self._arrivals) + len(self._openings)
        if waiting >= self._arrivals_max:
            raise LimitExceeded(
                f"{waiting} requests wait for the scheduler",
                hint="try again in a moment",
                limit=self._arrivals_max,
            )
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._arrivals.append(Arrival(stimulus, answer))
        self._wake.set()
        return await answer

    async def _read(self, read: Callable[[Engine], T]) -> T:
        self._check_ready()
        assert self._engine is not None
        if not self._committing:
            return read(self._engine)
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._readings.append(_Reading(read, answer))
        return await answer

    def heard(self, node: NodeId, session: int) -> bool:
        """A heartbeat arrived: renews at once, not by the queue. False: not the node's session, close it."""
        if self._engine is None:
            return False
        heard = self._engine.heard(node, session, Micros(self.now_us()))
        if heard is None:
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._arrivals.append(Arrival(Heartbeat(node, session), answer))
            self._wake.set()
            return True
        return heard

    def next_session(self) -> int:
        """A number for a new agent stream, growing."""
        self._sessions += 1
        return self._sessions

    def attach(self, node: NodeId, session: int, sink: Sink) -> None:
        """Call before submitting the Hello of that session. An older sink of the node is closed."""
        standing = self._sinks.get(node)
        self._sinks[node] = (session, sink)
        if standing is not None:
            standing[1].close("the node has dialled in anew")

    def detach(self, node: NodeId, session: int) -> None:
        """The stream is over (submit ContactLost as well)."""
        if node in self._sinks and self._sinks[node][0] == session:
            del self._sinks[node]

    def watch(self, job: JobId) -> Watch:
        """Events of the job committed from now on; ends after the one that ends the job, or with Unavailable
        when the loop starts anew or the watcher is too slow (read the store's history and watch again)."""
        return self._watchers.add(job)

    def watch_changes(self, key: int | str) -> ChangeWatch:
        """Wakes when a step that changed the study of that number, or the endpoint of that name, or deleted
        it, is committed; close it when done."""
        return self._watchers.add_change(key)

    def _check_ready(self) -> None:
        if not self.ready:
            raise Unavailable(self._away, hint="try again in a moment")

    async def _run(self) -> None:
        while not (self._closing and not self._arrivals):
            try:
                await self._serve()
            except Exception as error:
                log.exception("the loop could not go on and starts anew from the store")
                if isinstance(error, Poison):
                    self._note_poison(error)
                await self._start_anew(error)
                self._falls += 1
                if self._falls > 1:  # nothing went well in between: do not spin
                    await asyncio.sleep(min(BACKOFF_FIRST_S * 2 ** min(self._falls, 16), BACKOFF_MOST_S))

    def _note_poison(self, poison: Poison) -> None:
        barred = self._poison.note(poison.stimulus, poison.__cause__ or poison)
        if barred:
            log.error("%s", barred)

    async def _serve(self) -> None:
        """Steps until closed; raises whatever keeps it from going on."""
        assert self._engine is not None
        more = False
        while True:
            if not more and not self._arrivals:
                if self._closing:
                    return
                await self._wait()
            more = await self._step(self._engine)

    async def _wait(self) -> None:
        """Until something arrives or is due."""
        assert self._engine is not None
        self._wake.clear()
        due_us = self._engine.next_due_us()
        left_s = None if due_us is None else max(NAP_S, (due_us - self.now_us()) / 1e6)
        try:
            await asyncio.wait_for(self._wake.wait(), left_s)
        except TimeoutError:
            return

    async def _step(self, engine: Engine) -> bool:
        count = min(len(self._arrivals), ARRIVALS_PER_STEP_MAX)
        taken = [self._arrivals.popleft() for _ in range(count)]
        arrivals = self._openings.set_aside(engine, taken)
        try:
            stimuli = [arrival.stimulus for arrival in arrivals]
            known = await self._known(engine, stimuli)
            step = engine.step(stimuli, Micros(self.now_us()), *known)
            await self._commit(step)
        except BaseException:
            self._arrivals.extendleft(reversed(arrivals))
            raise
        self._falls = 0
        engine.studies.evict()
        self._answer(arrivals, step)
        return step.more

    def _again(self, arrivals: list[Arrival]) -> None:
        """What they waited for is there."""
        self._arrivals.extendleft(reversed(arrivals))
        self._wake.set()

    async def _known(self, engine: Engine, stimuli: list[Asked]) -> Known:
        look_up = to_look_up(engine, self._store, stimuli)
        if look_up is None:
            return NOTHING
        return await asyncio.get_running_loop().run_in_executor(self._thread, look_up)

    async def _commit(self, step: Step) -> None:
        if step.empty:
            return
        self._committing = True
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._store.commit, step.batch)
        finally:
            self._committing = False

    def _answer(self, arrivals: list[Arrival], step: Step) -> None:
        """The batch is safe: now it may be told."""
        for arrival, answer in zip(arrivals, step.answers, strict=True):
            if arrival.answer.done():
                continue
            if isinstance(answer, PacelineError):
                arrival.answer.set_exception(answer)
            else:
                arrival.answer.set_result(answer)
        self._read_now()
        self._send(step)
        for committed in step.committed:
            self._watchers.tell(committed)
        self._watchers.tell_changes(step.changed)
        if step.outputs_due:
            self.outputs_due.set()

    def _read_now(self) -> None:
        assert self._engine is not None
        readings, self._readings = self._readings, []
        for reading in readings:
            if reading.answer.done():
                continue
            try:
                reading.answer.set_result(reading.read(self._engine))
            except Exception as error:  # noqa: BLE001 - it goes to the caller
                reading.answer.set_exception(error)

    def _send(self, step: Step) -> None:
        by_node: dict[NodeId, list[Effect]] = {}
        for effect in step.effects:
            by_node.setdefault(effect.node, []).append(effect)
        for node, effects in by_node.items():
            if node in self._sinks:
                self._sinks[node][1].send(tuple(effects))

    async def _start_anew(self, error: Exception) -> None:
        """Nothing that was not committed counts: tell everybody, then load, with growing patience."""
        self._engine = None
        self._away = f"the scheduler is recovering from its store: {error}"
        self._abandon(Unavailable(self._away, hint="try again in a moment"), self._away)
        patience_s = BACKOFF_FIRST_S
        while not self._closing:
            try:
                await self._recover()
                return
            except Exception as again:  # noqa: BLE001 - told, and tried again with patience
                log.error("the store cannot be loaded, next try in %.2f s: %s", patience_s, again)
                self._away = f"the scheduler cannot load its store: {again}"
                await asyncio.sleep(patience_s)
                patience_s = min(2 * patience_s, BACKOFF_MOST_S)

    async def _recover(self) -> None:
        engine = await asyncio.get_running_loop().run_in_executor(
            self._thread, load, self._store, self._settings
        )
        engine.state.runs = self._runs
        # A clock that was set back must not stand still until it has caught up: timers would never be due.
        self._behind_us += max(0, engine.state.last_at_us - self.now_us())
        await self._commit(engine.begin(Micros(self.now_us())))
        self._engine = engine

    def _abandon(self, error: PacelineError, why: str) -> None:
        """Every waiting caller hears `error`; every stream and watch ends."""
        arrivals, self._arrivals = [*self._arrivals, *self._openings.abandon()], deque()
        readings, self._readings = self._readings, []
        answers = [*(arrival.answer for arrival in arrivals), *(reading.answer for reading in readings)]
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)
        sinks, self._sinks = self._sinks, {}
        for _, sink in sinks.values():
            sink.close(why)
        self._watchers.end_all(error)


__all__ = ["ChangeWatch", "Committed", "Loop", "Sink", "Watch"]
