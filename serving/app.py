"""The server's HTTP: the Open Inference Protocol v2, and an engine's own routes beside it.

Every answer that is an error is `{"error": TEXT}`. A client is told what it did wrong, never how the server
is built: a traceback goes to the log, and the client gets the number by which it is found there.
https://github.com/kserve/open-inference-protocol
"""

import asyncio
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .. import __version__
from ..spec.errors import LimitExceeded, NotFound, PacelineError
from ..spec.problems import shown
from .engines.base import Answer
from .inference import infer
from .served import Served

BODY_S_MAX: Final = 60.0
_STATUS: Final = {"invalid": 400, "invalid-document": 400, "not-found": 404, "limit": 413, "unavailable": 503}


def make_app(served: Served, lifespan: Any = None) -> Starlette:
    """The application of one model; what else lives as long comes as `lifespan`."""

    async def live(_request: Request) -> Response:
        return _json({"live": True})

    async def ready(_request: Request) -> Response:
        return _json({"ready": served.ready}, 200 if served.ready else 503)

    async def model_ready(request: Request) -> Response:
        served.check(**request.path_params)
        return _json({"name": served.name, "ready": served.ready}, 200 if served.ready else 503)

    async def server(_request: Request) -> Response:
        return _json({"name": "paceline", "version": __version__, "extensions": []})

    async def metadata(request: Request) -> Response:
        served.check(**request.path_params)
        return _json(served.metadata())

    async def infer_route(request: Request) -> Response:
        served.check(**request.path_params)
        if request.method != "POST":
            raise HTTPException(405, "infer takes POST")
        loaded = served.model()
        body = await _body(request, served.body_bytes_max)
        return _response(await served.run(lambda: infer(loaded, served.name, served.version, body)))

    async def other(request: Request) -> Response:
        return await _engine_route(served, request)

    model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    routes = [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        *(Route(base, metadata) for base in (model, version)),
        *(Route(f"{base}/ready", model_ready) for base in (model, version)),
        *(Route(f"{base}/infer", infer_route, methods=["GET", "POST"]) for base in (model, version)),
        Route("/{path:path}", other, methods=["GET", "POST"]),
    ]
    handlers = {PacelineError: _told, HTTPException: _http_error}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


async def _engine_route(served: Served, request: Request) -> Response:
    loaded, path = served.model(), request.url.path
    if request.method in ("GET", "HEAD") and path in loaded.gets:
        return Response(loaded.gets[path], media_type="text/plain")
    if path not in loaded.posts:
        known = [*loaded.gets, *loaded.posts, f"/v2/models/{served.name}/infer"]
        raise NotFound(f"nothing at {request.method} {shown(path)}; there is {', '.join(known)}")
    if request.method != "POST":
        raise HTTPException(405, f"{path} takes POST")
    post, kind = loaded.posts[path], request.headers.get("content-type", "application/json")
    body = await _body(request, served.body_bytes_max)
    return _response(await served.run(lambda: post(body, kind)))


async def _body(request: Request, bytes_max: int) -> bytes:
    """Raises LimitExceeded as soon as it is known to be too large; 408 when it does not come."""
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and int(told) > bytes_max:
        raise LimitExceeded(f"the request has {told} bytes; at most {bytes_max} are taken")
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_S_MAX):
            async for part in request.stream():
                size += len(part)
                if size > bytes_max:
                    raise LimitExceeded(
                        f"the request has more than {bytes_max} bytes, which are taken at most"
                    )
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"the request's body did not come within {BODY_S_MAX:g} s") from None
    return b"".join(parts)


def _json(told: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(told), status, media_type="application/json")


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, media_type=answer.media_type)


async def _told(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PacelineError)
    response = _json({"error": error.message}, _STATUS.get(error.code, 500))
    if error.retryable:
        response.headers["retry-after"] = "1"
    return response


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, error.status_code)
