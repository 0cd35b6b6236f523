"""Puts the scheduler together and serves it: store, loop, services, listener; and takes it apart again.

Nothing answers before the state is recovered; scheduler.json names an address only while it answers.
"""

import asyncio
import json
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from ..content.store import ContentStore, content_folder, records_folder
from ..proto import payload
from ..proto.auth import Tokens, ensure_token
from ..proto.channels import SERVER_OPTIONS, split_address
from ..proto.generated import (
    agent_pb2,
    agent_pb2_grpc,
    answers_pb2,
    answers_pb2_grpc,
    content_pb2,
    content_pb2_grpc,
    endpoints_pb2,
    endpoints_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    logs_pb2,
    nodes_pb2,
    nodes_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    studies_pb2,
    studies_pb2_grpc,
    sweeps_pb2,
    sweeps_pb2_grpc,
)
from ..proto.guard import Guard
from ..proto.tls import TlsFiles, ensure_certificate, own_names, server_credentials
from ..spec.errors import Unavailable
from ..spec.ids import JobId
from ..spec.job import JobSpec
from .config import SchedulerConfig
from .core.job import Job
from .endpoint_driver import EndpointDriver
from .experience import gather_experience
from .expiry_driver import ExpiryDriver
from .forecaster import Forecaster
from .keeping import Keeper
from .logs import LogStore
from .loop import Loop
from .output_driver import OutputDriver
from .services.agents import AgentService, Samples
from .services.answers import AnswerService
from .services.asset_sources import Sources
from .services.content import ContentService
from .services.documents import Documents
from .services.endpoints import EndpointService
from .services.jobs import JobService
from .services.lineage import Lineage
from .services.logs import LogService
from .services.lookup import Lookup
from .services.nodes import NodeService
from .services.pinning import Pinning
from .services.policy import PolicyService
from .services.registry import RegistryService
from .services.shipping import ShippingService
from .services.starts import output_folders
from .services.studies import StudyService
from .services.submissions import job_of
from .services.sweeps import SweepService
from .store.base import Store
from .sweep_driver import SweepDriver

_log = logging.getLogger(__name__)
STOP_GRACE_S = 1.0
SERVICES = (
    answers_pb2,
    content_pb2,
    endpoints_pb2,
    jobs_pb2,
    logs_pb2,
    nodes_pb2,
    policy_pb2,
    registry_pb2,
    studies_pb2,
    sweeps_pb2,
    agent_pb2,
)
"""Those that reflection tells of."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What runs, as those who start it need it."""

    address: str
    """HOST:PORT that a client on this machine can dial."""
    tokens: Tokens
    ca_file: Path | None
    cluster_id: str
    loop: Loop
    store: Store


@asynccontextmanager
async def serving(config: SchedulerConfig, opening: Awaitable[Store]) -> AsyncIterator[Serving]:
    """Serve while the context is open, what `opening.open_state` gives; the store is closed at the end.

    Raises StoreFailure, InvalidRequest, Unavailable (port taken).
    """
    store = await opening
    try:
        names = ("client.token", "agent.token", "worker.secret")
        tokens = Tokens(*(ensure_token(config.state / name) for name in names))
        tls = _tls_files(config)
        loop = Loop(store, config.settings)
        await loop.start()
        content = ContentStore(content_folder(config.storage_folder))
        try:
            async with _listening(config, _Inside(tokens, tls, loop, store, content)) as address:
                made = Serving(
                    address, tokens, tls.certificate if tls else None, store.cluster_id, loop, store
                )
                record = _write_record(config.state, made)
                beside = [
                    asyncio.create_task(gather_experience(loop, store)),
                    asyncio.create_task(ExpiryDriver(loop, store, content).run()),
                ]
                try:
                    yield made
                finally:
                    record.unlink(missing_ok=True)
                    for task in beside:
                        task.cancel()
                    await asyncio.gather(*beside, return_exceptions=True)
        finally:
            await loop.close()
    finally:
        await asyncio.to_thread(store.close)


@dataclass(frozen=True, slots=True)
class _Inside:
    """What the services are made of."""

    tokens: Tokens
    tls: TlsFiles | None
    loop: Loop
    store: Store
    content: ContentStore


@asynccontextmanager
async def _listening(config: SchedulerConfig, inside: _Inside) -> AsyncIterator[str]:
    loop, store = inside.loop, inside.store
    server = grpc.aio.server(interceptors=[Guard(inside.tokens)], options=SERVER_OPTIONS)
    documents = Documents(store)
    samples = Samples()
    lookup = Lookup(loop, store)
    forecaster = Forecaster(loop, loop.now_us)
    pinning = Pinning(loop, inside.content)
    jobs = JobService(
        lookup, documents, pinning, forecaster, storage=config.storage_folder, now_us=loop.now_us
    )
    jobs_pb2_grpc.add_JobsServicer_to_server(jobs, server)
    answers = AnswerService(store, documents, forecaster, now_us=loop.now_us)
    answers_pb2_grpc.add_AnswersServicer_to_server(answers, server)
    nodes_pb2_grpc.add_NodesServicer_to_server(NodeService(loop, samples, now_us=loop.now_us), server)
    driver = SweepDriver(loop, job_of, documents.remember, config.storage_folder)
    sweeps_pb2_grpc.add_SweepsServicer_to_server(SweepService(loop, driver, pinning), server)
    endpoints = EndpointDriver(loop, job_of, documents.remember)
    deployed = EndpointService(loop, endpoints, pinning, inside.tokens)
    endpoints_pb2_grpc.add_EndpointsServicer_to_server(deployed, server)
    policy_pb2_grpc.add_PolicyServicer_to_server(PolicyService(loop, now_us=loop.now_us), server)
    studies_pb2_grpc.add_StudiesServicer_to_server(StudyService(loop, inside.tokens), server)
    collector = _add_registry(server, inside, lookup, documents, config.storage_folder)
    logs = LogStore(config.state / "logs")
    payload.add_logs(LogService(lookup, logs), server)
    shipping = ShippingService(lookup, documents, logs, bytes_max=config.log_bytes_max)
    payload.add_log_shipping(shipping, server)
    agents = _add_agents(server, config, inside, documents, logs, samples=samples)
    health = _add_health_and_reflection(server)
    address = _bind(server, config.listen, inside.tls)
    await server.start()
    await driver.start()
    await endpoints.start()
    collector.start()
    try:
        yield address
    finally:
        await health.enter_graceful_shutdown()
        # No new calls from here on; those under way are told, and what has arrived is committed.
        stopping = asyncio.create_task(server.stop(STOP_GRACE_S))
        agents.end_all("the scheduler is stopping")
        shipping.end_all("the scheduler is stopping")
        logs.end_all()
        await agents.drained()
        await driver.close()
        await endpoints.close()
        await collector.close()
        await forecaster.close()
        await loop.close()
        await stopping
        logs.close()


def _add_agents(
    server: grpc.aio.Server,
    config: SchedulerConfig,
    inside: _Inside,
    documents: Documents,
    logs: LogStore,
    *,
    samples: Samples,
) -> AgentService:
    agents = AgentService(
        inside.loop,
        documents,
        logs,
        cluster_id=inside.store.cluster_id,
        storage=config.storage_folder,
        settings=config.settings,
        samples=samples,
        tokens=inside.tokens,
    )
    agent_pb2_grpc.add_AgentSessionServicer_to_server(agents, server)
    return agents


def _add_registry(
    server: grpc.aio.Server, inside: _Inside, lookup: Lookup, documents: Documents, storage: Path
) -> OutputDriver:
    """The services of what is kept by content and of what is registered; who registers outputs."""
    loop, content = inside.loop, inside.content
    records = ContentStore(records_folder(storage))
    content_pb2_grpc.add_ContentServicer_to_server(ContentService(content, records), server)
    keeper = Keeper(content)
    sources = Sources(loop, lookup, documents, keeper, storage)
    registry = RegistryService(loop, sources, keeper, Lineage(loop, inside.store, lookup))
    registry_pb2_grpc.add_RegistryServicer_to_server(registry, server)

    async def find(number: JobId) -> tuple[Job, JobSpec | None]:
        return await lookup.job(number), (await documents.of_jobs([number])).get(number)

    return OutputDriver(
        loop, keeper, find, lambda job, spec: output_folders(storage, job.number, job.attempt, spec)
    )


def _add_health_and_reflection(server: grpc.aio.Server) -> Any:
    from grpc_health.v1 import health, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = [service.full_name for file in SERVICES for service in file.DESCRIPTOR.services_by_name.values()]
    reflection.enable_server_reflection([*names, "grpc.health.v1.Health", reflection.SERVICE_NAME], server)
    return servicer


def _bind(server: grpc.aio.Server, listen: str, tls: TlsFiles | None) -> str:
    host, wanted = split_address(listen)
    try:
        if tls is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, server_credentials(tls))
    except RuntimeError as error:
        raise Unavailable(
            f"cannot listen on {listen}: the port is taken, or the address is not this machine's",
            hint="is a scheduler running already? Name another with --listen HOST:PORT (port 0: any)",
            listen=listen,
        ) from error
    assert wanted in (0, port)
    dialled = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{dialled}]:{port}" if ":" in dialled else f"{dialled}:{port}"


def _tls_files(config: SchedulerConfig) -> TlsFiles | None:
    if config.tls_files is not None or not config.tls_generated:
        return config.tls_files
    host, _ = split_address(config.listen)
    return ensure_certificate(config.state / "tls", own_names(host))


def _write_record(state: Path, made: Serving) -> Path:
    """scheduler.json, whole or not at all."""
    path = state / "scheduler.json"
    fresh = state / f".scheduler.json.{secrets.token_hex(4)}"
    fresh.write_text(
        json.dumps(
            {
                "address": made.address,
                "pid": os.getpid(),
                "start_time": _start_time(),
                "ca_file": str(made.ca_file or ""),
                "cluster_id": made.cluster_id,
            }
        )
    )
    fresh.rename(path)
    return path


def _start_time() -> int:
    """Field 22 of /proc/self/stat: with the pid it names this process for good. 0 where there is no /proc."""
    try:
        stat = Path("/proc/self/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])
