"""Job documents, read once: parsed specs by text, because thousands of jobs of one submit are often equal."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from ...spec.errors import InvalidRequest
from ...spec.ids import JobId
from ...spec.job import JobSpec, parse_canonical
from ...spec.parts import Environment
from ...spec.work import Work
from ..store.base import Store

_log = logging.getLogger(__name__)

_SPECS_MAX: Final = 4096
_TEXT_BYTES_MAX: Final = 64 << 20
_JOBS_MAX: Final = 20_000


def check_read(work: Work, source: str) -> None:
    """Raises InvalidRequest where files are still to be read."""
    if isinstance(work.environment, Environment) and work.environment.is_unread:
        raise InvalidRequest(
            f"{source}: environment: its files are read where it is submitted",
            hint="send requirements as a list of lines, as `pace submit` does",
        )


class Documents:
    """Bounded caches over the store: text -> spec, and job -> spec for jobs that start soon."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_text: OrderedDict[str, JobSpec] = OrderedDict()
        self._text_bytes = 0
        self._canonical: OrderedDict[int, tuple[JobSpec, str]] = OrderedDict()
        self._by_job: OrderedDict[JobId, JobSpec] = OrderedDict()

    def parse(self, text: str, source: str = "job") -> JobSpec:
        """The spec of a canonical document. Raises InvalidDocument, naming `source`."""
        known = self._by_text.get(text)
        if known is not None:
            self._by_text.move_to_end(text)
            return known
        spec = parse_canonical(text, source)
        check_read(spec, source)
        self._by_text[text] = spec
        self._text_bytes += len(text)
        while len(self._by_text) > _SPECS_MAX or self._text_bytes > _TEXT_BYTES_MAX:
            self._text_bytes -= len(self._by_text.popitem(last=False)[0])
        return spec

    def canonical(self, spec: JobSpec) -> str:
        """The text to store: with all defaults, so that a stored job keeps its meaning when one changes."""
        known = self._canonical.get(id(spec))
        if known is None or known[0] is not spec:
            known = self._canonical[id(spec)] = (spec, spec.to_json())
            while len(self._canonical) > _SPECS_MAX:
                self._canonical.popitem(last=False)
        return known[1]

    def remember(self, jobs: Sequence[JobId], specs: Sequence[JobSpec]) -> None:
        """These were accepted just now; their starts will ask for them."""
        self._by_job.update(zip(jobs, specs, strict=True))
        while len(self._by_job) > _JOBS_MAX:
            self._by_job.popitem(last=False)

    async def of_jobs(self, jobs: Iterable[JobId]) -> dict[JobId, JobSpec]:
        """The specs of stored jobs; one that this version cannot read is left out."""
        wanted = set(jobs)
        found = {job: self._by_job[job] for job in wanted if job in self._by_job}
        missing = sorted(wanted - found.keys())
        if missing:
            texts = await asyncio.to_thread(self._store.documents, missing)
            for job, text in texts.items():
                try:
                    found[job] = spec = self.parse(text, f"job {job}")
                except InvalidRequest as error:
                    _log.error("the stored document of job %d cannot be read: %s", job, error)
                    continue
                self.remember([job], [spec])
        return found
