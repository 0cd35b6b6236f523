"""PostgreSQL is a store, by the same tests; and what happens when the server or its session goes away."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import psycopg
import pytest
from conformance.store import StoreConformance, event, job
from paceline.proto.failures import translated
from paceline.proto.generated import jobs_pb2
from paceline.scheduler.store import open_store
from paceline.scheduler.store.base import Batch
from paceline.spec.errors import StoreFailure, Unavailable
from support.postgres import PostgresServer, postgres_server
from support.wire import Agent, until, wire


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


class TestPostgres(StoreConformance):
    @pytest.fixture
    def location(self, server: PostgresServer) -> str:
        return server.database()


def test_a_crash_of_the_server_loses_nothing_and_load_connects_anew(server: PostgresServer) -> None:
    store = open_store(server.database())
    store.load()
    store.commit(Batch(events=[event(1)], jobs=[job(1)]))
    server.kill()
    with pytest.raises(StoreFailure) as failed:
        store.commit(Batch(events=[event(2)]))
    assert "postgresql://" in failed.value.message and failed.value.hint
    with pytest.raises(StoreFailure):
        store.load()
    server.start()
    assert store.load().last_seq == 1
    store.commit(Batch(events=[event(2)]))
    assert len(store.events()) == 2
    store.close()


def test_a_writer_whose_session_is_cut_cannot_write_over_its_successor(server: PostgresServer) -> None:
    url = server.database()
    first = open_store(url)
    first.load()
    first.commit(Batch(events=[event(1)]))
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    second = open_store(url)
    second.load()
    second.commit(Batch(events=[event(2)]))
    with pytest.raises(StoreFailure):
        first.commit(Batch(events=[event(2)]))
    with pytest.raises(StoreFailure, match="held by another scheduler"):
        first.load()
    assert [row.seq for row in second.events()] == [1, 2]
    first.close()
    second.close()


def test_a_newer_schema_is_refused(server: PostgresServer) -> None:
    url = server.database()
    open_store(url).close()
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreFailure, match="9999"):
        open_store(url)


def test_a_server_that_is_not_there_is_refused_without_its_password() -> None:
    with pytest.raises(StoreFailure) as failed:
        open_store("postgresql://user:hunter2@127.0.0.1:1/paceline")
    assert "hunter2" not in str(failed.value) and "127.0.0.1" in failed.value.message


async def test_a_scheduler_on_postgresql_rides_out_a_crash_of_the_server(
    server: PostgresServer, tmp_path: Path
) -> None:
    async with wire(tmp_path, store=server.database()) as wired:
        async with wired.agent() as agent:
            [job] = await wired.submit()
            task = await agent.run(job)
            await until("the start is stored", lambda: agent.acks.get((job, 1, 0)) == 1 or None)
            server.kill()
            with pytest.raises(Unavailable), translated():
                await wired.jobs.Submit(_request("lost"), timeout=20)
            await until("the stream ends with the loop", agent.is_over)
            server.start()

            async def back() -> bool | None:
                try:
                    return bool((await wired.get(job)).state == "RUNNING") or None
                except grpc.aio.AioRpcError:
                    return None

            await until("the scheduler is back", back)
            seqs = agent._seqs
        again = Agent(wired, "n1")
        again._seqs = seqs
        await again.connect(incarnation="i1", tasks=[task])
        await again.end(task)
        await wired.wait_state(job, "SUCCEEDED")
        await again.close()


def _request(key: str) -> jobs_pb2.SubmitRequest:
    document = jobs_pb2.JobDocument(document='{"type":"command","command":"true","code":"/tmp"}')
    return jobs_pb2.SubmitRequest(key=key, jobs=[document])
