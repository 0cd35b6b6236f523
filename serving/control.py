"""A router's line to the scheduler: routes come, reports go; and the probes that the reports are made of.

The scheduler may be away: what was told last stands, and is not taken back by silence.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..proto import channels  # before grpc, which it keeps quiet

# isort: split
import grpc
import grpc.aio

from ..proto.failures import error_of
from ..proto.generated import endpoints_pb2, endpoints_pb2_grpc
from ..spec.errors import InvalidRequest
from .balancing import Replica

if TYPE_CHECKING:
    from .router import Router

REPORT_S: Final = 0.5
REDIAL_S: Final = 0.5
_ADMISSION: Final = "PACELINE_ENDPOINT"
_LOG: Final = logging.getLogger("paceline.serving")


@dataclass(frozen=True, slots=True)
class Admission:
    """How a router, or a replica, is let in: by whom, and with what."""

    scheduler: str
    token: str
    ca_file: str
    insecure: bool

    @classmethod
    def from_environment(cls) -> "Admission":
        """Raises InvalidRequest where there is none."""
        try:
            return cls(**json.loads(os.environ[_ADMISSION]))
        except (KeyError, ValueError, TypeError):
            raise InvalidRequest(
                f"{_ADMISSION} is not set as the agent sets it for what an endpoint runs",
                hint="this is run by an endpoint: `pace deploy MODEL --name ENDPOINT`",
            ) from None


class Control:
    """Of one router."""

    def __init__(self, router: "Router", admission: Admission) -> None:
        self._router = router
        ca_file = Path(admission.ca_file) if admission.ca_file else None
        self._target = channels.target(
            admission.scheduler, admission.token, ca_file=ca_file, insecure=admission.insecure
        )
        self._probes: dict[Replica, asyncio.Task[None]] = {}
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                try:
                    await self._call()
                except grpc.RpcError as failed:
                    _LOG.warning("the scheduler does not answer: %s", error_of(failed).message)
                await asyncio.sleep(REDIAL_S)
        finally:
            for task in self._probes.values():
                task.cancel()
            await asyncio.gather(*self._probes.values(), return_exceptions=True)

    async def _call(self) -> None:
        async with channels.open_aio_channel(self._target) as channel:
            stub = endpoints_pb2_grpc.EndpointsStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
            async for routes in stub.Route(self._reports()):
                self._router.balancer.take(routes)
                self._follow()

    def _follow(self) -> None:
        """A probe for each replica that there is now."""
        replicas = set(self._router.balancer.replicas)
        for replica in self._probes.keys() - replicas:
            self._probes.pop(replica).cancel()
        for replica in replicas - self._probes.keys():
            self._probes[replica] = asyncio.create_task(self._probe(replica))
        self._news.set()

    async def _probe(self, replica: Replica) -> None:
        """Often, until it is well for the first time: somebody waits for that."""
        while True:
            settings = self._router.balancer.settings.get(replica.deployment)
            if settings is not None:
                changed = await self._router.probe(replica, settings.probe_timeout_s, settings.probe_failures)
                if changed:
                    self._news.set()
            period_s = settings.probe_period_s if settings is not None else REPORT_S
            await asyncio.sleep(period_s if replica.well else min(period_s, 0.1))

    async def _reports(self) -> AsyncIterator[endpoints_pb2.RouterReport]:
        while True:
            self._news.clear()
            yield self._report()
            try:
                await asyncio.wait_for(self._news.wait(), REPORT_S)
            except TimeoutError:
                continue

    def _report(self) -> endpoints_pb2.RouterReport:
        balancer = self._router.balancer
        return endpoints_pb2.RouterReport(
            replicas=[
                endpoints_pb2.ReplicaReport(
                    job=one.job,
                    url=one.url,
                    well=one.well,
                    in_flight=one.in_flight,
                    requests=one.requests,
                    failures=one.failures,
                    why=one.why[:500],
                    leaving=one.leaving,
                )
                for one in balancer.replicas
                if one.probed
            ],
            waiting={name: len(group.waiting) for name, group in balancer.groups.items() if group.waiting},
        )
