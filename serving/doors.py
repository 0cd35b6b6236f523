"""Who may ask a server: those that carry its secret."""

import hmac

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


def guarded(app: ASGIApp, secret: str) -> ASGIApp:
    """The application behind `Authorization: Bearer SECRET`; empty: it is open to all who reach it."""
    if not secret:
        return app
    wanted = f"Bearer {secret}".encode()

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "http" and not hmac.compare_digest(given, wanted):
            why = "this is a replica of an endpoint; it answers the endpoint's router alone"
            await JSONResponse({"error": why}, 401)(scope, receive, send)
            return
        await app(scope, receive, send)

    return door
