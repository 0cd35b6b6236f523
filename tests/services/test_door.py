"""The door: tokens, roles, TLS, bounds. Nothing gets in that should not; each refusal says what to do."""

import asyncio
import json
import logging
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from paceline.proto.auth import Worker, bearer, ensure_token, make_token, read_token
from paceline.proto.channels import (
    CHANNEL_OPTIONS,
    is_loopback,
    open_aio_channel,
    open_channel,
    split_address,
    target,
)
from paceline.proto.failures import DETAILS_KEY, translated
from paceline.proto.generated import (
    agent_pb2_grpc,
    answers_pb2,
    answers_pb2_grpc,
    content_pb2,
    content_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    logs_pb2,
    logs_pb2_grpc,
    nodes_pb2,
    nodes_pb2_grpc,
    studies_pb2,
    studies_pb2_grpc,
    sweeps_pb2,
    sweeps_pb2_grpc,
)
from paceline.proto.tls import TlsFiles, ensure_certificate, make_certificate
from paceline.scheduler.config import SchedulerConfig
from paceline.spec.errors import (
    InvalidRequest,
    LimitExceeded,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from paceline.spec.ids import Attempt, JobId
from support.wire import wire

CALLS = {
    "paceline.v1.Answers": lambda channel: answers_pb2_grpc.AnswersStub(channel).Usage(
        answers_pb2.UsageRequest()
    ),
    "paceline.v1.Content": lambda channel: content_pb2_grpc.ContentStub(channel).Missing(
        content_pb2.MissingRequest()
    ),
    "paceline.v1.Jobs": lambda channel: jobs_pb2_grpc.JobsStub(channel).List(jobs_pb2.ListJobsRequest()),
    "paceline.v1.Jobs/Watch": lambda channel: jobs_pb2_grpc.JobsStub(channel).Watch(jobs_pb2.WatchRequest()),
    "paceline.v1.Logs": lambda channel: logs_pb2_grpc.LogsStub(channel).Follow(logs_pb2.FollowRequest()),
    "paceline.v1.Nodes": lambda channel: nodes_pb2_grpc.NodesStub(channel).List(nodes_pb2.ListNodesRequest()),
    "paceline.v1.Studies": lambda channel: studies_pb2_grpc.StudiesStub(channel).List(
        studies_pb2.ListStudiesRequest()
    ),
    "paceline.v1.Sweeps": lambda channel: sweeps_pb2_grpc.SweepsStub(channel).List(
        sweeps_pb2.ListSweepsRequest()
    ),
    "paceline.v1.AgentSession": lambda channel: agent_pb2_grpc.AgentSessionStub(channel).Session(),
    "paceline.v1.LogShipping": lambda channel: logs_pb2_grpc.LogShippingStub(channel).Ship(),
    "reflection": lambda channel: reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    ),
    "unknown": lambda channel: channel.unary_unary("/paceline.v1.Nothing/Do")(b""),
}
FOR_AGENTS = ("paceline.v1.AgentSession", "paceline.v1.LogShipping")


async def outcome(call: Any) -> grpc.StatusCode:
    """How a call ends that sends nothing more."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                return grpc.StatusCode.OK
            return await call.code()
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def raw_outcome(address: str, name: str, metadata: Any) -> grpc.StatusCode:
    """A call with exactly this metadata."""
    method, request = {
        "unary": ("/paceline.v1.Jobs/List", jobs_pb2.ListJobsRequest()),
        "stream": ("/paceline.v1.Logs/Follow", logs_pb2.FollowRequest()),
    }[name]
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        serialize = type(request).SerializeToString
        if name == "unary":
            return await outcome(channel.unary_unary(method, serialize)(request, metadata=metadata))
        return await outcome(channel.unary_stream(method, serialize)(request, metadata=metadata))


@pytest.mark.parametrize("name", CALLS)
async def test_every_call_needs_the_token_of_its_role(tmp_path: Path, name: str) -> None:
    async with wire(tmp_path) as wired:
        tokens = wired.made.tokens
        needed, wrong = (tokens.agent, tokens.client) if name in FOR_AGENTS else (tokens.client, tokens.agent)
        stranger = make_token()

        async def ends(token: str) -> grpc.StatusCode:
            async with open_aio_channel(target(wired.made.address, token)) as channel:
                call = CALLS[name](channel)
                return await asyncio.wait_for(outcome(call), 20)

        assert await ends(stranger) is grpc.StatusCode.UNAUTHENTICATED
        if name == "unknown":
            assert await ends(needed) is grpc.StatusCode.UNIMPLEMENTED
            return
        assert await ends(wrong) is grpc.StatusCode.PERMISSION_DENIED
        if name not in FOR_AGENTS:  # those wait for the agent to speak
            assert await ends(needed) in (
                grpc.StatusCode.OK,
                grpc.StatusCode.INVALID_ARGUMENT,  # it was let in, and asked for job 0
            )


WORKER = Worker(1, JobId(2), Attempt(3))
READ = studies_pb2.ReadStudyRequest


@pytest.mark.parametrize("name", CALLS)
async def test_a_worker_may_call_nothing_but_its_study(tmp_path: Path, name: str) -> None:
    async with wire(tmp_path) as wired:
        token = wired.made.tokens.worker_token(WORKER)
        async with open_aio_channel(target(wired.made.address, token)) as channel:
            ends = await asyncio.wait_for(outcome(CALLS[name](channel)), 20)
            assert ends is grpc.StatusCode.PERMISSION_DENIED
            studies = studies_pb2_grpc.StudiesStub(channel)
            assert await outcome(studies.Read(READ(study=2))) is grpc.StatusCode.PERMISSION_DENIED
            assert await outcome(studies.Read(READ(study=1))) is grpc.StatusCode.ABORTED, "job 2 is not there"


@pytest.mark.parametrize("change", [(".1.", ".2."), (".2.", ".3."), (".3.", ".4."), ("worker.", "")])
async def test_what_a_workers_token_says_cannot_be_changed(tmp_path: Path, change: tuple[str, str]) -> None:
    async with wire(tmp_path) as wired:
        token = wired.made.tokens.worker_token(WORKER).replace(*change, 1)
        async with open_aio_channel(target(wired.made.address, token)) as channel:
            studies = studies_pb2_grpc.StudiesStub(channel)
            assert await outcome(studies.Read(READ(study=1))) is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_token_counts_only_in_its_place(tmp_path: Path, kind: str) -> None:
    async with wire(tmp_path) as wired:
        token = wired.made.tokens.client
        wrong: list[Any] = [
            (),
            (("token", token),),
            (("authorization", token),),
            (("authorization", f"bearer {token}"),),
            (("authorization", f"Basic {token}"),),
            (("authorization", f"Bearer {token} "), ("authorization", f"Bearer {token}")),
            (("authorization", f"Bearer {token[:-1]}"),),
            (("authorization", f"Bearer {token}x"),),
            (("authorization", "Bearer "),),
            (("authorization-bin", token.encode()),),
        ]
        for metadata in wrong:
            code = await raw_outcome(wired.made.address, kind, metadata)
            assert code is grpc.StatusCode.UNAUTHENTICATED, metadata
        good = await raw_outcome(wired.made.address, kind, (bearer(token),))
        assert good is not grpc.StatusCode.UNAUTHENTICATED


async def test_health_is_open_and_says_serving(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, grpc.aio.insecure_channel(wired.made.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_names_our_services(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        async with open_aio_channel(target(wired.made.address, wired.made.tokens.client)) as channel:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            )
            names = [s.name async for r in call for s in r.list_services_response.service]
        assert {"paceline.v1.Jobs", "paceline.v1.AgentSession", "grpc.health.v1.Health"} <= set(names)


async def test_tls_with_a_generated_certificate(tmp_path: Path) -> None:
    async with wire(tmp_path, listen="0.0.0.0:0", tls_generated=True) as wired:
        assert wired.made.ca_file is not None
        assert await wired.submit() == [1]
        said = json.loads((tmp_path / "scheduler.json").read_text())
        assert said["ca_file"] == str(wired.made.ca_file)
        assert stat.S_IMODE((tmp_path / "tls" / "key.pem").stat().st_mode) == 0o600
        token = wired.made.tokens.client
        stranger, _ = make_certificate(["127.0.0.1"])
        (tmp_path / "other.pem").write_bytes(stranger)
        request = jobs_pb2.ListJobsRequest()
        for other in (
            target(wired.made.address, token, ca_file=tmp_path / "other.pem"),
            target(wired.made.address, token),
        ):
            async with open_aio_channel(other) as channel:
                with pytest.raises(Unavailable), translated():
                    await jobs_pb2_grpc.JobsStub(channel).List(request, timeout=3)


def test_a_generated_certificate_is_kept_until_the_names_change(tmp_path: Path) -> None:
    first = ensure_certificate(tmp_path / "tls", ["127.0.0.1", "node-a"]).certificate.read_bytes()
    assert ensure_certificate(tmp_path / "tls", ["node-a"]).certificate.read_bytes() == first
    assert ensure_certificate(tmp_path / "tls", ["node-b"]).certificate.read_bytes() != first


async def test_bad_certificate_files_are_named(tmp_path: Path) -> None:
    good = ensure_certificate(tmp_path / "a", ["127.0.0.1"])
    other = ensure_certificate(tmp_path / "b", ["127.0.0.1"])
    (tmp_path / "text").write_text("not a certificate")
    for files, word in (
        (TlsFiles(tmp_path / "nothing", good.key), "nothing"),
        (TlsFiles(tmp_path / "text", good.key), "text"),
        (TlsFiles(good.certificate, tmp_path / "text"), "text"),
        (TlsFiles(good.certificate, other.key), "is not the key of"),
    ):
        with pytest.raises(InvalidRequest, match=word):
            async with wire(tmp_path / "state", tls_files=files):
                pass


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.1.2.3", "node-a"])
def test_a_listener_beyond_loopback_needs_tls_or_a_word(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidRequest, match="in the clear") as refused:
        SchedulerConfig(tmp_path, f"{host}:7223")
    assert "--tls" in refused.value.hint and "--insecure" in refused.value.hint
    SchedulerConfig(tmp_path, f"{host}:7223", insecure=True)
    SchedulerConfig(tmp_path, f"{host}:7223", tls_generated=True)


def test_a_client_does_not_send_its_token_in_the_clear() -> None:
    with pytest.raises(InvalidRequest, match="in the clear"):
        target("10.1.2.3:7223", "token")
    assert target("10.1.2.3:7223", "token", insecure=True).address == "10.1.2.3:7223"
    assert target("https://node-a:7223", "token").encrypted


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False), ("localhost.evil.example", False), ("node", False)],
)  # fmt: skip
def test_loopback_is_what_never_leaves(host: str, local: bool) -> None:
    assert is_loopback(host) is local


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":7223", "host:x", "host:70000", "::1:7223", "[::1]"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InvalidRequest):
        split_address(address)


async def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    async with wire(tmp_path / "a") as wired:
        with pytest.raises(Unavailable, match="cannot listen"):
            async with wire(tmp_path / "b", listen=wired.made.address):
                pass


async def test_messages_metadata_and_documents_are_bounded(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        huge = jobs_pb2.JobDocument(document="x" * (17 << 20))
        unbounded = (("grpc.max_send_message_length", -1),)
        async with grpc.aio.insecure_channel(wired.made.address, options=unbounded) as channel:
            stub = jobs_pb2_grpc.JobsStub(channel)
            metadata = (bearer(wired.made.tokens.client),)
            with pytest.raises(LimitExceeded), translated():
                await stub.Submit(jobs_pb2.SubmitRequest(key="k", jobs=[huge]), metadata=metadata)
            fat = (*metadata, ("filler", "y" * 100_000))
            with pytest.raises(LimitExceeded), translated():
                await stub.List(jobs_pb2.ListJobsRequest(), metadata=fat)
        large = jobs_pb2.JobDocument(document=" " * ((1 << 20) + 1), source="large.yaml")
        with pytest.raises(LimitExceeded, match=r"large\.yaml"), translated():
            await wired.jobs.Submit(jobs_pb2.SubmitRequest(key="k", jobs=[large]))
        assert await wired.submit() == [1]


async def test_errors_arrive_as_themselves(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        with pytest.raises(NotFound) as missing, translated():
            await wired.get(77)
        assert missing.value.fields["job"] == "77" and "pace jobs" in missing.value.hint
        where = target(wired.made.address, wired.made.tokens.client)

        def plain() -> None:
            with open_channel(where) as channel, translated():
                jobs_pb2_grpc.JobsStub(channel).Get(jobs_pb2.GetJobRequest(job=77))

        with pytest.raises(NotFound):
            await asyncio.to_thread(plain)
        with pytest.raises(Unauthenticated), translated():
            async with open_aio_channel(target(wired.made.address, make_token())) as channel:
                await jobs_pb2_grpc.JobsStub(channel).List(jobs_pb2.ListJobsRequest())


async def test_a_bug_of_ours_is_an_incident_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from paceline.scheduler.services.jobs import JobService

    async def broken(self: object, request: object, context: object) -> None:
        raise RuntimeError("secret path /etc/x")

    monkeypatch.setattr(JobService, "Get", broken)
    async with wire(tmp_path) as wired:
        with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as failed:
            await wired.get(1)
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        details = failed.value.details() or ""
        assert "secret" not in details and "incident" in details
        incident = details.split("incident ")[1][:8]
        assert any(incident in record.message and record.exc_info for record in caplog.records)


async def test_details_stay_within_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paceline.scheduler.services.jobs import JobService

    async def wordy(self: object, request: object, context: object) -> None:
        raise NotFound("漢" * 10_000, hint="ö" * 10_000, **{f"field{n}": "v" * 300 for n in range(100)})

    monkeypatch.setattr(JobService, "Get", wordy)
    async with wire(tmp_path) as wired:
        with pytest.raises(NotFound) as failed, translated():
            await wired.get(1)
        assert len(failed.value.message) > 2000 and len(failed.value.fields) >= 3
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await wired.get(1)
        assert sum(len(v) for k, v in raw.value.trailing_metadata() or () if k == DETAILS_KEY) < 8192


def test_token_files_are_private_whole_and_made_once(tmp_path: Path) -> None:
    path = tmp_path / "client.token"
    token = ensure_token(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_token(path) == read_token(path) == token and len(token) >= 43
    assert list(tmp_path.iterdir()) == [path]
    path.chmod(0o644)
    with pytest.raises(InvalidRequest, match="can be read by others"):
        read_token(path)
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(InvalidRequest, match="does not hold a token"):
        ensure_token(path)
    with pytest.raises(InvalidRequest, match="cannot read"):
        read_token(tmp_path / "nothing")


def test_many_makers_agree_on_one_token(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(lambda _: ensure_token(tmp_path / "t"), range(32)))
    assert len(tokens) == 1 and list(tmp_path.iterdir()) == [tmp_path / "t"]
