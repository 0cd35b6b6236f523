"""What has been, and what would be. Nothing here changes anything."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc.aio

from ...proto.generated import answers_pb2, answers_pb2_grpc
from ...spec.errors import InvalidRequest
from ...spec.ids import Micros
from ...spec.problems import escaped
from ..store.base import Store
from .usage import UsageReader

_BY: Final = ("user", "queue", "project")
_TELL_S: Final = 0.5

_Context = grpc.aio.ServicerContext[Any, Any]


class AnswerService(answers_pb2_grpc.AnswersServicer):
    """Role: client."""

    def __init__(self, store: Store, *, now_us: Callable[[], int]) -> None:
        self._store = store
        self._now_us = now_us
        self._reading = asyncio.Lock()
        """One sum at a time: all are made of the same store, by the same processor."""

    async def Usage(
        self, request: answers_pb2.UsageRequest, context: _Context
    ) -> AsyncIterator[answers_pb2.UsageReply]:
        if request.by not in _BY:
            raise InvalidRequest(f"by is {escaped(request.by[:40])!r}; expected one of {', '.join(_BY)}")
        if request.since_us < 0:
            raise InvalidRequest(f"since_us is {request.since_us}; expected 0 or a time")
        async with self._reading:
            now_us = Micros(self._now_us())
            reader = UsageReader(self._store, request.by, Micros(request.since_us), now_us)
            told_s = asyncio.get_running_loop().time()
            while await reader.more():
                now_s = asyncio.get_running_loop().time()
                if now_s - told_s >= _TELL_S:
                    told_s = now_s
                    yield answers_pb2.UsageReply(jobs_read=reader.jobs_read, jobs=reader.jobs)
            rows = reader.rows()
        yield answers_pb2.UsageReply(jobs_read=reader.jobs_read, jobs=reader.jobs, rows=rows, until_us=now_us)
