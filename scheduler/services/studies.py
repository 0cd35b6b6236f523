"""Studies and their trials: made, found, written and read. The rules are in sweeps/ops.py."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import grpc.aio

from ...proto.auth import Tokens, Worker, WrongRole
from ...proto.generated import studies_pb2, studies_pb2_grpc
from ...proto.limits import PAGE_BYTES_MAX, PAGE_DEFAULT, PAGE_MAX, TRIALS_PAGE_BYTES, TRIALS_PAGE_MAX
from ...spec.errors import InvalidRequest
from ..loop import Loop
from ..sweeps.ops import CreateStudy, DeleteStudy, Made, Taken
from ..sweeps.studies import Studies
from ..sweeps.study import Study, Trial
from ..sweeps.workers import check_current
from .checks import check_asked
from .study_ops import check_study, ops_of

_Context = grpc.aio.ServicerContext[Any, Any]


class StudyService(studies_pb2_grpc.StudiesServicer):
    """Roles: client; worker, for its own study."""

    def __init__(self, loop: Loop, tokens: Tokens) -> None:
        self._loop, self._tokens = loop, tokens

    async def Create(
        self, request: studies_pb2.CreateStudyRequest, context: _Context
    ) -> studies_pb2.StudyView:
        check_asked(request.key, request.user)
        check_study(request.name, request.directions)
        directions, user = tuple(request.directions), request.user or "a client"
        study = await self._loop.submit(CreateStudy(request.key, request.name, directions, user))
        return await self._loop.read_studies(lambda studies: study_view(studies.get(study)))

    async def Delete(
        self, request: studies_pb2.DeleteStudyRequest, context: _Context
    ) -> studies_pb2.DeleteStudyReply:
        await self._loop.submit(DeleteStudy(request.study))
        return studies_pb2.DeleteStudyReply()

    async def Find(self, request: studies_pb2.FindStudyRequest, context: _Context) -> studies_pb2.StudyView:
        def find(studies: Studies) -> studies_pb2.StudyView:
            named = request.WhichOneof("by") == "name"
            study = studies.named(request.name) if named else studies.get(request.study)
            view = study_view(study)
            view.document = study.document
            return view

        found = await self._loop.read_studies(find)
        await self._check_read(found.study, context)
        return found

    async def List(
        self, request: studies_pb2.ListStudiesRequest, context: _Context
    ) -> studies_pb2.ListStudiesReply:
        cursor = request.page.cursor or "0"
        if not 0 <= request.page.limit <= PAGE_MAX or not cursor.isdecimal() or len(cursor) > 20:
            raise InvalidRequest(
                f"a page of {request.page.limit} studies after {cursor[:80]!r}",
                hint=f"expected a limit of at most {PAGE_MAX}, and the cursor of the page before",
            )
        limit = request.page.limit or PAGE_DEFAULT
        return await self._loop.read_studies(lambda studies: _page(studies, int(cursor), limit))

    async def Write(
        self, request: studies_pb2.WriteStudyRequest, context: _Context
    ) -> studies_pb2.WriteStudyReply:
        asked = replace(ops_of(request), by=self._worker(request.study, context))
        if not request.HasField("since"):
            return studies_pb2.WriteStudyReply(replies=map(_reply, await self._loop.submit(asked)))
        then = replace(asked, then=lambda study: _changes(study, request.since))
        *answers, changes = await self._loop.submit(then)
        assert isinstance(changes, studies_pb2.ReadStudyReply)
        return studies_pb2.WriteStudyReply(replies=map(_reply, answers), changes=changes)

    async def Read(
        self, request: studies_pb2.ReadStudyRequest, context: _Context
    ) -> studies_pb2.ReadStudyReply:
        await self._check_read(request.study, context)
        return await self._loop.read_study(request.study, lambda study: _changes(study, request.since))

    async def _check_read(self, study: int, context: _Context) -> None:
        worker = self._worker(study, context)
        if worker is not None:
            await self._loop.read(lambda state: check_current(state, worker))

    def _worker(self, study: int, context: _Context) -> Worker | None:
        """None: a client calls. Raises WrongRole for another's study."""
        worker = self._tokens.worker_of(context.invocation_metadata() or ())
        if worker is not None and worker.study != study:
            raise WrongRole(
                f"job {worker.job} works for study {worker.study}, and asks for study {study}",
                job=worker.job,
                study=study,
            )
        return worker


def study_view(study: Study) -> studies_pb2.StudyView:
    return studies_pb2.StudyView(
        study=study.id,
        name=study.name,
        directions=study.directions,
        user_attrs=_attrs(study.user_attrs),
        system_attrs=_attrs(study.system_attrs),
        user=study.user,
        made_us=study.made_us,
        sweep_state=study.state or "",
    )


def _page(studies: Studies, after: int, limit: int) -> studies_pb2.ListStudiesReply:
    """Numbers grow with the order in which studies were made."""
    reply, size = studies_pb2.ListStudiesReply(), 0
    for number, study in studies.by_id.items():
        if number <= after:
            continue
        if len(reply.studies) == limit or size > PAGE_BYTES_MAX:
            reply.next_cursor = str(reply.studies[-1].study)
            break
        view = study_view(study)
        size += view.ByteSize()
        reply.studies.append(view)
    return reply


def _reply(answer: object) -> studies_pb2.OpReply:
    if isinstance(answer, Made):
        return studies_pb2.OpReply(
            trial=answer.number, started_us=answer.started_us, changed=isinstance(answer, Taken)
        )
    return studies_pb2.OpReply(changed=answer is True)


def _changes(study: Study, since: int) -> studies_pb2.ReadStudyReply:
    anew = since > study.version  # the store was put back to an earlier state
    since = 0 if anew else since
    reply = studies_pb2.ReadStudyReply(version=study.version, anew=anew)
    if study.noted > since:
        reply.study.CopyFrom(study_view(study))
    places: dict[str, int] = {}
    size = 0
    for trial in study.changed_since(since):
        if len(reply.trials) == TRIALS_PAGE_MAX or size > TRIALS_PAGE_BYTES:
            reply.more = True
            break
        view = _trial_view(trial, since, places)
        size += view.ByteSize()
        reply.trials.append(view)
        reply.version = trial.version
    if not reply.more:
        reply.version = study.version
    reply.distributions.extend(places)
    return reply


def _trial_view(trial: Trial, since: int, places: dict[str, int]) -> studies_pb2.TrialView:
    newer = trial.reported_since(since)
    record = _record(trial, places) if trial.noted > since else None
    return studies_pb2.TrialView(
        trial=trial.number, record=record, steps=newer.keys(), intermediate=newer.values()
    )


def _record(trial: Trial, places: dict[str, int]) -> studies_pb2.TrialRecord:
    return studies_pb2.TrialRecord(
        state=studies_pb2.TrialState.Value(trial.state),
        params=[
            studies_pb2.ParamView(
                name=name,
                value=param.value,
                distribution=places.setdefault(param.distribution, len(places)),
            )
            for name, param in trial.params.items()
        ],
        values=trial.values,
        user_attrs=_attrs(trial.user_attrs),
        system_attrs=_attrs(trial.system_attrs),
        started_us=trial.started_us,
        finished_us=trial.finished_us,
        job=trial.job or 0,
    )


def _attrs(attrs: Mapping[str, str]) -> Iterable[studies_pb2.Attr]:
    return [studies_pb2.Attr(key=key, value=text) for key, text in attrs.items()]
