"""The requests that submit jobs and sweeps; pure, see rpc.py."""

from collections.abc import Sequence

from ..proto.generated import jobs_pb2, sweeps_pb2
from ..spec.errors import LimitExceeded
from ..spec.ids import JobId
from .rpc import SUBMIT_S, Call, Sent

JOBS_PER_SUBMIT_MAX = 1000
BYTES_PER_SUBMIT_MAX = 2 << 20
"""Of documents in one request, so that a bulk submit stays below the bound on messages."""


def jobs(documents: Sequence[Sent], *, key: str, user: str, reproduces: int = 0) -> Call[tuple[JobId, ...]]:
    """All or none of up to 1,000 documents. `reproduces`: the job that the one of them runs again."""
    request = jobs_pb2.SubmitRequest(
        key=key,
        user=user,
        reproduces=reproduces,
        jobs=[_document(sent) for sent in documents],
    )
    return Call(lambda stubs: stubs.jobs.Submit, request, ids, SUBMIT_S)


def sweep(sent: Sent, *, key: str, user: str) -> Call[int]:
    request = sweeps_pb2.SubmitSweepRequest(key=key, user=user, sweep=_document(sent))
    return Call(lambda stubs: stubs.sweeps.Submit, request, lambda reply: int(reply.sweep), SUBMIT_S)


def batches(documents: Sequence[Sent]) -> list[Sequence[Sent]]:
    """Documents in order, cut into parts that fit into one submit. Raises LimitExceeded on one too large."""
    parts: list[list[Sent]] = [[]]
    size = 0
    for sent in documents:
        bytes_ = len(sent.document.encode()) + len(sent.source.encode()) + 16
        if bytes_ > BYTES_PER_SUBMIT_MAX:
            raise LimitExceeded(
                f"{sent.source}: a job document of {bytes_} bytes; at most {BYTES_PER_SUBMIT_MAX} are taken",
                hint="keep data out of the job file: name a file in `inputs`",
            )
        if parts[-1] and (size + bytes_ > BYTES_PER_SUBMIT_MAX or len(parts[-1]) == JOBS_PER_SUBMIT_MAX):
            parts.append([])
            size = 0
        parts[-1].append(sent)
        size += bytes_
    return [part for part in parts if part]


def ids(reply: jobs_pb2.SubmitReply) -> tuple[JobId, ...]:
    return tuple(JobId(number) for number in reply.jobs)


def _document(sent: Sent) -> jobs_pb2.JobDocument:
    return jobs_pb2.JobDocument(document=sent.document, source=sent.source)
