"""Asks for forecasts without holding up the one writer: the snapshot is taken between commits, as references
to what nobody changes; it is written out in a thread, and run forward in a process of its own.

One forecast at a time. The standing one, of what waits now, is kept for a few seconds, and longer when it
took long; whoever asks meanwhile gets it as it is.
"""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import chain, islice
from statistics import median
from typing import Final, TypeVar

from ..spec.errors import InvalidRequest, NotFound, Unavailable
from ..spec.ids import JobId, Micros
from .core.job import Job
from .core.node import Node
from .core.policy_events import PolicyChanged
from .core.queue import Lane, LaneKey
from .core.runs import Runs
from .core.settings import Settings
from .core.state import ClusterState
from .core.usage import Account
from .core.workload import Kind
from .decisions import Decision
from .forecast import Forecast, Question, Snapshot
from .forecast_worker import LENGTH_BYTES, Asked, AskedAgain, decode_told, encode_asked, framed
from .loop import Loop
from .records import account_row, job_row, node_row, policy_text
from .store.base import EventRow, JobRow

T = TypeVar("T")

JOBS_MAX: Final = 4_000
"""Waiting ones that a snapshot holds, as they stand by restart, priority, class of service and number."""
FRESH_S: Final = 2.0
STALE_S: Final = 60.0
"""A standing forecast that is older is not told."""
IDLE_S: Final = 60.0
"""After which the process is let go."""
PATIENCE_S: Final = 60.0
START_S: Final = 0.5
PER_JOB_S: Final = 0.01
"""What the first forecast is thought to take, by the jobs that there are: nobody waits for one in vain."""
ANSWER_BYTES_MAX: Final = 256 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """References to frozen objects, and copies of small tables."""

    now_us: Micros
    last_seq: int
    last_job: JobId
    last_at_us: Micros
    jobs: list[Job]
    left_out: int
    nodes: list[Node]
    settings: Settings
    paces_us: dict[JobId, int]
    runs: Runs
    kinds: Mapping[Kind, int]
    shares: Mapping[Kind, int]
    policy: PolicyChanged | None
    accounts: Mapping[str, Account]


class Forecaster:
    """Used from the scheduler's event loop."""

    def __init__(self, loop: Loop, now_us: Callable[[], int]) -> None:
        self._loop = loop
        self._now_us = now_us
        self._turn = asyncio.Lock()
        self._rows = JobRows()
        self._process: asyncio.subprocess.Process | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._standing: Forecast | None = None
        self._made_s = self._took_s = 0.0
        self._making: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Forecast:
        """Raises InvalidRequest for what is refused, NotFound for a node, Unavailable without an answer."""
        async with self._turn:
            taken = await self._loop.read(lambda state: take(state, Micros(self._now_us()), question))
            body = await asyncio.to_thread(
                lambda: encode_asked(Asked(snapshot_of(taken, self._rows), question))
            )
            told = decode_told(await self._exchange(body))
        if told.forecast is None:
            raise InvalidRequest(told.error, hint=told.hint)
        return told.forecast

    async def decide_again(self, rows: list[EventRow]) -> Decision:
        """The last of these events. Raises InvalidRequest where it is no decision, and Unavailable."""
        async with self._turn:
            settings = await self._loop.read(lambda state: state.settings)
            body = await asyncio.to_thread(lambda: encode_asked(AskedAgain(rows, settings)))
            told = decode_told(await self._exchange(body))
        if told.decision is None:
            raise InvalidRequest(told.error, hint=told.hint)
        return told.decision

    async def standing(self, patience_s: float) -> Forecast | None:
        """What becomes of what waits now. None: it takes longer than that; what is sure to take longer is not
        waited for."""
        age_s = time.monotonic() - self._made_s
        if self._standing is None or age_s > max(FRESH_S, 4 * self._took_s):
            if self._making is None or self._making.done():
                self._making = asyncio.create_task(self._make())
            if (self._took_s or await self._first_s()) <= patience_s:
                await asyncio.wait({self._making}, timeout=patience_s)
            age_s = time.monotonic() - self._made_s
        return self._standing if age_s < max(STALE_S, 8 * self._took_s) else None

    async def look(self, read: Callable[[ClusterState], T]) -> T:
        """At the live state, for names."""
        return await self._loop.read(read)

    async def close(self) -> None:
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)
        await self._let_go()

    async def _first_s(self) -> float:
        return START_S + PER_JOB_S * await self._loop.read(lambda state: len(state.jobs))

    async def _make(self) -> None:
        begun_s = time.monotonic()
        try:
            self._standing = await self.ask(Question())
        except Unavailable as error:
            _log.warning("no forecast: %s", error)
        self._made_s = time.monotonic()
        self._took_s = self._made_s - begun_s

    async def _exchange(self, body: bytes) -> bytes:
        process = await self._worker()
        assert process.stdin is not None and process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE_S):
                process.stdin.write(framed(body))
                await process.stdin.drain()
                size = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
                if size > ANSWER_BYTES_MAX:
                    raise OSError(f"an answer of {size} bytes")
                answer = await process.stdout.readexactly(size)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            await self._let_go()
            raise Unavailable(
                f"the forecast broke off: {error or type(error).__name__}", hint="ask again in a moment"
            ) from error
        except BaseException:
            await self._let_go()  # whoever asked has gone: the answer would be taken for another's
            raise
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._on_idle)
        return answer

    async def _worker(self) -> asyncio.subprocess.Process:
        if self._idle is not None:
            self._idle.cancel()
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "paceline.scheduler.forecast_worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        return self._process

    def _on_idle(self) -> None:
        """It ends with its stdin."""
        self._rows = JobRows()
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()

    async def _let_go(self) -> None:
        process, self._process = self._process, None
        if self._idle is not None:
            self._idle.cancel()
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def take(state: ClusterState, now_us: Micros, question: Question) -> Taken:
    names = {node.name for node in state.nodes.values()} | state.nodes.keys()
    for name in question.remove:
        if name not in names:
            raise NotFound(f"there is no node {name}", hint="`pace nodes` lists what there is", node=name)
    return Taken(
        Micros(max(now_us, state.last_at_us)),
        state.last_seq,
        state.last_job,
        state.last_at_us,
        jobs := _looked_at(state),
        len(state.jobs) - len(jobs),
        list(state.nodes.values()),
        state.settings,
        {
            number: round(median(pace.step_us for pace in paces.ranks.values()))
            for number, paces in state.paces.items()
            if paces.ranks
        },
        state.runs.copy(),
        dict(state.workload.counts),
        dict(state.workload.shares),
        PolicyChanged(state.policy_us, state.policy_by, state.policy) if state.policy_us else None,
        dict(state.usage.accounts),
    )


def _looked_at(state: ClusterState) -> list[Job]:
    """What is placed, and JOBS_MAX of what waits: those in line as they stand, then others. Costs what it
    takes, not what there is."""
    lanes = (_line(key, lane) for key, lane in state.queue.lanes.items())
    in_line = (number for *_, number in merge(*lanes) if number not in state.stranded)
    others = chain(sorted(state.claims), sorted(state.held), sorted(state.on_hold))
    waiting = islice(chain(in_line, others), JOBS_MAX)
    return [state.jobs[number] for number in sorted((*state.placed, *waiting))]


def _line(key: LaneKey, lane: Lane) -> Iterator[tuple[int, int, int, JobId]]:
    for number in lane.jobs:
        if number not in lane.gone:
            yield key.turn, key.minus_priority, key.service, number


class JobRows:
    """Of the last snapshot: of ten thousand jobs few have changed since, and while rows are written in a
    thread, callers wait longer."""

    def __init__(self) -> None:
        self._known: dict[JobId, tuple[Job, JobRow]] = {}

    def of(self, jobs: Sequence[Job]) -> list[JobRow]:
        before = self._known
        self._known = {job.number: self._kept(before, job) for job in jobs}
        return [row for _, row in self._known.values()]

    def _kept(self, before: Mapping[JobId, tuple[Job, JobRow]], job: Job) -> tuple[Job, JobRow]:
        kept = before.get(job.number)
        return kept if kept is not None and kept[0] is job else (job, job_row(job))


def snapshot_of(taken: Taken, rows: JobRows) -> Snapshot:
    return Snapshot(
        taken.now_us,
        taken.last_seq,
        taken.last_job,
        taken.last_at_us,
        rows.of(taken.jobs),
        [node_row(node) for node in taken.nodes],
        taken.settings,
        taken.paces_us,
        [(user, name, kept) for (user, name), kept in taken.runs.names.items()],
        taken.runs.users,
        tuple(taken.runs.all),
        list(taken.kinds.items()),
        list(taken.shares.items()),
        policy_text(taken.policy) if taken.policy is not None else "",
        [account_row(path, account) for path, account in taken.accounts.items()],
        taken.left_out,
    )
