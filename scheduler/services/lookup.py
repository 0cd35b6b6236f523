"""Where a job is found: in the loop while it lives, in the store when it is over."""

import asyncio

from ...spec.errors import NotFound
from ...spec.ids import JobId
from ..core.job import Job
from ..loop import Loop
from ..records import job_from_row
from ..store.base import Store


class Lookup:
    """Committed jobs by number."""

    def __init__(self, loop: Loop, store: Store) -> None:
        self.loop = loop
        self.store = store

    async def live(self, number: JobId) -> Job | None:
        return await self.loop.read(lambda state: state.jobs.get(number))

    async def job(self, number: JobId) -> Job:
        """Live or over. Raises NotFound."""
        live = await self.live(number)
        if live is not None:
            return live
        row = await asyncio.to_thread(self.store.job, number)
        if row is None:
            raise no_job(number)
        return job_from_row(row)


def no_job(number: JobId) -> NotFound:
    return NotFound(f"there is no job {number}", hint="`pace jobs` lists what there is", job=number)
