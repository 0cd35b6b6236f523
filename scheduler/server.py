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

from ..proto import payload
from ..proto.auth import Tokens, ensure_token
from ..proto.channels import SERVER_OPTIONS, split_address
from ..proto.generated import (
    agent_pb2,
    agent_pb2_grpc,
    answers_pb2,
    answers_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    logs_pb2,
    nodes_pb2,
    nodes_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    studies_pb2,
    studies_pb2_grpc,
    sweeps_pb2,
    sweeps_pb2_grpc,
)
from ..proto.guard import Guard
from ..proto.tls import TlsFiles, ensure_certificate, own_names, server_credentials
from ..spec.errors import Unavailable
from .config import SchedulerConfig
from .experience import gather_experience
from .forecaster import Forecaster
from .logs import LogStore
from .loop import Loop
from .services.agents import AgentService, Samples
from .services.answers import AnswerService
from .services.documents import Documents
from .services.jobs import JobService
from .services.logs import LogService
from .services.lookup import Lookup
from .services.nodes import NodeService
from .services.policy import PolicyService
from .services.shipping import ShippingService
from .services.studies import StudyService
from .services.submissions import new_job
from .services.sweeps import SweepService
from .store.base import Store
from .sweep_driver import SweepDriver

_log = logging.getLogger(__name__)
STOP_GRACE_S = 1.0
SERVICES = (
    answers_pb2,
    jobs_pb2,
    logs_pb2,
    nodes_pb2,
    policy_pb2,
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
        try:
            async with _listening(config, _Inside(tokens, tls, loop, store)) as address:
                made = Serving(
                    address, tokens, tls.certificate if tls else None, store.cluster_id, loop, store
                )
                record = _write_record(config.state, made)
                experience = asyncio.create_task(gather_experience(loop, store))
                try:
                    yield made
                finally:
                    record.unlink(missing_ok=True)
                    experience.cancel()
                    await asyncio.gather(experience, return_exceptions=True)
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


@asynccontextmanager
async def _listening(config: SchedulerConfig, inside: _Inside) -> AsyncIterator[str]:
    loop, store = inside.loop, inside.store
    server = grpc.aio.server(interceptors=[Guard(inside.tokens)], options=SERVER_OPTIONS)
    documents = Documents(store)
    samples = Samples()
    lookup = Lookup(loop, store)
    forecaster = Forecaster(loop, loop.now_us)
    jobs = JobService(lookup, documents, forecaster, storage=config.storage_folder, now_us=loop.now_us)
    jobs_pb2_grpc.add_JobsServicer_to_server(jobs, server)
    answers = AnswerService(store, documents, forecaster, now_us=loop.now_us)
    answers_pb2_grpc.add_AnswersServicer_to_server(answers, server)
    nodes_pb2_grpc.add_NodesServicer_to_server(NodeService(loop, samples, now_us=loop.now_us), server)
    driver = SweepDriver(loop, lambda spec: new_job(spec, spec.to_json()), documents.remember)
    sweeps_pb2_grpc.add_SweepsServicer_to_server(SweepService(loop, driver), server)
    policy_pb2_grpc.add_PolicyServicer_to_server(PolicyService(loop, now_us=loop.now_us), server)
    studies_pb2_grpc.add_StudiesServicer_to_server(StudyService(loop, inside.tokens), server)
    logs = LogStore(config.state / "logs")
    payload.add_logs(LogService(lookup, logs), server)
    shipping = ShippingService(lookup, documents, logs, bytes_max=config.log_bytes_max)
    payload.add_log_shipping(shipping, server)
    agents = AgentService(
        loop,
        documents,
        logs,
        cluster_id=store.cluster_id,
        storage=config.storage_folder,
        settings=config.settings,
        samples=samples,
        tokens=inside.tokens,
    )
    agent_pb2_grpc.add_AgentSessionServicer_to_server(agents, server)
    health = _add_health_and_reflection(server)
    address = _bind(server, config.listen, inside.tls)
    await server.start()
    await driver.start()
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
        await forecaster.close()
        await loop.close()
        await stopping
        logs.close()


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
