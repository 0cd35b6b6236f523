"""Verbs on a job's checkpoints: save now, list, go on from one, fork from one; and to make way after a save.

A fork gets the parent's checkpoint as its own: hard links to the same files (copies where storage has none),
made under STORAGE/forks/KEY before the fork is committed. So the parent's retention deletes only its own
names, the fork's only the fork's, and a call that is repeated finds what it made.
"""

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import grpc.aio

from ...proto.codecs import job_id_of
from ...proto.generated import jobs_pb2, jobs_pb2_grpc
from ...spec.errors import Conflict, InvalidRequest, NotFound
from ...spec.ids import JobId
from ..core import stimuli
from ..core.checkpoint_table import checkpoint_table
from ..core.checkpoints import checkpoint_of
from ..core.job import Checkpoint, Job, Parent
from ..loop import Loop
from ..records import events_from_rows
from .checks import check_asked
from .documents import Documents
from .lookup import Lookup
from .messages import checkpoint_message
from .submissions import new_job, parsed

_SECOND_US: Final = 1_000_000
_Context = grpc.aio.ServicerContext[Any, Any]


class CheckpointCalls(jobs_pb2_grpc.JobsServicer):
    """The part of the job service that is about checkpoints."""

    _loop: Loop
    _lookup: Lookup
    _documents: Documents
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
        (spec,) = await parsed(self._documents, [request.document])
        chosen = checkpoint_of(parent, request.step)
        kept = await asyncio.to_thread(_keep_for_fork, self._storage, request.key, parent, chosen)
        new = new_job(spec, self._documents.canonical(spec))
        submit = stimuli.Submit(request.key, request.user, (new,), Parent(number, chosen.step), kept)
        done = await self._loop.submit(submit)
        return jobs_pb2.SubmitReply(jobs=done.jobs, repeated_call=done.repeated)

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


def _keep_for_fork(storage: Path, key: str, parent: Job, chosen: Checkpoint) -> Checkpoint:
    """The checkpoint under a name of the fork's own. Raises NotFound when it has just been deleted."""
    source = Path(chosen.path)
    target = storage / "forks" / key / source.name
    aside = target.with_name(f".tmp-{target.name}")
    try:
        if not target.exists():
            shutil.rmtree(aside, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, aside, copy_function=_link)
            _sync(aside)
            aside.rename(target)
            _sync(target.parent)
    except (FileNotFoundError, shutil.Error) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise NotFound(
            f"job {parent.number}'s checkpoint of step {chosen.step} cannot be taken over: {error}",
            hint=f"`pace checkpoints {parent.number}` lists the others; `pace checkpoint` makes one now",
            job=parent.number,
            step=chosen.step,
        ) from error
    return replace(chosen, path=str(target), job=chosen.job or parent.number, url="", damaged={})


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # storage without hard links
        shutil.copy2(source, target)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
