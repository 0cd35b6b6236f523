"""What becomes of the jobs that wait: the live state run forward, K times, with run times drawn from what is
predicted of them.

Pure: a snapshot and a question in, a forecast out, the same for the same seed. The first draw gives each run
its median; it is the one that is shown where one course must be. Bounded by events and by a horizon, and the
forecast says when it was cut by either.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from ..spec.ids import JobId, Micros, NodeId
from .core import stimuli as s
from .core.admin_stimuli import ApplyPolicy
from .core.cluster_policy import ClusterPolicy
from .core.job import Job
from .core.pace import GangPaces, RankPace
from .core.predict import Prediction, basis_text, level_of, predict
from .core.reason import Reason
from .core.reasons import why
from .core.runs import ALL_RUNS_MAX, Durations, Runs
from .core.settings import SECOND_US, Settings
from .core.workload import Kind
from .outlook import Draw, Outlook, gang_gpus, gpus_in_service, mark, outlook
from .rehearsal import DryEngine, Rehearsal, Steady, silent
from .store.base import AccountRow, JobRow, Loaded, NodeRow

DRAWS: Final = 8
EVENTS_MAX: Final = 16_000
"""Of all draws together: seconds."""
HORIZON_US: Final = 30 * 86_400 * SECOND_US


class Snapshot(msgspec.Struct, frozen=True):
    """The live state as rows, and what beside it decisions look at."""

    now_us: Micros
    last_seq: int
    last_job: JobId
    last_at_us: Micros
    jobs: list[JobRow]
    nodes: list[NodeRow]
    settings: Settings
    paces_us: dict[JobId, int]
    names: list[tuple[str, str, Durations]]
    users: dict[str, Durations]
    all: Durations
    kinds: list[tuple[Kind, int]]
    shares: list[tuple[Kind, int]]
    policy: str
    accounts: list[AccountRow]
    left_out: int = 0
    """Jobs that wait and stand too far back to be looked at."""


class Question(msgspec.Struct, frozen=True):
    add: list[s.NewJob] = []
    user: str = ""
    remove: list[str] = []
    """Nodes, by name or id: drained at once."""
    policy: ClusterPolicy | None = None
    """In force from the begin; None: as it is."""
    draws: int = DRAWS
    seed: int = 0
    horizon_us: int = HORIZON_US
    events_max: int = EVENTS_MAX
    to_end: bool = False
    """Until all have ended; else until all have started that wait."""


class Expected(msgspec.Struct, frozen=True):
    """When a job starts. Times are 0 where less than half (late: nine tenths) of the draws have it start."""

    at_us: int
    early_us: int
    late_us: int
    started: int
    after: int = 0
    """Whose end makes room for it, in the first draw; 0: nobody's."""
    places: list[tuple[NodeId, tuple[int, ...]]] = []
    """In the first draw, of a job that was added."""


class Stopped(msgspec.Struct, frozen=True):
    """An attempt that is stopped to make way, in the first draw."""

    at_us: int
    job: JobId
    outcome: str
    why: str


class Forecast(msgspec.Struct, frozen=True):
    now_us: Micros
    last_seq: int
    draws: int
    cut: str
    """What it was cut by; empty: nothing."""
    left_out: int
    jobs: dict[JobId, Expected]
    order: list[JobId]
    """As they start, in the first draw."""
    ends: dict[JobId, tuple[int, str]]
    """When those end that others start after, in the first draw, and what that is judged by."""
    stops: list[Stopped]
    added: list[JobId]
    reasons: dict[JobId, list[Reason]]
    """Why those that were added do not start at once."""
    never: list[JobId]
    outlook: Outlook


def forecast(snapshot: Snapshot, question: Question) -> Forecast:
    """Raises what a refused submission or drain raises."""
    return _Forecasting(snapshot, question).run()


class _Forecasting:
    def __init__(self, snapshot: Snapshot, question: Question) -> None:
        self._snapshot, self._question = snapshot, question
        self._predicted: dict[JobId, Prediction] = {}
        self._standing = self._engine().state
        """As it is now."""
        self._jobs: dict[JobId, Job] = dict(self._standing.jobs)
        self._added: list[JobId] = []
        self._reasons: dict[JobId, list[Reason]] = {}
        self._never: list[JobId] = []

    def run(self) -> Forecast:
        draws: list[Draw] = []
        left = self._question.events_max
        while len(draws) < self._question.draws and (not draws or draws[0].looked <= left):
            draws.append(self._draw(len(draws), left))
            left -= draws[-1].looked
        first = draws[0].course
        asked = [number for number, job in self._jobs.items() if not job.placed]
        expected = {number: self._expected(number, draws) for number in asked}
        after = {each.after for each in expected.values() if each.after}
        return Forecast(
            self._snapshot.now_us,
            self._snapshot.last_seq,
            len(draws),
            next((draw.cut for draw in draws if draw.cut), ""),
            self._snapshot.left_out,
            expected,
            sorted(first.started_us.keys() & expected.keys(), key=lambda one: (first.started_us[one], one)),
            {JobId(one): (first.ended_us.get(JobId(one), 0), self._judged(JobId(one))) for one in after},
            [Stopped(at_us, job, stop.outcome.value, stop.why) for at_us, job, stop in first.stops],
            self._added,
            self._reasons,
            self._never,
            outlook(draws),
        )

    def _draw(self, number: int, events_max: int) -> Draw:
        question, now_us = self._question, self._snapshot.now_us
        rehearsal = Rehearsal(self._engine(), now_us, Steady(self._lasting(number)))
        state = rehearsal.engine.state
        gpus_milli = gpus_in_service(state, frozenset(question.remove))
        if question.policy is not None:
            rehearsal.tell(ApplyPolicy("policy", question.user, question.policy))
        if question.remove:
            drain = s.CordonNodes("remove", tuple(question.remove), question.user, "taken away", drains=True)
            rehearsal.tell(drain)
        if question.add:
            self._add(rehearsal, first=number == 0)
        waits = {one for one, job in self._jobs.items() if not job.placed}
        draw = Draw(
            rehearsal.course,
            {one: job.submitted_us for one, job in self._jobs.items()},
            {one: gang_gpus(job.demand) for one, job in self._jobs.items()},
            frozenset(one for one, job in self._jobs.items() if job.attempt),
            now_us,
            now_us,
            gpus_milli,
        )
        run_on(rehearsal, draw, now_us + question.horizon_us, events_max, set() if question.to_end else waits)
        return draw

    def _add(self, rehearsal: Rehearsal, *, first: bool) -> None:
        """Their numbers are the same in each draw."""
        state, question = rehearsal.engine.state, self._question
        if first:
            for number, new in enumerate(question.add, state.last_job + 1):
                job = Job(JobId(number), new.name, question.user, new.priority, rehearsal.now_us, new.shape)
                self._jobs[job.number] = job
                self._added.append(job.number)
        rehearsal.tell(s.Submit("add", question.user, tuple(question.add)))
        for number in self._added if first else ():
            waits = state.jobs.get(number)
            if waits is not None and not waits.placed:
                said = why(state, waits, rehearsal.now_us)
                self._reasons[number] = list(said.reasons)
                if said.never:
                    self._never.append(number)

    def _engine(self) -> DryEngine:
        snapshot = self._snapshot
        loaded = Loaded(
            snapshot.last_seq,
            snapshot.last_job,
            snapshot.last_at_us,
            snapshot.jobs,
            snapshot.nodes,
            accounts=snapshot.accounts,
            policy=snapshot.policy,
        )
        engine = DryEngine(loaded, silent(snapshot.settings))
        state = engine.state
        names = {(user, name): kept for user, name, kept in snapshot.names}
        state.runs = Runs(names, dict(snapshot.users), deque(snapshot.all, ALL_RUNS_MAX))
        state.workload.counts = dict(snapshot.kinds)
        state.workload.total = sum(state.workload.counts.values())
        state.workload.shares = dict(snapshot.shares)
        state.paces = {job: GangPaces({0: RankPace(0, us)}) for job, us in snapshot.paces_us.items()}
        return engine

    def _lasting(self, draw: int) -> Callable[[Job], int]:
        def lasts_us(job: Job) -> int:
            return self._prediction(job.number).at(level_of(self._question.seed, draw, job.number))

        return lasts_us

    def _prediction(self, number: JobId) -> Prediction:
        """As of now, before anything of the forecast has happened."""
        found = self._predicted.get(number)
        if found is None:
            job = self._jobs[number]
            found = self._predicted[number] = predict(self._standing, job, self._snapshot.now_us)
        return found

    def _judged(self, number: JobId) -> str:
        return basis_text(self._prediction(number), self._jobs[number])

    def _expected(self, number: JobId, draws: Sequence[Draw]) -> Expected:
        starts = sorted(draw.course.started_us[number] for draw in draws if number in draw.course.started_us)
        first = draws[0].course
        places = []
        if number in self._added:
            start = next((one for one in first.starts if one.job == number), None)
            places = [(place.node, place.gpu_indices) for place in start.places] if start is not None else []
        return Expected(
            _level_of(starts, 0.5, len(draws)),
            _level_of(starts, 0.1, len(draws)),
            _level_of(starts, 0.9, len(draws)),
            len(starts),
            first.after.get(number, 0),
            places,
        )


def run_on(rehearsal: Rehearsal, draw: Draw, until_us: int, events_max: int, waits: set[JobId]) -> None:
    """Until all of `waits` (none: all that there is) have started, or nothing more happens, or a bound."""
    course, state = rehearsal.course, rehearsal.engine.state
    waits = set(waits)
    only_starts = bool(waits)
    mark(rehearsal, draw)
    while only_starts or state.jobs:
        if only_starts and len(waits) <= len(course.started_us) + len(course.ended_us):
            waits -= course.started_us.keys() | course.ended_us.keys()
            if not waits:
                return
        draw.looked = max(course.events, draw.looked + 1)
        if draw.looked > events_max:
            draw.cut = f"cut after {events_max:,} events, {rehearsal_days(draw)} from now"
            return
        if not rehearsal.advance(until_us):
            if rehearsal.busy:
                draw.cut = f"cut {rehearsal_days(draw, until_us)} from now"
            return
        mark(rehearsal, draw)


def rehearsal_days(draw: Draw, at_us: int = 0) -> str:
    hours = ((at_us or draw.end_us) - draw.begun_us) / 3600e6
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _level_of(starts: Sequence[int], level: float, draws: int) -> int:
    """Those that never start count as later than all."""
    at = round(level * (draws - 1))
    return starts[at] if at < len(starts) else 0
