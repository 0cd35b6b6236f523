"""Verbs on a job's checkpoints: save now, list, go on from one, fork from one; and to make way."""

import asyncio
from pathlib import Path
from typing import Any, Final

import grpc.aio
from msgspec.structs import replace

from ...proto.codecs import job_id_of
from ...proto.generated import jobs_pb2, jobs_pb2_grpc
from ...spec.errors import Conflict, InvalidRequest, NotFound
from ...spec.ids import JobId
from ..core import stimuli
from ..core.checkpoint_table import checkpoint_table
from ..core.checkpoints import checkpoint_of
from ..core.job import Parent
from ..forks import keep_for_fork
from ..loop import Loop
from ..records import events_from_rows
from ..registry.assets import job_ref
from .checks import check_asked
from .documents import Documents
from .lookup import Lookup
from .messages import checkpoint_message
from .pinning import Pinning
from .submissions import new_job, parsed

_SECOND_US: Final = 1_000_000
_Context = grpc.aio.ServicerContext[Any, Any]


class CheckpointCalls(jobs_pb2_grpc.JobsServicer):
    """The part of the job service that is about checkpoints."""

    _loop: Loop
    _lookup: Lookup
    _documents: Documents
    _pinning: Pinning
    _storage: Path

    async def Preempt(self, request: jobs_pb2.PreemptRequest, context: _Context) -> jobs_pb2.JobView:
        number = job_id_of(request.job)
        check_asked(request.key, request.user)
        if not 0 <= request.grace_s <= 86_400:
            raise InvalidRequest(f"grace_s is {request.grace_s}; expected 0 to 86400 seconds")
        grace_us = round(request.grace_s * _SECOND_US) or None
        asked = stimuli.Preempt(request.key, number, grace_us, request.user or "a client")
        await self._ask_live(number, asked)
        return await self._view(number)

    async def Checkpoint(
        self, request: jobs_pb2.CheckpointRequest, context: _Context
    ) -> jobs_pb2.CheckpointReply:
        number = job_id_of(request.job)
        check_asked(request.key, request.user)
        try:
            asked = stimuli.AskCheckpoint(request.key, number, request.user or "a client")
            done = await self._loop.submit(asked)
        except NotFound:
            raise await self._over(number, "has nothing to save any more") from None
        return jobs_pb2.CheckpointReply(request=done.number, attempt=done.attempt)

    async def Restore(self, request: jobs_pb2.RestoreRequest, context: _Context) -> jobs_pb2.JobView:
        number = job_id_of(request.job)
        check_asked(request.key, request.user)
        asked = stimuli.Restore(request.key, number, request.step, request.user or "a client")
        await self._ask_live(number, asked, step=request.step)
        return await self._view(number)

    async def ListCheckpoints(
        self, request: jobs_pb2.GetJobRequest, context: _Context
    ) -> jobs_pb2.ListCheckpointsReply:
        number = job_id_of(request.job)
        job = await self._lookup.job(number)
        events = events_from_rows([row async for row in self._history(number, 0)])
        policy = await self._policy(number)
        reply = jobs_pb2.ListCheckpointsReply()
        for line in checkpoint_table(job, events, policy):
            view = checkpoint_message(line.checkpoint)
            view.kept, view.state, view.tiers = line.kept, line.state, line.tiers
            reply.checkpoints.append(view)
        return reply

    async def Fork(self, request: jobs_pb2.ForkRequest, context: _Context) -> jobs_pb2.SubmitReply:
        number = job_id_of(request.job)
        check_asked(request.key, request.user)
        parent = await self._lookup.job(number)
        made = await asyncio.to_thread(self._store_key, request.key)
        if made:
            return jobs_pb2.SubmitReply(jobs=made, repeated_call=True)
        (spec,) = await self._pinning.pinned(await parsed(self._documents, [request.document]))
        chosen = checkpoint_of(parent, request.step)
        kept = await asyncio.to_thread(keep_for_fork, self._storage, request.key, parent.number, chosen)
        new = new_job(spec, self._documents.canonical(spec))
        if request.reproduces:
            new = await self._reproducing(new, request.reproduces)
        submit = stimuli.Submit(request.key, request.user, (new,), Parent(number, chosen.step), kept)
        done = await self._loop.submit(submit)
        return jobs_pb2.SubmitReply(jobs=done.jobs, repeated_call=done.repeated)

    async def _reproducing(self, new: stimuli.NewJob, origin: int) -> stimuli.NewJob:
        """The lineage says so. Raises NotFound."""
        job = await self._lookup.job(job_id_of(origin))
        return replace(new, uses=(*new.uses, (job_ref(job.number), "reproduces")))

    async def _ask_live(
        self, number: JobId, asked: stimuli.Preempt | stimuli.Restore, step: int | None = None
    ) -> None:
        try:
            await self._loop.submit(asked)
        except NotFound as error:
            if "step" in error.fields:
                raise
            hint = (
                f"`pace fork {number} --from-step {step}` goes on from it as a new job"
                if step is not None
                else ""
            )
            raise await self._over(number, "cannot go on", hint) from None

    async def _over(self, number: JobId, what: str, hint: str = "") -> Exception:
        """It is not live: over, or was never there (which raises NotFound)."""
        job = await self._lookup.job(number)
        return Conflict(
            f"job {number} is over ({job.state}) and {what}", hint=hint, job=number, state=job.state
        )

    def _store_key(self, key: str) -> tuple[JobId, ...]:
        row = self._lookup.store.key(key)
        return row.jobs if row is not None else ()

    # Given by the service that this is a part of.

    async def _view(self, number: JobId) -> jobs_pb2.JobView:
        raise NotImplementedError

    def _history(self, number: JobId, after_seq: int) -> Any:
        raise NotImplementedError

    async def _policy(self, number: JobId) -> Any:
        raise NotImplementedError
