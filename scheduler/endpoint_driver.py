"""Drives the endpoints: one task for each. It submits replicas and routers, ends those that leave, judges new
revisions, and gives the router its routes.

It holds nothing but what routers have told last: after a crash, or a commit that failed, it begins again from
the store, and routers and replicas go on meanwhile with what they know.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..spec.deployment import DeploymentSpec
from ..spec.deployment_reading import parse_canonical_deployment
from ..spec.errors import Conflict, LimitExceeded, NotFound, PacelineError, Unavailable
from ..spec.ids import Attempt, JobId, Micros
from ..spec.job import JobSpec
from .core import stimuli
from .core.state import ClusterState
from .endpoints import steer
from .endpoints.endpoint import DeploymentState, Endpoint
from .endpoints.endpoints import Endpoints
from .endpoints.stimuli import Leave, Remove, Scale, Settle, StartReplica, StartRouter
from .loop import ChangeWatch, Loop
from .sweep_crew import NewJobOf, Remember

RETRY_S: Final = 1.0
"""After a refusal that may pass."""
BREATH_S: Final = 0.02
"""Between two looks."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests for a deployment may go."""

    job: JobId
    attempt: Attempt
    url: str
    deployment: str
    leaving: bool


@dataclass(frozen=True, slots=True)
class Routes:
    """All that a router needs to know."""

    endpoint: str
    key: str
    routes: tuple[Route, ...]
    traffic: Mapping[str, int]
    mirror: Mapping[str, int]
    specs: Mapping[str, DeploymentSpec]


@dataclass(slots=True)
class Line:
    """The line to the endpoint's router."""

    heard: dict[JobId, steer.Heard] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    """Requests that no replica has yet, by deployment."""
    open: bool = False
    call: int = 0
    """Which one counts: a router that dials anew may do so before its last call was seen to be broken."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """For the driver: it has told something."""
    routes: Routes | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """For the router: the routes are others."""

    def begin(self) -> int:
        """The router has dialled in: the number of its call."""
        self.call += 1
        self.heard, self.waiting, self.open = {}, {}, True
        self.changed.set()
        self.news.set()
        return self.call

    def end(self, call: int) -> None:
        """That call is over."""
        if self.call == call:
            self.heard, self.waiting, self.open = {}, {}, False
            self.news.set()


class EndpointDriver:
    """Used from the scheduler's event loop."""

    def __init__(self, loop: Loop, new_job: NewJobOf, remember: Remember) -> None:
        self._loop = loop
        self._new_job, self._remember = new_job, remember
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._lines: dict[str, Line] = {}

    async def start(self) -> None:
        """Drive all that are in the store."""
        for name in await self._loop.read_endpoints(lambda _, endpoints: list(endpoints.by_name)):
            self.drive(name)

    def drive(self, name: str) -> None:
        """Unless it is driven."""
        standing = self._tasks.get(name)
        if standing is None or standing.done():
            self._tasks[name] = task = asyncio.create_task(self._drive(name), name=f"endpoint {name}")
            task.add_done_callback(lambda done: self._forget(name, done))

    def line(self, name: str) -> Line:
        """To and from its router."""
        return self._lines.setdefault(name, Line())

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _forget(self, name: str, done: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is done:
            del self._tasks[name]
            self._lines.pop(name, None)

    async def _drive(self, name: str) -> None:
        """Until it is gone. What fails is begun again."""
        while True:
            try:
                await _Drive(self._loop, name, self.line(name), self._new_job, self._remember).run()
            except NotFound:
                return
            except Unavailable as error:  # the store failed, or the scheduler stops
                _log.warning("endpoint %s waits: %s", name, error)
            except PacelineError as error:
                _log.warning("endpoint %s: %s", name, error)
            except Exception:  # noqa: BLE001 - of this endpoint alone: the others go on
                _log.exception("endpoint %s: a bug of ours", name)
            await asyncio.sleep(RETRY_S)


@dataclass(frozen=True, slots=True)
class _Look:
    """What a drive has seen between two commits."""

    moves: list[steer.Move]
    routes: Routes
    due_us: int | None
    listen: str
    """Of the router that is to start."""
    routers_made: int
    ready: Mapping[str, int]
    """Deployments that are ready, and how many replicas each is to have."""


class _Drive:
    """One endpoint, from where the store has it, until it is gone."""

    def __init__(self, loop: Loop, name: str, line: Line, new_job: NewJobOf, remember: Remember) -> None:
        self._loop, self._name, self._line = loop, name, line
        self._new_job, self._remember = new_job, remember
        self._read: dict[str, DeploymentSpec] = {}
        """By document."""
        self._low_us: dict[str, int] = {}
        """Since when fewer replicas of a deployment are enough."""

    async def run(self) -> None:
        """Raises NotFound when it is gone, Unavailable, and what refuses a job."""
        with contextlib.closing(self._loop.watch_changes(self._name)) as watch:
            while True:
                self._line.news.clear()
                look = await self._loop.read_endpoints(self._look)
                if look.routes != self._line.routes:
                    self._line.routes = look.routes
                    self._line.changed.set()
                await self._scale(look)
                for move in look.moves:
                    await self._do(move, look)
                await self._wait(watch, look.due_us)

    def _look(self, state: ClusterState, endpoints: Endpoints) -> _Look:
        endpoint = endpoints.get(self._name)
        specs = {name: self._spec(one.newest.document) for name, one in endpoint.deployments.items()}
        now_us = Micros(self._loop.now_us())
        seen = {job: _seen(state, job) for job in endpoint.jobs if job in state.jobs}
        view = steer.View(seen, self._line.heard, self._line.open, now_us)
        return _Look(
            steer.next_moves(endpoint, specs, view),
            _routes(endpoint, specs, seen),
            steer.due_us(endpoint, specs, now_us),
            endpoint.listen,
            endpoint.routers_made,
            {
                name: one.wanted
                for name, one in endpoint.deployments.items()
                if one.state is DeploymentState.READY and not one.deleting
            },
        )

    def _spec(self, document: str) -> DeploymentSpec:
        found = self._read.get(document)
        if found is None:
            if len(self._read) > 100:
                self._read.clear()
            found = self._read[document] = parse_canonical_deployment(document)
        return found

    async def _do(self, move: steer.Move, look: _Look) -> None:
        name = self._name
        match move:
            case steer.NewReplica(deployment, revision):
                await self._start_replica(deployment, revision, look)
            case steer.NewRouter():
                spec = next(iter(look.routes.specs.values()), None)
                if spec is not None:
                    job = spec.model_copy(update={"listen": look.listen}).router_job()
                    await self._start(StartRouter(name, look.routers_made, self._new_job(job)), job)
            case steer.Away(deployment, job):
                await self._loop.submit(Leave(name, deployment, job))
            case steer.End(job):
                with contextlib.suppress(NotFound):  # it has ended by itself
                    await self._loop.submit(stimuli.Cancel(job, None, by=f"endpoint {name}"))
            case steer.Judge(deployment, revision, failed):
                await self._loop.submit(Settle(name, deployment, revision, failed))
            case steer.Drop(deployment):
                await self._loop.submit(Remove(name, deployment))

    async def _start_replica(self, deployment: str, revision: int, look: _Look) -> None:
        spec = look.routes.specs[deployment].replica_job()
        made = await self._loop.read_endpoints(
            lambda _, all_of_them: all_of_them.get(self._name).replicas_made
        )
        await self._start(StartReplica(self._name, deployment, revision, made, self._new_job(spec)), spec)

    async def _start(self, asked: StartReplica | StartRouter, spec: JobSpec) -> None:
        try:
            job = await self._loop.submit(asked)
        except LimitExceeded as error:  # as many jobs as there may be
            _log.info("endpoint %s: a start waits: %s", self._name, error)
            await asyncio.sleep(RETRY_S)
        except Conflict:  # somebody has changed it meanwhile
            return
        else:
            self._remember([job], [spec])

    async def _scale(self, look: _Look) -> None:
        """By what the router has told: more at once, fewer when that was enough for a while."""
        now_us = self._loop.now_us()
        for name, wanted in look.ready.items():
            spec = look.routes.specs[name]
            replicas = {route.job for route in look.routes.routes if route.deployment == name}
            busy = sum(one.in_flight for job, one in self._line.heard.items() if job in replicas)
            busy += self._line.waiting.get(name, 0)
            needed = steer.wanted_replicas(spec, busy)
            if needed >= wanted:
                self._low_us.pop(name, None)
            if needed > wanted:
                await self._loop.submit(Scale(self._name, name, needed, f"{busy} requests at once"))
            elif needed < wanted:
                since_us = self._low_us.setdefault(name, now_us)
                if now_us - since_us >= spec.scale.scale_down_s * 1e6:
                    self._low_us.pop(name)
                    why = f"{busy} requests at once, for {spec.scale.scale_down_s:g} s"
                    await self._loop.submit(Scale(self._name, name, needed, why))

    async def _wait(self, watch: ChangeWatch, due_us: int | None) -> None:
        """Until something has changed, the router has told something, or the time is over."""
        left_s = None if due_us is None else max(BREATH_S, (due_us - self._loop.now_us()) / 1e6)
        changed = asyncio.ensure_future(watch.changed())
        told = asyncio.ensure_future(self._line.news.wait())
        try:
            await asyncio.wait({changed, told}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if changed.done():
                changed.result()
        finally:
            for one in (changed, told):
                one.cancel()
        await asyncio.sleep(BREATH_S)


def _seen(state: ClusterState, job: JobId) -> steer.Seen:
    found = state.jobs[job]
    url = found.tasks[0].url if found.placed and found.tasks else ""
    return steer.Seen(found.attempt, url, found.course.stop is not None)


def _routes(
    endpoint: Endpoint, specs: Mapping[str, DeploymentSpec], seen: Mapping[JobId, steer.Seen]
) -> Routes:
    routes = tuple(
        Route(job, seen[job].attempt, seen[job].url, name, bool(replica.leaving_us))
        for name, deployment in endpoint.deployments.items()
        for job, replica in sorted(deployment.replicas.items())
        if job in seen and seen[job].url
    )
    return Routes(endpoint.name, endpoint.key, routes, dict(endpoint.traffic), dict(endpoint.mirror), specs)


async def routes_of(line: Line, over: Callable[[], bool]) -> AsyncIterator[Routes]:
    """What the router is to know, again whenever that has changed, until `over`."""
    told: Routes | None = None
    while not over():
        line.changed.clear()
        if line.routes is not None and line.routes != told:
            told = line.routes
            yield told
        await line.changed.wait()
