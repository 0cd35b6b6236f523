"""What has been, and what would be. Nothing here changes anything."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import grpc.aio
from msgspec import structs

from ...proto.generated import answers_pb2, answers_pb2_grpc, jobs_pb2
from ...proto.limits import NAME_CHARACTERS_MAX, SUBMIT_JOBS_MAX
from ...spec.compat import warnings_of
from ...spec.errors import InvalidRequest, LimitExceeded, NotFound
from ...spec.ids import JobId, Micros, NodeId
from ...spec.job import JobSpec
from ...spec.problems import escaped
from ..core.admission import admitted
from ..core.job import NEVER, Job
from ..core.quota import Quota, quotas_of
from ..core.state import NO_JOB, ClusterState
from ..core.stimuli import NewJob
from ..decisions import EVENTS_MAX, Decision
from ..forecast import HORIZON_US, Expected, Forecast, Question
from ..forecaster import Forecaster
from ..outlook import Outlook
from ..store.base import EventRow, Store
from .checks import check_user
from .documents import Documents
from .expected import start_reason
from .messages import dotted, reason_message
from .policy import policy_of
from .submissions import new_job, parsed
from .usage import UsageReader

_BY: Final = ("user", "queue", "project")
_TELL_S: Final = 0.5
_EVENTS_AT_ONCE: Final = 10_000
_PLANNED_MAX: Final = 100
_REMOVED_MAX: Final = 1000
_SECOND_US: Final = 1_000_000

_Context = grpc.aio.ServicerContext[Any, Any]


class AnswerService(answers_pb2_grpc.AnswersServicer):
    """Role: client."""

    def __init__(
        self, store: Store, documents: Documents, forecaster: Forecaster, *, now_us: Callable[[], int]
    ) -> None:
        self._store = store
        self._documents = documents
        self._forecaster = forecaster
        self._now_us = now_us
        self._reading = asyncio.Lock()
        """One sum at a time: all are made of the same store, by the same processor."""

    async def Usage(
        self, request: answers_pb2.UsageRequest, context: _Context
    ) -> AsyncIterator[answers_pb2.UsageReply]:
        if request.by not in _BY:
            raise InvalidRequest(f"by is {escaped(request.by[:40])!r}; expected one of {', '.join(_BY)}")
        if request.since_us < 0:
            raise InvalidRequest(f"since_us is {request.since_us}; expected 0 or a time")
        async with self._reading:
            now_us = Micros(self._now_us())
            reader = UsageReader(self._store, request.by, Micros(request.since_us), now_us)
            told_s = asyncio.get_running_loop().time()
            while await reader.more():
                now_s = asyncio.get_running_loop().time()
                if now_s - told_s >= _TELL_S:
                    told_s = now_s
                    yield answers_pb2.UsageReply(jobs_read=reader.jobs_read, jobs=reader.jobs)
            rows = reader.rows()
        yield answers_pb2.UsageReply(jobs_read=reader.jobs_read, jobs=reader.jobs, rows=rows, until_us=now_us)

    async def Plan(self, request: answers_pb2.PlanRequest, context: _Context) -> answers_pb2.PlanReply:
        check_user(request.user)
        if not 1 <= len(request.jobs) <= _PLANNED_MAX:
            raise InvalidRequest(f"{len(request.jobs)} jobs in one plan; expected 1 to {_PLANNED_MAX}")
        specs = await parsed(self._documents, request.jobs)
        question = Question(add=self._new_jobs(specs), user=request.user, seed=request.seed)
        told = await self._forecaster.ask(question)
        seen = await self._forecaster.look(lambda state: _names(state, told))
        now_us = Micros(self._now_us())
        quotas = await self._forecaster.look(lambda state: _quotas(state, question, now_us))
        reply = answers_pb2.PlanReply(cut=told.cut)
        for number, spec, quota in zip(told.added, specs, quotas, strict=True):
            planned = _planned(told, number, spec, seen)
            planned.quota.extend(quota)
            reply.jobs.append(planned)
        return reply

    async def Simulate(
        self, request: answers_pb2.SimulateRequest, context: _Context
    ) -> answers_pb2.SimulateReply:
        check_user(request.user)
        if len(request.add) > SUBMIT_JOBS_MAX or len(request.remove) > _REMOVED_MAX:
            raise InvalidRequest(
                f"{len(request.add)} jobs added and {len(request.remove)} nodes removed; expected at most "
                f"{SUBMIT_JOBS_MAX} and {_REMOVED_MAX}"
            )
        for name in request.remove:
            if not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
                raise InvalidRequest("a node's name is not one: expected 1 to 200 printable characters")
        if not 0 <= request.until_s <= HORIZON_US / _SECOND_US:
            raise InvalidRequest(f"until_s is {request.until_s}; expected 0 to {HORIZON_US // _SECOND_US}")
        specs = await parsed(self._documents, request.add)
        policy = policy_of(request.policy, request.policy_source) if request.policy else None
        horizon_us = round(request.until_s * _SECOND_US) or HORIZON_US
        as_it_is = Question(seed=request.seed, horizon_us=horizon_us, to_end=True)
        as_is = await self._forecaster.ask(as_it_is)
        reply = answers_pb2.SimulateReply(as_is=outlook_message(as_is.outlook, as_is.draws, as_is.cut))
        if specs or request.remove or request.policy:
            question = structs.replace(
                as_it_is,
                add=self._new_jobs(specs),
                user=request.user,
                remove=list(request.remove),
                policy=policy,
            )
            told = await self._forecaster.ask(question)
            reply.changed.CopyFrom(outlook_message(told.outlook, told.draws, told.cut))
        return reply

    async def Decision(
        self, request: answers_pb2.DecisionRequest, context: _Context
    ) -> answers_pb2.DecisionReply:
        if request.seq < 1:
            raise InvalidRequest(f"seq is {request.seq}; expected the seq of an event")
        if request.seq > EVENTS_MAX:
            raise LimitExceeded(
                f"{request.seq:,} events lead to that decision; at most {EVENTS_MAX:,} are gone through",
                seq=request.seq,
                limit=EVENTS_MAX,
            )
        rows: list[EventRow] = []
        while len(rows) < request.seq:
            limit = min(_EVENTS_AT_ONCE, request.seq - len(rows))
            page = await asyncio.to_thread(self._store.events, after_seq=len(rows), limit=limit)
            if not page:
                raise NotFound(
                    f"there is no event {request.seq}", hint="`pace timeline JOB -o json` has them"
                )
            rows += page
        return decision_message(await self._forecaster.decide_again(rows))

    def _new_jobs(self, specs: Sequence[JobSpec]) -> list[NewJob]:
        """The core never looks into a document."""
        return [new_job(spec, "{}") for spec in specs]


def outlook_message(outlook: Outlook, draws: int, cut: str) -> answers_pb2.Outlook:
    return answers_pb2.Outlook(
        jobs=round(outlook.jobs),
        started=round(outlook.started),
        ended=round(outlook.ended),
        wait_mean_s=outlook.wait_mean_s,
        wait_median_s=outlook.wait_median_s,
        wait_p95_s=outlook.wait_p95_s,
        jct_mean_s=outlook.jct_mean_s,
        gpu_allocation=outlook.gpu_allocation,
        span_s=outlook.span_s,
        draws=draws,
        cut=cut,
        classes=[
            answers_pb2.ClassWait(name=one.name, jobs=one.jobs, wait_mean_s=one.mean_s, wait_p95_s=one.p95_s)
            for one in outlook.classes
        ],
        points=[
            answers_pb2.Point(at_s=point.at_s, queued=point.queued, gpus=point.gpus)
            for point in outlook.points
        ],
        stops=round(outlook.stops),
    )


def decision_message(told: Decision) -> answers_pb2.DecisionReply:
    return answers_pb2.DecisionReply(
        seq=told.seq,
        at_us=told.at_us,
        kind=told.kind,
        job=told.job,
        text=told.text,
        reasons=[reason_message(reason) for reason in told.reasons],
        nodes=[
            answers_pb2.SeenNode(
                node_id=one.node, node=one.name, fits=one.fits, step=one.step, tie=one.tie, chosen=one.chosen
            )
            for one in told.nodes
        ],
        nodes_fit=told.nodes_fit,
        nodes_in_service=told.nodes_in_service,
        again=told.again,
        instead=told.instead,
    )


def _names(state: ClusterState, told: Forecast) -> tuple[dict[NodeId, str], dict[JobId, tuple[str, str]]]:
    """Of the nodes where those that are planned would go, and of the jobs that would be stopped."""
    nodes = {node for number in told.added for node, _ in told.jobs[number].places}
    stopped = (state.jobs.get(stop.job) for stop in told.stops)
    return (
        {node: state.nodes[node].name for node in nodes if node in state.nodes},
        {job.number: (job.name, job.user) for job in stopped if job is not None},
    )


def _planned(
    told: Forecast,
    number: JobId,
    spec: JobSpec,
    names: tuple[Mapping[NodeId, str], Mapping[JobId, tuple[str, str]]],
) -> answers_pb2.PlannedJob:
    nodes, jobs = names
    expected = told.jobs[number]
    reasons = told.reasons.get(number, [])
    when = start_reason(told, expected, told.now_us)
    planned = answers_pb2.PlannedJob(
        name=spec.label,
        tasks=[
            answers_pb2.PlannedTask(node=nodes.get(node, node), gpu_indices=gpus)
            for node, gpus in expected.places
        ],
        reasons=[reason_message(reason) for reason in (when, *reasons)],
        never=number in told.never,
        warnings=[jobs_pb2.Warning(key=dotted(path), text=text) for path, text in warnings_of(spec)],
    )
    if expected.at_us:
        planned.start.CopyFrom(_start(told, expected))
    for stop in told.stops:
        if stop.at_us <= (expected.at_us or 0):
            name, user = jobs.get(stop.job, ("", ""))
            planned.stops.add(job=stop.job, name=name, user=user, outcome=stop.outcome, why=stop.why)
    return planned


def _quotas(state: ClusterState, question: Question, now_us: Micros) -> list[list[answers_pb2.PlannedQuota]]:
    """Of each job that is planned, where the policy in force lets it be."""
    user = question.user
    jobs = [
        Job(NO_JOB, new.name, user, new.priority, NEVER, admitted(state.policy, new, user, now_us))
        for new in question.add
    ]
    return [[_quota_message(quota) for quota in quotas_of(state, job)] for job in jobs]


def _quota_message(quota: Quota) -> answers_pb2.PlannedQuota:
    return answers_pb2.PlannedQuota(
        queue=quota.queue,
        user=quota.user,
        what=quota.what,
        in_use=quota.has / 1000,
        with_job=(quota.has + quota.asked) / 1000,
        guaranteed=None if quota.guaranteed is None else quota.guaranteed / 1000,
        at_most=None if quota.most is None else quota.most / 1000,
    )


def _start(told: Forecast, expected: Expected) -> answers_pb2.Start:
    return answers_pb2.Start(
        at_us=expected.at_us,
        early_us=expected.early_us,
        late_us=expected.late_us,
        draws=told.draws,
        started=expected.started,
    )
