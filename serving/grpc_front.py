"""The protocol over gRPC, beside HTTP and in the same event loop: the same model, checks and limits."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeVar

import grpc
from starlette.applications import Starlette

from .. import __version__
from ..proto.generated import inference_pb2 as pb
from ..proto.generated import inference_pb2_grpc as service
from ..spec.errors import PacelineError
from .inference import outputs_of
from .messages import from_message, to_message
from .served import Served

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]
_DRAIN_S: Final = 30.0
_CODES: Final = {
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "not-found": grpc.StatusCode.NOT_FOUND,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
}
_LOG: Final = logging.getLogger("paceline.serving")
A = TypeVar("A")


def grpc_beside(served: Served, address: str) -> Lifespan:
    """Listens on `address` as long as the application lives."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        limit = [("grpc.max_receive_message_length", served.body_bytes_max), ("grpc.so_reuseport", 0)]
        server = grpc.aio.server(options=[*limit, ("grpc.max_send_message_length", -1)])
        service.add_GRPCInferenceServiceServicer_to_server(Front(served), server)
        port = server.add_insecure_port(address)
        await server.start()
        _LOG.info("gRPC on %s:%d", address.rpartition(":")[0], port)
        yield
        await server.stop(_DRAIN_S)

    return lifespan


class Front(service.GRPCInferenceServiceServicer):
    """The six calls."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def ServerLive(self, request: Any, context: Any) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._served.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="paceline", version=__version__)

    async def ModelReady(self, request: Any, context: Any) -> pb.ModelReadyResponse:
        async def answer() -> pb.ModelReadyResponse:
            self._served.check(request.name, request.version)
            return pb.ModelReadyResponse(ready=self._served.ready)

        return await _or_abort(answer, context)

    async def ModelMetadata(self, request: Any, context: Any) -> pb.ModelMetadataResponse:
        async def answer() -> pb.ModelMetadataResponse:
            self._served.check(request.name, request.version)
            return pb.ModelMetadataResponse(**self._served.metadata())

        return await _or_abort(answer, context)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        served = self._served

        async def answer() -> pb.ModelInferResponse:
            served.check(request.model_name, request.model_version)
            loaded = served.model()

            def infer() -> pb.ModelInferResponse:
                outputs = outputs_of(loaded, served.name, from_message(request))
                return to_message(request, served.version, outputs)

            return await served.run(infer)

        return await _or_abort(answer, context)


async def _or_abort(answer: Callable[[], Awaitable[A]], context: Any) -> A:
    try:
        return await answer()
    except PacelineError as error:
        await context.abort(_CODES.get(error.code, grpc.StatusCode.INTERNAL), error.message)
        raise
