"""Job documents of a call: parsed, and as the core wants them."""

import asyncio
from collections.abc import Sequence
from typing import Final

from ...proto.generated import jobs_pb2
from ...proto.limits import DOCUMENT_BYTES_MAX, NAME_CHARACTERS_MAX
from ...spec.errors import LimitExceeded
from ...spec.job import JobSpec
from ...spec.problems import escaped
from ..core import stimuli
from ..core.job import Policy, Shape
from .documents import Documents

_SECOND_US: Final = 1_000_000
_PARSE_AT_ONCE: Final = 50
"""Documents of one call that are parsed before other calls get their turn."""


async def parsed(documents: Documents, asked: Sequence[jobs_pb2.JobDocument]) -> list[JobSpec]:
    """Raises InvalidDocument, naming the source, and LimitExceeded."""
    specs = []
    for at, each in enumerate(asked):
        if len(each.document) > DOCUMENT_BYTES_MAX:
            raise LimitExceeded(
                f"{escaped(each.source[:200])}: the document has {len(each.document)} characters;"
                f" at most {DOCUMENT_BYTES_MAX}",
                hint="keep data out of the job file: name a file in `inputs`",
            )
        specs.append(documents.parse(each.document, each.source[:NAME_CHARACTERS_MAX] or f"job {at}"))
        if at % _PARSE_AT_ONCE == _PARSE_AT_ONCE - 1:
            await asyncio.sleep(0)
    return specs


def new_job(spec: JobSpec, document: str) -> stimuli.NewJob:
    policy = Policy(
        retries_max=spec.retry.max_attempts - 1,
        timeout_us=(spec.limits.timeout or 0) * _SECOND_US,
        grace_us=round(spec.grace_s * _SECOND_US),
        retry_on=spec.retry.on,
        backoff_start_us=round(spec.retry.backoff.start_s * _SECOND_US),
        backoff_max_us=round(spec.retry.backoff.max_s * _SECOND_US),
    )
    return stimuli.NewJob(
        spec.label, spec.effective_priority, Shape(spec.demand(), policy, spec.queue), document
    )
