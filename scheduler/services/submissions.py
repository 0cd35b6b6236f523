"""Job documents of a call: parsed, and as the core wants them."""

import asyncio
from collections.abc import Sequence
from typing import Final

from ...proto.generated import jobs_pb2
from ...proto.limits import DOCUMENT_BYTES_MAX, NAME_CHARACTERS_MAX
from ...spec.errors import LimitExceeded
from ...spec.job import JobSpec
from ...spec.parts import DataInput
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
        spec.label,
        spec.effective_priority,
        Shape(spec.demand(), policy, spec.queue),
        document,
        uses_of(spec),
        any(output.name for output in spec.outputs.values()),
    )


def job_of(spec: JobSpec) -> stimuli.NewJob:
    """Of a job that the scheduler itself submits."""
    return new_job(spec, spec.to_json())


def uses_of(spec: JobSpec) -> tuple[tuple[str, str], ...]:
    """What the job is made of, as the lineage calls it, and as what it is used."""
    uses = [
        (value.pinned.asset, f"inputs.{name}")
        for name, value in spec.inputs.items()
        if isinstance(value, DataInput) and value.pinned is not None and value.pinned.asset
    ]
    if spec.code_tree:
        uses.append((f"code:{spec.code_tree}", "code"))
    if spec.environment_key:
        uses.append((f"environment:{spec.environment_key}", "environment"))
    return tuple(uses)
