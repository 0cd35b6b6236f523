"""The Sweeps service: submitting, looking at, and changing what the scheduler drives."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, TypeVar

import grpc.aio

from ...proto.codecs import page_of
from ...proto.generated import jobs_pb2, sweeps_pb2, sweeps_pb2_grpc
from ...proto.limits import DOCUMENT_BYTES_MAX
from ...spec.errors import InvalidRequest, LimitExceeded, NotFound
from ...spec.problems import escaped
from ...spec.search_space import point_refusals
from ...spec.sweep import SweepSpec
from ...spec.sweep_reading import parse_canonical_sweep
from ...studies.attributes import FIXED, WHY
from ..core.state import ClusterState
from ..loop import Loop
from ..sweep_driver import SweepDriver
from ..sweeps.best import best_trials, feasible
from ..sweeps.driving import PARAMS, TOLD, ChangeSweep, Earlier, SubmitSweep, sampled
from ..sweeps.ops import CreateTrial, Made, StudyOps
from ..sweeps.standings import CONCURRENT_MAX
from ..sweeps.studies import Studies
from ..sweeps.study import (
    SWEEP_OVER,
    Fork,
    NewTrial,
    Objective,
    Study,
    SweepPlan,
    SweepState,
    Trial,
    TrialState,
)
from ..sweeps.warm_start import earlier_trials
from .checks import check_asked
from .documents import check_read
from .pinning import Pinning

T = TypeVar("T")

TRIALS_MAX: Final = 1_000
"""Of one reply, and of points of one call."""
BEST_MAX: Final = 100
POINT_CHARACTERS_MAX: Final = 10_000
EXTEND_MAX: Final = 1_000_000
WATCH_S: Final = 0.25
"""Between two views of one watch: what changes meanwhile is told together, but for the end."""
LOOK_S: Final = 0.02
"""After a change, between two looks whether that was the end."""

_Context = grpc.aio.ServicerContext[Any, Any]


class SweepService(sweeps_pb2_grpc.SweepsServicer):
    """Sweeps are submitted to the loop and driven by the driver; all else is read between commits."""

    def __init__(self, loop: Loop, driver: SweepDriver, pinning: Pinning) -> None:
        self._loop, self._driver, self._pinning = loop, driver, pinning

    async def Submit(
        self, request: sweeps_pb2.SubmitSweepRequest, context: _Context
    ) -> sweeps_pb2.SubmitSweepReply:
        check_asked(request.key, request.user)
        (spec,) = await self._pinning.pinned([_seeded(_parsed(request.sweep), request.key)])
        points = tuple(_raw(spec, point) for point in spec.enqueue)
        earlier = await self._earlier(spec)
        asked = SubmitSweep(
            request.key, request.user, spec.label, spec.to_json(), plan_of(spec), points, earlier
        )
        number = await self._loop.submit(asked)
        self._driver.drive(number)
        return sweeps_pb2.SubmitSweepReply(sweep=number)

    async def Get(self, request: sweeps_pb2.GetSweepRequest, context: _Context) -> sweeps_pb2.SweepView:
        return await self._view(request.sweep)

    async def List(
        self, request: sweeps_pb2.ListSweepsRequest, context: _Context
    ) -> sweeps_pb2.ListSweepsReply:
        limit, before = page_of(request.page)

        def read(studies: Studies) -> tuple[list[sweeps_pb2.SweepView], bool]:
            numbers = sorted(
                (
                    one.id
                    for one in studies.by_id.values()
                    if one.plan and (before is None or one.id < before)
                ),
                reverse=True,
            )
            return [_head(studies.by_id[number]) for number in numbers[:limit]], len(numbers) > limit

        views, more = await self._loop.read_studies(read)
        return sweeps_pb2.ListSweepsReply(sweeps=views, next_cursor=str(views[-1].sweep) if more else "")

    async def Trials(
        self, request: sweeps_pb2.ListTrialsRequest, context: _Context
    ) -> sweeps_pb2.ListTrialsReply:
        limit = request.limit or TRIALS_MAX
        if not 1 <= limit <= TRIALS_MAX or request.first < 0:
            raise InvalidRequest(
                f"{limit} trials from {request.first} on; expected 1 to {TRIALS_MAX} from 0 on"
            )

        def read(state: ClusterState, study: Study) -> list[sweeps_pb2.SweepTrial]:
            some = study.trials[request.first : request.first + limit]
            return [_trial(trial, state) for trial in some]

        return sweeps_pb2.ListTrialsReply(trials=await self._of_sweep(request.sweep, read))

    async def Change(self, request: sweeps_pb2.ChangeSweepRequest, context: _Context) -> sweeps_pb2.SweepView:
        by = f"by {escaped(request.user[:200])}" if request.user else ""
        verbs = sweeps_pb2.ChangeSweepRequest
        number = request.sweep
        match request.verb:
            case verbs.PAUSE:
                asked = ChangeSweep(number, SweepState.PAUSED, f"paused {by}".strip())
            case verbs.RESUME:
                asked = ChangeSweep(number, SweepState.RUNNING)
            case verbs.STOP:
                why = f"stopped {by}".strip()
                asked = ChangeSweep(number, SweepState.STOPPING, why, SweepState.CANCELLED)
            case verbs.EXTEND if 1 <= request.trials <= EXTEND_MAX:
                asked = ChangeSweep(number, SweepState.RUNNING, more=request.trials)
            case verbs.EXTEND:
                raise InvalidRequest(f"{request.trials} more trials; expected 1 to {EXTEND_MAX}")
            case _:
                raise InvalidRequest(f"there is no verb {request.verb}")
        await self._loop.submit(asked)
        self._driver.drive(number)
        return await self._view(number)

    async def Enqueue(self, request: sweeps_pb2.EnqueueRequest, context: _Context) -> sweeps_pb2.EnqueueReply:
        check_asked(request.key, "")
        if not 1 <= len(request.points) <= TRIALS_MAX:
            raise InvalidRequest(f"{len(request.points)} points; expected 1 to {TRIALS_MAX}")
        spec = parse_canonical_sweep(await self._of_sweep(request.sweep, lambda _, study: study.document))
        fixed = [json.dumps(_raw(spec, _point(spec, at, text))) for at, text in enumerate(request.points)]
        ops = tuple(
            CreateTrial(NewTrial(TrialState.WAITING, system_attrs={FIXED: text}), f"{request.key}.{at}")
            for at, text in enumerate(fixed)
        )
        made = await self._loop.submit(StudyOps(request.sweep, ops))
        return sweeps_pb2.EnqueueReply(trials=[one.number for one in made if isinstance(one, Made)])

    async def Watch(
        self, request: sweeps_pb2.GetSweepRequest, context: _Context
    ) -> AsyncIterator[sweeps_pb2.SweepView]:
        with contextlib.closing(self._loop.watch_changes(request.sweep)) as watch:
            told = None
            while True:
                view = await self._view(request.sweep)
                if view != told:
                    told = view
                    yield view
                if view.state in SWEEP_OVER:
                    return
                due_s = time.monotonic() + WATCH_S
                await watch.changed()
                while time.monotonic() < due_s and not await self._is_over(request.sweep):  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S)

    async def _earlier(self, spec: SweepSpec) -> Earlier:
        """What spec.warm_start asks for. Raises NotFound, InvalidRequest, LimitExceeded."""
        if spec.warm_start is None:
            return Earlier()
        asked = spec.warm_start.sweep
        number = await self._loop.read_studies(lambda studies: number_of(studies, asked))
        return await self._loop.read_study(number, lambda study: earlier_trials(spec, study))

    async def _is_over(self, number: int) -> bool:
        return await self._of_sweep(number, lambda _, study: study.state in SWEEP_OVER)

    async def _view(self, number: int) -> sweeps_pb2.SweepView:
        return await self._of_sweep(number, _view)

    async def _of_sweep(self, number: int, read: Callable[[ClusterState, Study], T]) -> T:
        """Read a sweep whose trials are in memory. Raises NotFound."""

        def checked(state: ClusterState, study: Study) -> T:
            if study.plan is None:
                raise NotFound(
                    f"study {number} is no sweep: it is used through Optuna's own API",
                    hint="optuna.load_study(study_name=..., storage=paceline.StudyStorage())",
                )
            return read(state, study)

        return await self._loop.read_sweep(number, checked)


def plan_of(spec: SweepSpec) -> SweepPlan:
    """What a step must know of the document."""
    objectives = tuple(Objective(one.primary_metric, one.goal) for one in spec.objectives)
    return SweepPlan(
        objectives,
        tuple(spec.constraints),
        spec.by_function,
        trials=spec.trials_max(),
        failed=spec.limits.max_failed_trials,
    )


def number_of(studies: Studies, asked: int | str) -> int:
    """Of a study by its number or name. Raises NotFound."""
    return studies.get(asked).id if isinstance(asked, int) else studies.named(asked).id


def _parsed(sent: jobs_pb2.JobDocument) -> SweepSpec:
    if len(sent.document) > DOCUMENT_BYTES_MAX:
        raise LimitExceeded(
            f"{escaped(sent.source[:200])}: the document has {len(sent.document)} characters; at most"
            f" {DOCUMENT_BYTES_MAX}"
        )
    source = sent.source[:200] or "sweep"
    spec = parse_canonical_sweep(sent.document, source)
    check_read(spec.trial, source)
    return spec


def _seeded(spec: SweepSpec, key: str) -> SweepSpec:
    """One that names no seed has one from now on, the same for the same call."""
    sampling = spec.sampling_algorithm
    if sampling.seed is not None:
        return spec
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    return spec.model_copy(update={"sampling_algorithm": sampling.model_copy(update={"seed": seed})})


def _raw(spec: SweepSpec, point: Mapping[str, Any]) -> dict[str, Any]:
    return dict(point) if spec.by_function else dict(spec.space.raws(point))


def _point(spec: SweepSpec, at: int, text: str) -> Mapping[str, Any]:
    try:
        point = json.loads(text) if len(text) <= POINT_CHARACTERS_MAX else None
    except ValueError:
        point = None
    if not isinstance(point, dict):
        raise InvalidRequest(f"point {at} is not a JSON object of at most {POINT_CHARACTERS_MAX} characters")
    for path, why, near in () if spec.by_function else point_refusals(spec.search_space, point):
        guess = f"; did you mean '{near}'?" if near else ""
        raise InvalidRequest(f"point {at}: {'.'.join(map(str, path))}: {why}{guess}")
    return point


def _head(study: Study) -> sweeps_pb2.SweepView:
    assert study.plan is not None and study.state is not None
    spec = parse_canonical_sweep(study.document)
    limits = spec.limits
    return sweeps_pb2.SweepView(
        sweep=study.id,
        name=study.name,
        user=study.user,
        state=study.state.value,
        why=study.why,
        submitted_us=study.made_us,
        ended_us=study.ended_us or 0,
        objectives=[
            sweeps_pb2.SweepObjective(metric=one.metric, goal=one.goal) for one in study.plan.objectives
        ],
        trials_max=study.plan.trials + study.more,
        concurrent_max=limits.max_concurrent_trials or CONCURRENT_MAX,
        sampler=spec.sampling_algorithm.type,
        early_termination=spec.early_termination.type if spec.early_termination else "",
        earlier=study.earlier,
        warm_start=study.earlier_note,
    )


def _view(state: ClusterState, study: Study) -> sweeps_pb2.SweepView:
    view = _head(study)
    own = study.own_trials
    states = [trial.state for trial in own]
    jobs = [state.jobs[trial.job] for trial in own if not trial.finished and trial.job in state.jobs]
    view.waiting = states.count(TrialState.WAITING)
    view.queued = sum(not job.placed for job in jobs)
    view.running = sum(job.placed for job in jobs)
    view.complete = states.count(TrialState.COMPLETE)
    view.pruned = states.count(TrialState.PRUNED)
    view.failed = states.count(TrialState.FAIL)
    view.best.extend(_trial(trial, state) for trial in best_trials(study, BEST_MAX))
    first = next((trial for trial in own if trial.state is TrialState.FAIL), None)
    view.first_failure = json.loads(first.user_attrs.get(WHY, '""')) if first is not None else ""
    view.document = study.document
    return view


def _trial(trial: Trial, state: ClusterState) -> sweeps_pb2.SweepTrial:
    job = state.jobs.get(trial.job) if trial.job is not None else None
    return sweeps_pb2.SweepTrial(
        number=trial.number,
        state=trial.state.value,
        job=trial.job or 0,
        job_state=job.state.value if job is not None else "",
        params=trial.user_attrs.get(PARAMS) or json.dumps(sampled(trial)),
        values=trial.values,
        told=trial.user_attrs.get(TOLD, "{}"),
        started_us=trial.started_us or 0,
        ended_us=trial.finished_us or 0,
        why=json.loads(trial.user_attrs.get(WHY, '""')),
        step=max(trial.intermediate, default=-1),
        feasible=feasible(trial),
        fork=None if trial.fork is None else _fork(trial.fork),
    )


def _fork(fork: Fork) -> sweeps_pb2.SweepFork:
    return sweeps_pb2.SweepFork(
        member=fork.member, generation=fork.generation, trial=fork.trial, step=fork.parent.step
    )
