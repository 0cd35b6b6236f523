"""The Endpoints service: deploying, looking, changing; and the line to each endpoint's router."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc.aio

from ...proto.auth import Tokens, WrongRole
from ...proto.generated import endpoints_pb2, endpoints_pb2_grpc, jobs_pb2
from ...proto.limits import DOCUMENT_BYTES_MAX, PAGE_DEFAULT, PAGE_MAX
from ...spec.deployment import DeploymentSpec
from ...spec.deployment_reading import parse_canonical_deployment
from ...spec.errors import InvalidRequest, LimitExceeded, NotFound
from ...spec.ids import JobId
from ...spec.parts import DataInput
from ...spec.problems import InvalidDocument, escaped
from ..core.state import ClusterState
from ..endpoint_driver import EndpointDriver, Line, Routes, routes_of
from ..endpoints import steer
from ..endpoints.endpoint import Deployment, Endpoint, Replica
from ..endpoints.endpoints import Endpoints
from ..endpoints.stimuli import DeleteEndpoint, Deploy, Rollback, SetTraffic
from ..loop import Loop
from .checks import check_asked
from .pinning import Pinning

REPLICAS_TOLD_MAX: Final = 10_000
WATCH_S: Final = 0.25
"""Between two views of one watch."""

_Context = grpc.aio.ServicerContext[Any, Any]


class EndpointService(endpoints_pb2_grpc.EndpointsServicer):
    """Roles: client; router, for its own endpoint."""

    def __init__(self, loop: Loop, driver: EndpointDriver, pinning: Pinning, tokens: Tokens) -> None:
        self._loop, self._driver, self._pinning, self._tokens = loop, driver, pinning, tokens

    async def Deploy(
        self, request: endpoints_pb2.DeployRequest, context: _Context
    ) -> endpoints_pb2.EndpointView:
        check_asked(request.key, request.user)
        asked_for = _parsed(request.deployment)
        spec = await self._pinned(asked_for)
        secret = secrets.token_urlsafe(24) if spec.auth_mode == "key" else ""
        asked = Deploy(
            request.key,
            request.user or "a client",
            spec.endpoint_name,
            spec.name,
            spec.to_json(),
            asked_for.model,
            spec.scale.min_instances,
            spec.scale.max_instances,
            spec.listen,
            spec.pinned.asset if spec.pinned is not None else "",
            secret,
        )
        await self._loop.submit(asked)
        self._driver.drive(spec.endpoint_name)
        return await self._view(spec.endpoint_name)

    async def SetTraffic(
        self, request: endpoints_pb2.SetTrafficRequest, context: _Context
    ) -> endpoints_pb2.EndpointView:
        check_asked(request.key, request.user)
        _check_shares(request.traffic, request.mirror)
        by = request.user or "a client"
        traffic, mirror = dict(request.traffic), dict(request.mirror)
        await self._loop.submit(SetTraffic(request.key, by, request.endpoint, traffic, mirror))
        return await self._view(request.endpoint)

    async def Rollback(
        self, request: endpoints_pb2.ChangeEndpointRequest, context: _Context
    ) -> endpoints_pb2.EndpointView:
        check_asked(request.key, request.user)
        await self._loop.submit(Rollback(request.key, request.user or "a client", request.endpoint))
        return await self._view(request.endpoint)

    async def Delete(
        self, request: endpoints_pb2.ChangeEndpointRequest, context: _Context
    ) -> endpoints_pb2.EndpointView:
        check_asked(request.key, request.user)
        by = request.user or "a client"
        await self._loop.submit(DeleteEndpoint(by, request.endpoint, request.deployment))
        return await self._view(request.endpoint)

    async def Get(
        self, request: endpoints_pb2.GetEndpointRequest, context: _Context
    ) -> endpoints_pb2.EndpointView:
        return await self._view(request.endpoint)

    async def List(
        self, request: endpoints_pb2.ListEndpointsRequest, context: _Context
    ) -> endpoints_pb2.ListEndpointsReply:
        limit, after = request.page.limit or PAGE_DEFAULT, request.page.cursor
        if not 0 < limit <= PAGE_MAX:
            raise InvalidRequest(f"a page of {limit} endpoints; expected 1 to {PAGE_MAX}")

        def read(state: ClusterState, endpoints: Endpoints) -> endpoints_pb2.ListEndpointsReply:
            names = sorted(name for name in endpoints.by_name if name > after)
            views = [self._to_view(state, endpoints.by_name[name]) for name in names[:limit]]
            more = names[limit - 1] if len(names) > limit else ""
            return endpoints_pb2.ListEndpointsReply(endpoints=views, next_cursor=more)

        return await self._loop.read_endpoints(read)

    async def Watch(
        self, request: endpoints_pb2.GetEndpointRequest, context: _Context
    ) -> AsyncIterator[endpoints_pb2.EndpointView]:
        told = None
        while True:
            try:
                view = await self._view(request.endpoint)
            except NotFound:
                if told is None:
                    raise
                return
            if view != told:
                told = view
                yield view
            await asyncio.sleep(WATCH_S)

    async def Route(
        self, reports: AsyncIterator[endpoints_pb2.RouterReport], context: _Context
    ) -> AsyncIterator[endpoints_pb2.Routes]:
        name = await self._routed(context)
        line = self._driver.line(name)
        call = line.begin()
        listening = asyncio.create_task(self._listen(reports, line, call))
        listening.add_done_callback(lambda _: line.changed.set())
        try:
            async for routes in routes_of(line, lambda: listening.done() or line.call != call):
                yield to_message(routes, self._tokens)
        finally:
            line.end(call)
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await listening

    async def _pinned(self, spec: DeploymentSpec) -> DeploymentSpec:
        """With the version that its model means now. Raises InvalidDocument, InvalidRequest."""
        if spec.model_input.is_uri or (spec.model_input.is_local and not spec.model.startswith("/")):
            raise InvalidRequest(
                f"{spec.model[:200]!r} is no model; expected NAME:VERSION, NAME@ALIAS or an absolute path",
                hint="`pace model list` says what is registered",
            )
        if spec.packs:
            raise InvalidRequest(
                f"code_configuration.code: {spec.packs[:200]} was not packed", hint="a client packs it"
            )
        try:
            (job,) = await self._pinning.pinned([spec.replica_job()])
        except InvalidDocument as error:  # of the job that the deployment stands for
            found = error.problems[0]
            meant = f"; did you mean '{found.nearest}'?" if found.nearest else ""
            raise InvalidRequest(f"model: {found.text}{meant}", hint=error.hint) from error
        model = job.inputs["model"]
        assert isinstance(model, DataInput)
        return spec.model_copy(update={"model": model.path, "pinned": model.pinned})

    async def _routed(self, context: _Context) -> str:
        """The endpoint whose router calls. Raises WrongRole for one that is no longer it."""
        router = self._tokens.router_of(context.invocation_metadata() or ())
        assert router is not None, "the door lets in nobody else"

        def read(state: ClusterState, endpoints: Endpoints) -> str:
            name, job = endpoints.by_job.get(router.job, ""), state.jobs.get(router.job)
            is_it = bool(name) and endpoints.by_name[name].router == router.job
            if not is_it or job is None or job.attempt != router.attempt:
                raise WrongRole(f"attempt {router.attempt} of job {router.job} directs no endpoint")
            return name

        return await self._loop.read_endpoints(read)

    async def _listen(
        self, reports: AsyncIterator[endpoints_pb2.RouterReport], line: Line, call: int
    ) -> None:
        async for report in reports:
            if line.call != call:
                return
            if len(report.replicas) > REPLICAS_TOLD_MAX:
                raise LimitExceeded(f"{len(report.replicas)} replicas; expected at most {REPLICAS_TOLD_MAX}")
            line.heard = {JobId(one.job): _heard(one) for one in report.replicas}
            line.waiting = dict(report.waiting)
            line.news.set()

    async def _view(self, name: str) -> endpoints_pb2.EndpointView:
        return await self._loop.read_endpoints(
            lambda state, endpoints: self._to_view(state, endpoints.get(name))
        )

    def _to_view(self, state: ClusterState, endpoint: Endpoint) -> endpoints_pb2.EndpointView:
        line = self._driver.line(endpoint.name)
        router = state.jobs.get(endpoint.router) if endpoint.router is not None else None
        url = router.tasks[0].url if router is not None and router.placed and line.open else ""
        return endpoints_pb2.EndpointView(
            endpoint=endpoint.name,
            user=endpoint.user,
            made_us=endpoint.made_us,
            url=url,
            key=endpoint.key,
            router_job=endpoint.router or 0,
            deployments=[
                _deployment(name, one, state, line) for name, one in sorted(endpoint.deployments.items())
            ],
            traffic=endpoint.traffic,
            mirror=endpoint.mirror,
            history=[endpoints_pb2.EndpointEvent(at_us=one.at_us, text=one.text) for one in endpoint.history],
            deleting=endpoint.deleting,
        )


def _parsed(document: jobs_pb2.JobDocument) -> DeploymentSpec:
    """Raises InvalidDocument, LimitExceeded."""
    if len(document.document) > DOCUMENT_BYTES_MAX:
        raise LimitExceeded(
            f"{escaped(document.source[:200])}: {len(document.document)} characters;"
            f" at most {DOCUMENT_BYTES_MAX}"
        )
    return parse_canonical_deployment(document.document, document.source[:255] or "deployment")


def _check_shares(traffic: Mapping[str, int], mirror: Mapping[str, int]) -> None:
    """Raises InvalidRequest."""
    bad = {name: share for name, share in (*traffic.items(), *mirror.items()) if not 0 <= share <= 100}
    if bad:
        name, share = next(iter(bad.items()))
        raise InvalidRequest(f"{share} % for {name[:255]!r}; expected 0 to 100")
    if sum(traffic.values()) != 100:
        given = ", ".join(f"{name} {share}" for name, share in sorted(traffic.items())) or "nothing"
        raise InvalidRequest(
            f"the shares of traffic are {sum(traffic.values())} % together ({given[:500]}); expected 100"
        )


def _heard(one: endpoints_pb2.ReplicaReport) -> steer.Heard:
    return steer.Heard(
        one.url[:500], one.well, one.leaving, one.in_flight, one.requests, one.failures, one.why[:500]
    )


def _deployment(
    name: str, deployment: Deployment, state: ClusterState, line: Line
) -> endpoints_pb2.DeploymentView:
    heard = [line.heard[job] for job in deployment.replicas if job in line.heard]
    return endpoints_pb2.DeploymentView(
        deployment=name,
        model=deployment.newest.model,
        revision=deployment.newest.number,
        state="deleting" if deployment.deleting else deployment.state,
        why=deployment.why,
        wanted=deployment.wanted,
        replicas=[_replica(job, one, state, line) for job, one in sorted(deployment.replicas.items())],
        requests=sum(one.requests for one in heard),
        failures=sum(one.failures for one in heard),
        document=deployment.newest.document,
    )


def _replica(job: JobId, replica: Replica, state: ClusterState, line: Line) -> endpoints_pb2.ReplicaView:
    found, heard = state.jobs.get(job), line.heard.get(job)
    url = found.tasks[0].url if found is not None and found.placed and found.tasks else ""
    if replica.leaving_us:
        phase = "leaving"
    elif found is None or not found.placed:
        phase = "queued"
    elif not url or heard is None or heard.url != url:
        phase = "starting"
    else:
        phase = "ready" if heard.well else "failing"
    return endpoints_pb2.ReplicaView(
        job=job,
        revision=replica.revision,
        state=phase,
        url=url,
        in_flight=heard.in_flight if heard is not None else 0,
    )


def to_message(routes: Routes, tokens: Tokens) -> endpoints_pb2.Routes:
    """As the router gets it."""
    return endpoints_pb2.Routes(
        endpoint=routes.endpoint,
        key=routes.key,
        routes=[
            endpoints_pb2.Route(
                job=one.job,
                url=one.url,
                deployment=one.deployment,
                leaving=one.leaving,
                secret=tokens.replica_secret(one.job, one.attempt),
            )
            for one in routes.routes
        ],
        traffic=routes.traffic,
        mirror=routes.mirror,
        settings={name: _settings(spec) for name, spec in routes.specs.items()},
    )


def _settings(spec: DeploymentSpec) -> endpoints_pb2.RequestSettings:
    request, probe = spec.request_settings, spec.liveness_probe
    return endpoints_pb2.RequestSettings(
        timeout_s=request.request_timeout_ms / 1000,
        concurrent_max=request.max_concurrent_requests_per_instance,
        queue_s=request.max_queue_wait_ms / 1000,
        probe_period_s=probe.period,
        probe_timeout_s=probe.timeout,
        probe_failures=probe.failure_threshold,
    )
