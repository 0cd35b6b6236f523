"""Registers the outputs that job files give a name, when their job has succeeded.

That a job's outputs are due is committed with its end, and that they are registered, with the versions: a
crash between the two begins the keeping again, which finds in the content store what it has kept.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from ..spec.errors import PacelineError, Unavailable
from ..spec.ids import JobId
from ..spec.job import JobSpec
from ..spec.parts import Output
from .core.job import Job
from .keeping import Keeper, Kept
from .loop import Loop
from .registry.assets import About, job_ref
from .registry.ops import Collected, Register

RETRY_S: Final = 2.0

_log = logging.getLogger(__name__)

Folders = Callable[[Job, JobSpec], Mapping[str, str]]
"""Where a job's outputs are."""


class OutputDriver:
    """Used from the scheduler's event loop."""

    def __init__(
        self,
        loop: Loop,
        keeper: Keeper,
        find: Callable[[JobId], Awaitable[tuple[Job, JobSpec | None]]],
        folders: Folders,
    ) -> None:
        self._loop, self._keeper, self._find, self._folders = loop, keeper, find, folders
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop.outputs_due.set()  # what was due before the start
        self._task = asyncio.create_task(self._run(), name="outputs")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._loop.outputs_due.wait()
            self._loop.outputs_due.clear()
            try:
                due = await self._loop.read_registry(
                    lambda registry: [one.job for one in registry.outputs.values() if one.due]
                )
                for job in due:
                    await self._collect(job)
            except Unavailable as error:  # the store failed, or the scheduler stops
                _log.warning("outputs wait: %s", error)
                await self._again()

    async def _collect(self, job: JobId) -> None:
        try:
            found, spec = await self._find(job)
            if spec is None:
                raise PacelineError("this version cannot read the job's document")
            asked = Collected(job, tuple(await self._kept(found, spec)))
        except Unavailable:
            raise
        except PacelineError as error:
            asked = Collected(job, (), error.message)
        except Exception as bug:  # noqa: BLE001 - of this job alone: others' outputs are registered
            _log.exception("the outputs of job %d: a bug of ours", job)
            asked = Collected(job, (), f"a bug of ours: {bug!r}")
        await self._loop.submit(asked)

    async def _kept(self, job: Job, spec: JobSpec) -> list[Register]:
        folders = self._folders(job, spec)
        return [
            _register(job, name, output, await self._keeper.keep(Path(folders[name])))
            for name, output in spec.outputs.items()
            if output.name
        ]

    async def _again(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._loop.outputs_due.wait(), RETRY_S)
        self._loop.outputs_due.set()


def _register(job: Job, name: str, output: Output, kept: Kept) -> Register:
    found = "mlflow_model" if output.type == "custom_model" and kept.mlflow else output.type
    ref = job_ref(job.number)
    return Register(
        f"outputs.{job.number}.{name}",
        output.kind,
        output.name,
        output.version,
        kept.content,
        About(found, kept.framework, kept.signature),
        f"{ref} outputs.{name}",
        job.user or "a job",
        ((ref, f"outputs.{name}"),),
    )
