"""Has what nobody refers to removed from the content store, from time to time, a little at once.

Whatever looks like a hash in the document of a job or a sweep, in an endpoint's record or in a version that
is registered, is referred to. Sweeps, endpoints and versions go, the documents of jobs stay: so these are
read last, and what has gone meanwhile is found in the documents of the jobs that were made of it.
"""

import asyncio
import logging
import re
import time
from collections.abc import Iterable, Iterator
from typing import Final

from ..content.expiry import GRACE_S, Count, Round
from ..content.store import ContentStore
from ..spec.errors import PacelineError
from ..spec.ids import JobId
from .loop import Loop
from .registry.registry import Registry
from .store.base import Store

FIRST_S: Final = 600.0
"""After a start there is other work."""
EVERY_S: Final = 6 * 3600.0
DOCUMENTS_AT_ONCE: Final = 500
WORK_S: Final = 0.05
"""On the disk, without a pause."""
PAUSE_S: Final = 0.45

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_TOLD: Final = "the content store has %d files (%d bytes); %d trees and %d files (%d bytes) are gone"
_log = logging.getLogger(__name__)


class ExpiryDriver:
    """Used from the scheduler's event loop."""

    def __init__(self, loop: Loop, store: Store, content: ContentStore, *, grace_s: float = GRACE_S) -> None:
        self._loop, self._store, self._content = loop, store, content
        self._grace_s = grace_s
        self._of_jobs: set[str] = set()
        self._read = JobId(0)
        """The last job whose document was read: none changes, and none goes."""

    async def run(self) -> None:
        """Until it is cancelled."""
        await asyncio.sleep(FIRST_S)
        while True:
            try:
                count = await self.round()
            except (PacelineError, OSError) as error:
                _log.warning("the content store was not gone through: %s", error)
            else:
                gone = (count.trees_gone, count.blobs_gone, count.bytes_gone)
                _log.info(_TOLD, count.files, count.bytes, *gone)
            await asyncio.sleep(EVERY_S)

    async def round(self) -> Count:
        """Once. Raises PacelineError, OSError; what was removed by then is gone."""
        others = await self._of_others()
        await self._read_jobs()
        round_ = Round(self._content, others | self._of_jobs, self._grace_s)
        steps, goes_on = round_.steps(), True
        while goes_on:
            goes_on = await asyncio.to_thread(_goes_on, steps)
            await asyncio.sleep(PAUSE_S)
        return round_.count

    async def _of_others(self) -> set[str]:
        texts = await self._loop.read_studies(lambda all_: [one.document for one in all_.by_id.values()])
        trees, records = await self._loop.read_registry(_kept)
        return trees | await asyncio.to_thread(_hashes, [*texts, *records])

    async def _read_jobs(self) -> None:
        last = await self._loop.read(lambda state: state.last_job)
        while self._read < last:
            until = min(self._read + DOCUMENTS_AT_ONCE, last)
            jobs = [JobId(job) for job in range(self._read + 1, until + 1)]
            found = await asyncio.to_thread(self._store.documents, jobs)
            self._of_jobs |= await asyncio.to_thread(_hashes, found.values())
            self._read = JobId(until)
            await asyncio.sleep(PAUSE_S)


def _kept(registry: Registry) -> tuple[set[str], list[str]]:
    """Trees of versions that are there, and the records of endpoints."""
    versions = (one for of_name in registry.versions.values() for one in of_name.values())
    trees = {one.content.tree for one in versions if one.there and one.content.tree}
    return trees, [one.record for one in registry.endpoints.values()]


def _hashes(texts: Iterable[str]) -> set[str]:
    return {hash_ for text in texts for hash_ in _HASH.findall(text)}


def _goes_on(steps: Iterator[None]) -> bool:
    """Take some of them."""
    until_s = time.monotonic() + WORK_S
    return any(time.monotonic() > until_s for _ in steps)
