"""Verbs on a job's place in line: hold, release, priority."""

from typing import Any, Final

import grpc.aio

from ...proto.codecs import job_id_of
from ...proto.generated import jobs_pb2, jobs_pb2_grpc
from ...spec.errors import Conflict, InvalidRequest, NotFound
from ...spec.ids import JobId
from ..core import admin_stimuli as stimuli
from ..loop import Loop
from .checks import check_user, check_why
from .lookup import Lookup

PRIORITY_MAX: Final = 1000
_Context = grpc.aio.ServicerContext[Any, Any]


class HoldCalls(jobs_pb2_grpc.JobsServicer):
    """The part of the job service that is about a job's place in line."""

    _loop: Loop
    _lookup: Lookup

    async def Hold(self, request: jobs_pb2.HoldRequest, context: _Context) -> jobs_pb2.JobView:
        check_user(request.user)
        check_why(request.why)
        number = job_id_of(request.job)
        return await self._arranged(stimuli.HoldJob(number, request.user or "a client", request.why))

    async def Release(self, request: jobs_pb2.ReleaseRequest, context: _Context) -> jobs_pb2.JobView:
        check_user(request.user)
        return await self._arranged(stimuli.ReleaseJob(job_id_of(request.job), request.user or "a client"))

    async def SetPriority(self, request: jobs_pb2.SetPriorityRequest, context: _Context) -> jobs_pb2.JobView:
        check_user(request.user)
        if abs(request.priority) > PRIORITY_MAX:
            raise InvalidRequest(
                f"priority is {request.priority}; expected {-PRIORITY_MAX} to {PRIORITY_MAX}"
            )
        number = job_id_of(request.job)
        return await self._arranged(stimuli.SetPriority(number, request.user or "a client", request.priority))

    async def _arranged(
        self, asked: stimuli.HoldJob | stimuli.ReleaseJob | stimuli.SetPriority
    ) -> jobs_pb2.JobView:
        try:
            await self._loop.submit(asked)
        except NotFound:
            job = await self._lookup.job(asked.job)
            raise Conflict(
                f"job {job.number} is over: {job.state}", hint="it stands in no line", job=job.number
            ) from None
        return await self._view(asked.job)

    # Given by the service that this is a part of.
    async def _view(self, number: JobId) -> jobs_pb2.JobView:
        raise NotImplementedError
