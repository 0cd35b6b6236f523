"""Drives the sweeps: one task for each that is live. It tells the sampler what has happened, starts the next
trials, ends those that are to end early, and the sweep.

It holds nothing that is not in the store or follows from it: after a crash, or a commit that failed, it
begins again from there and goes on as it would have.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from msgspec import structs

from ..spec.errors import Conflict, LimitExceeded, NotFound, PacelineError, Unavailable
from ..spec.ids import JobId
from ..spec.sampling import PbtSampling
from ..spec.sweep import SweepSpec
from ..spec.sweep_reading import parse_canonical_sweep
from .core import stimuli
from .core.state import ClusterState
from .forks import drop_fork, keep_for_fork
from .loop import ChangeWatch, Loop
from .sweep_crew import IDLE_BELOW, RETRY_S, CrewDrive, NewJobOf, Remember
from .sweeps.driving import PRUNED, ChangeSweep, Judged, StartTrial
from .sweeps.population import Exploit, Population
from .sweeps.sampler import Sampler, SamplerDied, SamplerFailed, SpareSampler
from .sweeps.standings import limits_of, standing_of
from .sweeps.steer import Cancel, End, Limits, Standing, Start, next_move
from .sweeps.studies import Studies
from .sweeps.study import SWEEP_OVER, Fork, Param, Study, SweepPlan, SweepState, Trial, TrialState
from .sweeps.talk import Ask, Begin, Exhausted, Known, Question, Report, Suggested, Tell, Verdict, Wait
from .sweeps.tally import Tally

PRUNE_GRACE_US: Final = 1_000_000
"""What a trial that is to end early has left is of no use to anybody: its GPUs are."""
DEATHS_MAX: Final = 3
"""Of a sampler's process, without a suggestion in between."""
SAMPLERS_AT_ONCE: Final = 4
"""Processes that begin at the same time: each imports Optuna."""

_log = logging.getLogger(__name__)


class SweepDriver:
    """Used from the scheduler's event loop."""

    def __init__(self, loop: Loop, new_job: NewJobOf, remember: Remember, storage: Path) -> None:
        self._loop = loop
        self._new_job, self._remember = new_job, remember
        self._storage = storage
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._begins = asyncio.Semaphore(SAMPLERS_AT_ONCE)
        self._spare = SpareSampler()

    async def start(self) -> None:
        """Drive all that are live in the store."""
        for number in await self._loop.read_studies(_live):
            self.drive(number)

    def drive(self, study: int) -> None:
        """Of a new one, or one that is live again."""
        standing = self._tasks.get(study)
        if standing is None or standing.done():
            self._tasks[study] = task = asyncio.create_task(self._drive(study), name=f"sweep {study}")
            task.add_done_callback(lambda done: self._forget(study, done))

    def _forget(self, study: int, done: asyncio.Task[None]) -> None:
        if self._tasks[study] is done:  # no other has begun since
            del self._tasks[study]

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._spare.close()

    async def _drive(self, study: int) -> None:
        """Until it is over. What fails is begun again; a sampler that fails, or dies again and again, ends
        the sweep."""
        deaths = 0
        while True:
            drive: _Drive | CrewDrive | None = None
            try:
                plan = await self._loop.read_studies(lambda studies: studies.get(study).plan)
                drive = self._new_drive(study, plan)
                await drive.run(self._begins)
                if await self._loop.read_studies(lambda studies: not studies.get(study).live):
                    return  # else somebody has extended it meanwhile
            except NotFound:
                return  # it was deleted
            except SamplerDied as error:
                deaths = 1 if drive is not None and drive.suggested else deaths + 1
                _log.warning("sweep %d: %s", study, error)
                if deaths == DEATHS_MAX:
                    await self._give_up(study, error)
            except SamplerFailed as error:
                await self._give_up(study, error)
            except Unavailable as error:  # the store failed, or the scheduler stops
                _log.warning("sweep %d waits: %s", study, error)
                await asyncio.sleep(RETRY_S)
            except PacelineError as error:  # its trials are refused
                await self._give_up(study, error)
            except Exception as bug:  # noqa: BLE001 - of this sweep alone: the others go on
                _log.exception("sweep %d: a bug of ours", study)
                await self._give_up(study, PacelineError(f"a bug of ours: {bug!r}"))
            finally:
                if drive is not None:
                    await drive.close()

    def _new_drive(self, study: int, plan: SweepPlan | None) -> "_Drive | CrewDrive":
        if plan is not None and plan.by_function:
            return CrewDrive(self._loop, study, self._new_job, self._remember)
        return _Drive(
            self._loop, study, self._new_job, self._remember, storage=self._storage, spare=self._spare
        )

    async def _give_up(self, study: int, error: PacelineError) -> None:
        why = f"{error.message} {error.hint}".strip()
        _log.error("sweep %d is given up: %s", study, why)
        try:
            await self._loop.submit(ChangeSweep(study, SweepState.STOPPING, why, SweepState.FAILED))
        except (Conflict, NotFound, Unavailable) as again:
            _log.warning("sweep %d: %s", study, again)
            await asyncio.sleep(RETRY_S)


@dataclass(frozen=True, slots=True)
class _Look:
    """What a drive has seen between two commits."""

    news: list[Question]
    standing: Standing
    unstopped: list[tuple[JobId, str]]
    """Of trials that are to end early and were not told yet; and why."""
    exploits: list[Exploit]


class _Drive:
    """One sweep, from where the store has it, until it is over."""

    def __init__(
        self,
        loop: Loop,
        study: int,
        new_job: NewJobOf,
        remember: Remember,
        *,
        storage: Path,
        spare: SpareSampler,
    ) -> None:
        self._loop, self._number = loop, study
        self._new_job, self._remember = new_job, remember
        self._storage = storage
        self._sampler = Sampler(spare)
        self._seen = 0
        self._tally = Tally()
        self._ready: Suggested | None = None
        self._exhausted = False
        self._population: Population | None = None
        self._useless: list[str] = []
        """Keys of checkpoints that were kept for trials that will not be."""
        self.suggested = False
        """The sampler has answered."""
        self._spec: SweepSpec
        self._limits: Limits

    async def close(self) -> None:
        await self._sampler.close()

    async def run(self, begins: asyncio.Semaphore) -> None:
        """Raises SamplerFailed, SamplerDied, Unavailable, NotFound."""
        with contextlib.closing(self._loop.watch_changes(self._number)) as watch:
            async with begins:
                await self._begin()
            while True:
                look = await self._loop.read_sweep(self._number, self._look)
                if self._ready is not None and any(isinstance(one, Wait) for one in look.news):
                    self._ready = None  # its number is now another trial's
                    await self._begin()
                    continue
                move = next_move(self._limits, look.standing)
                prepared = self._is_prepared(move)
                if prepared and move is not None:  # it does not depend on the news, and they can wait
                    await self._do(move)
                if self._sampler.begun:
                    for question in look.news:
                        await self._tell(question)
                for job, why in look.unstopped:
                    await self._cancel(job, PRUNE_GRACE_US, f": {why}")
                for exploit in look.exploits:
                    await self._exploit(exploit)
                while self._useless:
                    await asyncio.to_thread(drop_fork, self._storage, self._useless.pop())
                if move is None:
                    await self._prepare(look.standing)
                elif not prepared:
                    await self._do(move)
                if isinstance(move, End) and move.to in SWEEP_OVER:
                    return
                if not isinstance(move, Start | End):
                    await self._wait(watch, look.standing)

    async def _begin(self) -> None:
        """One that is stopping needs no sampler, and may be stopping for want of one."""
        question, stops = await self._loop.read_sweep(self._number, self._beginning)
        if not stops:
            await self._sampler.begin(question)

    def _beginning(self, _: ClusterState, study: Study) -> tuple[Begin, bool]:
        self._spec = parse_canonical_sweep(study.document)
        self._seen = study.version
        self._tally = Tally.of(study.own_trials)
        self._useless = _useless(study, study.own_trials)
        how = self._spec.sampling_algorithm
        if isinstance(how, PbtSampling):
            self._population = Population(self._spec, how, study.own_trials)
        known = [_known(trial) for trial in study.trials]
        begin = Begin(study.document, study.name, dict(study.system_attrs), known)
        return begin, study.state is SweepState.STOPPING

    def _look(self, state: ClusterState, study: Study) -> _Look:
        tally = self._tally
        news = list(self._news(study))
        self._seen = study.version
        live = [study.trials[number] for number in sorted(tally.running)]
        jobs = [state.jobs[trial.job] for trial in live if trial.job in state.jobs]
        pruned = [
            (trial.job, json.loads(trial.user_attrs[PRUNED]))
            for trial in live
            if PRUNED in trial.user_attrs
            and trial.job in state.jobs
            and state.jobs[trial.job].course.stop is None
        ]
        self._limits = limits_of(self._spec, study)
        standing = standing_of(self._spec, study, tally, jobs, self._loop.now_us(), exhausted=self._all_given)
        exploits: list[Exploit] = []
        if self._population is not None and study.state is SweepState.RUNNING:
            exploits = self._population.exploits(study, state.jobs)
        return _Look(news, standing, pruned, exploits)

    @property
    def _all_given(self) -> bool:
        """There are no more new points, or members."""
        return self._exhausted or (self._population is not None and self._population.complete)

    def _news(self, study: Study) -> Iterator[Question]:
        """What the sampler does not know yet, in the order in which it happened."""
        for trial in study.changed_since(self._seen):
            before = self._tally.note(trial)
            if self._population is not None:
                self._population.note(trial)
            self._useless += _useless(study, [trial])
            if before is None and trial.state is TrialState.WAITING:
                yield Wait(_known(trial))
            elif trial.finished and before is not None and not before.finished:
                yield Tell(_known(trial))
            elif trial.state is TrialState.RUNNING and self._spec.early_termination is not None:
                newer = trial.reported_since(self._seen)
                if newer:
                    yield Report(trial.number, dict(reversed(newer.items())))

    async def _tell(self, question: Question) -> None:
        answer = await self._sampler.ask(question)
        if isinstance(answer, Verdict) and (answer.prune or answer.system_attrs):
            await self._loop.submit(Judged(self._number, answer.number, answer.prune, answer.system_attrs))

    async def _cancel(self, job: JobId, grace_us: int | None, why: str = "") -> None:
        try:
            await self._loop.submit(stimuli.Cancel(job, grace_us, by=f"sweep {self._number}{why}"))
        except NotFound:
            return  # it has ended by itself

    def _is_prepared(self, move: Start | End | Cancel | None) -> bool:
        """It starts the trial for which there is a suggestion."""
        return isinstance(move, Start) and self._ready is not None and self._ready.number == move.number

    async def _exploit(self, found: Exploit) -> None:
        """The donor may delete its checkpoint soon: first it is the other's, too."""
        fork = found.successor.fork
        key = _fork_key(self._number, found.number, fork)
        try:
            kept = await asyncio.to_thread(
                keep_for_fork, self._storage, key, fork.parent.job, fork.checkpoint
            )
        except NotFound:
            return  # it has been deleted just now: there may be another at the next look
        successor = replace(found.successor, fork=replace(fork, checkpoint=kept))
        await self._loop.submit(Judged(self._number, found.number, found.why, {}, successor))
        if not await self._loop.read_study(
            self._number, lambda study: study.trial(found.number).successor == successor
        ):
            self._useless.append(key)  # it has ended meanwhile

    async def _do(self, move: Start | End | Cancel) -> None:
        match move:
            case Start(number, idle):
                await self._start(number, idle=idle, fresh=number not in self._tally.waiting)
            case Cancel(jobs):
                for job in jobs:
                    await self._cancel(job, None)
            case End(to, why, ends_as):
                await self._loop.submit(ChangeSweep(self._number, to, why, ends_as))

    async def _start(self, number: int, *, idle: bool, fresh: bool) -> None:
        suggested = await self._suggested(number)
        if suggested is None:
            return
        spec = self._spec.trial_job(number, suggested.values)
        job = self._new_job(spec)
        if idle:
            job = structs.replace(job, priority=job.priority - IDLE_BELOW)
        asked = StartTrial(
            self._number,
            number,
            {name: Param(*param) for name, param in suggested.params.items()},
            suggested.values,
            suggested.system_attrs,
            suggested.study_attrs,
            job,
            fresh,
        )
        try:
            made = await self._loop.submit(asked)
        except LimitExceeded as error:  # as many jobs as there may be
            _log.info("sweep %d: trial %d waits: %s", self._number, number, error)
            self._ready = suggested
            await asyncio.sleep(RETRY_S)
        except Conflict:  # it was paused, or somebody has put another trial before it
            self._ready = suggested
        else:
            self._remember([made], [spec])

    async def _suggested(self, number: int) -> Suggested | None:
        """What was prepared, where it is for this trial. None: every point has been given."""
        ready, self._ready = self._ready, None
        if ready is not None and ready.number == number:
            return ready
        if ready is not None or not self._sampler.begun:  # somebody has put another trial before it
            await self._begin()
        answer = await self._sampler.ask(Ask(number))
        if isinstance(answer, Exhausted):
            self._exhausted = True
            await self._sampler.close()
            return None
        assert isinstance(answer, Suggested)
        self.suggested = True
        return answer

    async def _prepare(self, standing: Standing) -> None:
        """The next suggestion while trials run: one that ends finds its successor ready. Not where only one
        runs at a time: there each suggestion is to know all results."""
        limits = self._limits
        more = standing.made < limits.trials
        wanted = standing.state is SweepState.RUNNING and more and not standing.waiting
        if self._ready is None and wanted and limits.concurrent > 1 and not self._all_given:
            self._ready = await self._suggested(standing.made)

    async def _wait(self, watch: ChangeWatch, standing: Standing) -> None:
        """Until something has changed, or the time is over."""
        until_us = self._limits.until_us
        left_s = None if until_us is None else max(0.0, (until_us - standing.now_us) / 1e6)
        if standing.state is SweepState.STOPPING:
            left_s = None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(watch.changed(), left_s)


def _live(studies: Studies) -> list[int]:
    return [study.id for study in studies.by_id.values() if study.live]


def _useless(study: Study, trials: Iterable[Trial]) -> list[str]:
    """The keys of what was kept for successors of those that have ended otherwise."""
    return [
        _fork_key(study.id, trial.number, trial.successor.fork)
        for trial in trials
        if trial.successor is not None and trial.finished and trial.state is not TrialState.PRUNED
    ]


def _fork_key(study: int, ending: int, fork: Fork) -> str:
    return f"sweep-{study}-trial-{ending}-from-{fork.parent.job}"


def _known(trial: Trial) -> Known:
    return Known(
        trial.number,
        trial.state.value,
        {name: (param.value, param.distribution) for name, param in trial.params.items()},
        trial.values,
        dict(trial.intermediate),
        dict(trial.user_attrs),
        dict(trial.system_attrs),
    )
