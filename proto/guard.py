"""The door of a server: every call passes here before it reaches a service.

No call goes through without the right token; a PacelineError becomes its status; anything else is a bug of
ours, which leaves as INTERNAL with an incident number and is told with its traceback in the log only.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from ..spec.errors import PacelineError, Unauthenticated
from .auth import Tokens
from .failures import DETAILS_KEY, details_of, status_of, text_of

_log = logging.getLogger(__name__)
_Context = grpc.aio.ServicerContext[Any, Any]
_Handler = Any  # grpc.RpcMethodHandler: its stubs leave out the behaviours that are read here


class Guard(grpc.aio.ServerInterceptor):
    """Checks the token of each call and translates the errors of our own services."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._guarded: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        method = handler_call_details.method
        try:
            self._tokens.check(method, handler_call_details.invocation_metadata)
        except Unauthenticated as error:
            return _refusing(await continuation(handler_call_details), error)
        guarded = self._guarded.get(method)
        if guarded is None:
            guarded = await continuation(handler_call_details)
            if guarded is not None and method.startswith("/paceline."):
                guarded = self._guarded[method] = _translating(guarded, method)
        return guarded


async def _abort(context: _Context, error: PacelineError) -> None:
    await context.abort(status_of(error), text_of(error), ((DETAILS_KEY, details_of(error)),))


async def _abort_incident(context: _Context, method: str, error: Exception) -> None:
    incident = secrets.token_hex(4)
    _log.error("incident %s in %s", incident, method, exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL,
        f"the scheduler met a bug of its own in {method} (incident {incident}); its log has the details",
    )


def _translating(handler: _Handler, method: str) -> _Handler:
    """The same handler with its errors translated."""

    def one(inner: Callable[[Any, _Context], Awaitable[Any]]) -> Callable[[Any, _Context], Awaitable[Any]]:
        async def call(request: Any, context: _Context) -> Any:
            try:
                return await inner(request, context)
            except PacelineError as error:
                await _abort(context, error)
            except (grpc.RpcError, grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception as error:  # noqa: BLE001 - the door: it is logged with its traceback
                await _abort_incident(context, method, error)

        return call

    def many(
        inner: Callable[[Any, _Context], AsyncIterator[Any]],
    ) -> Callable[[Any, _Context], AsyncIterator[Any]]:
        async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
            try:
                async for reply in inner(request, context):
                    yield reply
            except PacelineError as error:
                await _abort(context, error)
            except (grpc.RpcError, grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception as error:  # noqa: BLE001 - the door: it is logged with its traceback
                await _abort_incident(context, method, error)

        return call

    return _with_behaviour(handler, one=one, many=many)


def _refusing(handler: _Handler, error: PacelineError) -> _Handler:
    """A handler of the same kind that refuses before it reads anything."""

    def one(_: object) -> Callable[[Any, _Context], Awaitable[Any]]:
        async def call(request: Any, context: _Context) -> Any:
            await _abort(context, error)

        return call

    def many(_: object) -> Callable[[Any, _Context], AsyncIterator[Any]]:
        async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
            await _abort(context, error)
            yield

        return call

    if handler is None:
        return grpc.unary_unary_rpc_method_handler(one(None))
    return _with_behaviour(handler, one=one, many=many)


def _with_behaviour(handler: Any, *, one: Callable[[Any], Any], many: Callable[[Any], Any]) -> _Handler:
    makers = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary, one),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream, many),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary, one),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream, many),
    }
    make, inner, wrap = makers[bool(handler.request_streaming), bool(handler.response_streaming)]
    made: _Handler = make(wrap(inner), handler.request_deserializer, handler.response_serializer)
    return made
