"""`python -m paceline.serving.router`: an endpoint's requests, passed on to the replicas that answer them.

It has no say of its own: the scheduler tells where requests go (`Endpoints.Route`), and is told how the
replicas do. While the scheduler is away it goes on with what it knows. A request whose replica died before it
answered is given to another one: inference changes nothing, so that doing it twice does no harm.
"""

import argparse
import asyncio
import contextlib
import hmac
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from ..proto.channels import split_address
from .balancing import Balancer, NoReplica, Replica
from .control import Admission, Control
from .telling import node_address, tell_serving

BODY_BYTES_MAX: Final = 256 << 20
TRIES: Final = 3
"""Of a request whose replica does not answer, each with another replica."""
COPIES_MAX: Final = 64
"""Requests under way that are copies; further ones are not made."""
DEPLOYMENT_HEADERS: Final = ("paceline-deployment", "azureml-model-deployment")
"""By which a request names its deployment."""
DRAIN_S: Final = 30.0
_WHOLE_BYTES_MAX: Final = 1 << 20
_CHUNK: Final = 64 << 10
_HOP: Final = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade"),
    )
)
"""Headers of one connection (RFC 9110, 7.6.1)."""
_LOG: Final = logging.getLogger("paceline.serving")


class Router:
    """One endpoint's, in one event loop."""

    def __init__(self) -> None:
        self.balancer = Balancer()
        self._session: aiohttp.ClientSession
        self._copies: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self.idle = asyncio.Event()
        """No request is under way."""
        self.idle.set()

    async def begin(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )

    async def close(self) -> None:
        for task in self._copies:
            task.cancel()
        await asyncio.gather(*self._copies, return_exceptions=True)
        await self._session.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request but our own /-/."""
        if request.path == "/-/health":
            return web.json_response({"endpoint": self.balancer.endpoint, "ready": self._ready()})
        if not self._may(request):
            return _refused(401, "the request needs the endpoint's key: Authorization: Bearer KEY")
        self._under_way += 1
        self.idle.clear()
        try:
            body = await request.read()
            return await self._answer(request, body)
        except web.HTTPRequestEntityTooLarge:
            return _refused(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
        except NoReplica as error:
            return _refused(429 if error.busy else 503, str(error), {"Retry-After": "1"})
        finally:
            self._under_way -= 1
            if not self._under_way:
                self.idle.set()

    async def _answer(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        asked = next((request.headers[name] for name in DEPLOYMENT_HEADERS if name in request.headers), "")
        deployment = self.balancer.deployment(asked)
        headers = _passed_on(request.headers)
        for name in self.balancer.copies():
            if name != deployment and len(self._copies) < COPIES_MAX:
                task = asyncio.create_task(self._copy(name, request.method, request.raw_path, headers, body))
                self._copies.add(task)
                task.add_done_callback(self._copies.discard)
        tried: list[Replica] = []
        while True:
            replica = await self.balancer.acquire(deployment, tried)
            try:
                may_refuse = not self._others(deployment, [*tried, replica])
                return await self._pass_on(replica, request, headers, body, may_refuse=may_refuse)
            except _Unanswered as error:
                replica.failures += 1
                tried.append(replica)
                _LOG.warning("job %d at %s did not answer: %s", replica.job, replica.url, error)
                if error.late:
                    return _refused(504, f"replica {replica.job} of {deployment}: {error}")
                if len(tried) == TRIES or not self._others(deployment, tried):
                    return _refused(502, f"replica {replica.job} of {deployment}: {error}")
            finally:
                self.balancer.release(replica)

    def _others(self, deployment: str, tried: Sequence[Replica]) -> bool:
        group = self.balancer.groups.get(deployment)
        return group is not None and any(one.takes and one not in tried for one in group.replicas)

    async def _pass_on(
        self,
        replica: Replica,
        request: web.BaseRequest,
        headers: CIMultiDict[str],
        body: bytes,
        *,
        may_refuse: bool,
    ) -> web.StreamResponse:
        """Raises _Unanswered as long as nothing of an answer was passed back; also where the replica says
        that it takes nothing now (503), unless it `may_refuse`: there is no other."""
        replica.requests += 1
        settings = self.balancer.settings.get(replica.deployment)
        timeout = aiohttp.ClientTimeout(total=settings.timeout_s if settings else 60.0, sock_connect=5.0)
        begun: web.StreamResponse | None = None
        try:
            async with self._session.request(
                request.method,
                replica.url + request.raw_path,
                headers={**headers, "Authorization": f"Bearer {replica.secret}"},
                data=body or None,
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                if answer.status == 503 and not may_refuse:
                    raise _Unanswered("it takes nothing now (503)", late=False)
                if answer.status >= 500:
                    replica.failures += 1
                kept = _kept(answer.headers)
                kept["paceline-deployment"] = replica.deployment
                if answer.content_length is not None and answer.content_length <= _WHOLE_BYTES_MAX:
                    return web.Response(status=answer.status, headers=kept, body=await answer.read())
                begun = web.StreamResponse(status=answer.status, headers=kept)
                await begun.prepare(request)
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    await begun.write(chunk)
                await begun.write_eof()
                return begun
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            late = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
            why = f"no answer within {timeout.total:g} s" if late else f"{type(error).__name__}: {error}"
            if begun is not None:  # who asked has a part of the answer: only a cut tells that it is not whole
                replica.failures += 1
                if request.transport is not None:
                    request.transport.abort()
                return begun
            raise _Unanswered(why, late=late) from error

    async def _copy(
        self, deployment: str, method: str, path: str, headers: CIMultiDict[str], body: bytes
    ) -> None:
        """Nobody waits for its answer."""
        group = self.balancer.groups.get(deployment)
        replica = group.best(0, ()) if group is not None else None
        if replica is None:
            return
        replica.in_flight += 1
        replica.requests += 1
        try:
            async with self._session.request(
                method,
                replica.url + path,
                headers={**headers, "Authorization": f"Bearer {replica.secret}", "paceline-copy": "1"},
                data=body or None,
                timeout=aiohttp.ClientTimeout(total=60.0),
            ) as answer:
                await answer.read()
                replica.failures += answer.status >= 500
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            replica.failures += 1
            _LOG.warning("job %d did not answer a copy: %s", replica.job, error)
        finally:
            self.balancer.release(replica)

    def _may(self, request: web.BaseRequest) -> bool:
        key = self.balancer.key
        given = request.headers.get("Authorization", "")
        return not key or hmac.compare_digest(given.encode(), f"Bearer {key}".encode())

    def _ready(self) -> bool:
        return any(one.takes for one in self.balancer.replicas)

    async def probe(self, replica: Replica, timeout_s: float, failures_max: int) -> bool:
        """Ask once how it does. True: that has changed."""
        before = (replica.well, replica.probed)
        try:
            async with self._session.get(
                f"{replica.url}/v2/health/ready",
                headers={"Authorization": f"Bearer {replica.secret}"},
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as answer:
                await answer.read()
                why = "" if answer.status == 200 else f"/v2/health/ready answers {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or f"/v2/health/ready: no answer within {timeout_s:g} s"
        if not why:
            replica.well, replica.failed_probes, replica.why = True, 0, ""
        else:
            replica.failed_probes, replica.why = replica.failed_probes + 1, why
            if replica.failed_probes >= failures_max:
                replica.well = False
        replica.probed = replica.probed or replica.well or replica.failed_probes >= failures_max
        if replica.well and not before[0] and replica.deployment in self.balancer.groups:
            group = self.balancer.groups[replica.deployment]
            group.wake(len(group.waiting))
        return before != (replica.well, replica.probed)


class _Unanswered(Exception):
    """The replica did not answer. `late`: it may yet be working on it."""

    def __init__(self, why: str, *, late: bool) -> None:
        super().__init__(why)
        self.late = late


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """As aiohttp makes it, with our bound on its body."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_BYTES_MAX)


def _passed_on(headers: Any) -> CIMultiDict[str]:
    """What a request carries on; its own key is for us alone."""
    return _end_to_end(headers, _HOP | {"authorization", "host", "content-length"})


def _kept(headers: Any) -> CIMultiDict[str]:
    """What an answer carries back."""
    return _end_to_end(headers, _HOP | {"content-length"})


def _end_to_end(headers: Any, hop: frozenset[str]) -> CIMultiDict[str]:
    named = {word.strip().lower() for word in headers.get("Connection", "").split(",")}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in hop | named)


def _refused(status: int, why: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": why}, status=status, headers=headers)


async def serve(admission: Admission, listen: str) -> None:
    """Until SIGTERM, and then until what it has is answered."""
    router = Router()
    await router.begin()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    server = web.Server(router.handle, request_factory=_request)
    runner = web.ServerRunner(server)
    await runner.setup()
    host, port = split_address(listen) if listen else (node_address(), 0)
    site = web.TCPSite(runner, host, port, backlog=1024)
    await site.start()
    [address] = {one[:2] for one in runner.addresses}
    url = f"http://[{address[0]}]:{address[1]}" if ":" in address[0] else f"http://{address[0]}:{address[1]}"
    print(f"routing on {url}", flush=True)  # noqa: T201 - it is the job's output
    tell_serving(url)
    control = asyncio.create_task(Control(router, admission).run())
    stopped = asyncio.create_task(over.wait())
    await asyncio.wait({control, stopped}, return_when=asyncio.FIRST_COMPLETED)
    await site.stop()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(router.idle.wait(), DRAIN_S)
    stopped.cancel()
    control.cancel()
    await asyncio.gather(control, return_exceptions=True)
    await runner.cleanup()
    await router.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(prog="paceline.serving.router", description="Direct requests.")
    parser.add_argument("--listen", default="", help="HOST:PORT; absent: any port of the node's address")
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(serve(Admission.from_environment(), args.listen))
    except OSError as error:
        _LOG.error("cannot listen on %s: %s", args.listen or "a free port", error.strerror or error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
