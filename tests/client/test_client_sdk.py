"""The SDK on a real cluster: typed, patient, and exact over lost replies and restarts."""

import asyncio
import dataclasses
import threading
import time
from pathlib import Path

import paceline
import pytest
from paceline.client.aio import AsyncClient
from paceline.client.base import WaitTimedOut
from paceline.client.sdk import Client
from paceline.client.views import Change, LogChunk
from paceline.spec.errors import InvalidRequest, NotFound, Unavailable
from paceline.spec.job import InvalidDocument, job_from_data
from paceline.spec.lifecycle import JobState
from support.cluster import Cluster, wait_until
from support.proxy import Proxy

COUNTING = "command: i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.05; done\n"


def test_the_package_offers_both_clients() -> None:
    assert paceline.Client is Client and paceline.AsyncClient is AsyncClient


def test_submit_takes_a_path_a_mapping_and_a_spec(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("command: echo file ${{inputs.x}}\ninputs: {x: 1}\nname: from-file")
    spec, _ = job_from_data({"command": "echo spec", "name": "from-spec"})
    with cluster.new_client() as client:
        jobs = [
            client.submit(tmp_path / "job.yaml", overrides=["inputs.x=2"]),
            client.submit(str(tmp_path / "job.yaml"), name="renamed"),
            client.submit({"command": "echo mapping", "name": "from-mapping"}),
            client.submit(spec),
        ]
        done = [client.wait(job, timeout_s=60) for job in jobs]
    assert jobs == sorted(jobs)
    assert [job.name for job in done] == ["from-file", "renamed", "from-mapping", "from-spec"]
    assert {job.state for job in done} == {JobState.SUCCEEDED}
    assert b"".join(chunk.data for chunk in cluster.client.logs(jobs[0], follow=True)) == b"file 2\n"


def test_many_are_submitted_in_order_and_listed_over_pages(cluster: Cluster) -> None:
    never = {"gpus": 1000}
    jobs = cluster.client.submit_many(
        {"command": "true", "name": f"bulk-{i:04}", "resources": never} for i in range(1200)
    )
    try:
        assert len(set(jobs)) == 1200 and list(jobs) == sorted(jobs)
        listed = cluster.client.jobs(name_contains="bulk-", limit=1150)
        assert [job.name for job in listed] == [f"bulk-{i:04}" for i in range(1199, 49, -1)]
    finally:
        for job in cluster.client.jobs(name_contains="bulk-", states=["QUEUED"], limit=2000):
            cluster.client.cancel(job.job)


def test_the_values_of_a_trial_reach_every_rank(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "show.py"
    script.write_text(
        "import os, sys, paceline\n"
        "print(sys.argv[1], dict(paceline.init().params), os.environ['PACELINE_PARAM_lr'])\n"
    )
    job = cluster.client.submit(
        {
            "command": f"python {script} ${{{{search_space.lr}}}}",
            "params": {"lr": 0.25, "flag": True, "clip": None},
            "resources": {"instance_count": 2},
        }
    )
    assert cluster.client.wait(job, timeout_s=60).state is JobState.SUCCEEDED
    shown = b"".join(chunk.data for chunk in cluster.client.logs(job, follow=True))
    assert shown.decode().splitlines() == ["0.25 {'clip': None, 'flag': True, 'lr': 0.25} 0.25"] * 2


def test_results_are_frozen_and_free_of_protobuf(cluster: Cluster) -> None:
    job = cluster.client.wait(cluster.submit_text("command: 'true'"), timeout_s=60)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.name = "other"  # type: ignore[misc]
    for field in dataclasses.fields(job):
        assert "pb2" not in type(getattr(job, field.name)).__module__
    assert job.is_over and job.world_size == 1 and job.tasks[0].exit_codes == (0,)


def test_errors_are_those_of_the_vocabulary(cluster: Cluster, tmp_path: Path) -> None:
    client = cluster.client
    with pytest.raises(NotFound):
        client.job(10**9)
    with pytest.raises(InvalidDocument) as invalid:
        client.submit({"command": "true", "resorces": {}})
    assert invalid.value.problems[0].nearest == "resources"
    with pytest.raises(InvalidRequest, match=r"missing\.yaml"):
        client.submit(tmp_path / "missing.yaml")
    with pytest.raises(Unavailable):
        Client("127.0.0.1:1", state=cluster.state, patience_s=0.2).jobs()


def test_waiting_has_an_end_of_its_own(cluster: Cluster) -> None:
    job = cluster.submit_text("command: sleep 600")
    begun = time.monotonic()
    with pytest.raises(WaitTimedOut, match=f"job {job} is still"):
        cluster.client.wait(job, timeout_s=0.5)
    assert 0.5 <= time.monotonic() - begun < 60

    async def waits() -> None:
        async with AsyncClient(cluster.address, state=cluster.state) as client:
            with pytest.raises(TimeoutError):
                await client.wait(job, timeout_s=0.3)
            await client.cancel(job, grace_s=1)
            assert (await client.wait(job, timeout_s=30)).state is JobState.CANCELLED

    asyncio.run(waits())


async def test_the_async_client_has_the_same_verbs(cluster: Cluster) -> None:
    async with AsyncClient(cluster.address, state=cluster.state) as client:
        first, second = await client.submit_many([{"command": "echo one"}, {"command": "echo two"}])
        changes: list[Change] = [change async for change in client.watch(first)]
        assert changes[-1].job.is_over
        assert [change.entry.seq for change in changes] == sorted({change.entry.seq for change in changes})
        chunks: list[LogChunk] = [chunk async for chunk in client.logs(second, follow=True)]
        assert b"".join(chunk.data for chunk in chunks) == b"two\n"
        assert (await client.job(second)).state is JobState.SUCCEEDED
        assert (await client.jobs(limit=1))[0].job == second
        assert (await client.timeline(first)).entries == tuple(change.entry for change in changes)
        assert (await client.why(first)).job.job == first
        assert {node.name for node in (await client.nodes()).nodes} == {"local-0", "local-1"}
    public = {name for name in dir(Client) if not name.startswith("_")}
    assert public == {name for name in dir(AsyncClient) if not name.startswith("_")}


def test_a_submit_whose_reply_was_lost_makes_one_job(cluster: Cluster) -> None:
    host, _, port = cluster.address.rpartition(":")
    with Proxy((host, int(port))) as proxy:
        client = Client(f"127.0.0.1:{proxy.port}", state=cluster.state, patience_s=30)
        client.nodes()  # connected
        proxy.stall(up=False, down=True)  # the request arrives, its reply does not
        made: list[int] = []
        submitting = threading.Thread(
            target=lambda: made.append(client.submit({"command": "true", "name": "once"}))
        )
        submitting.start()
        wait_until("the scheduler has the job", lambda: cluster.client.jobs(name_contains="once"))
        proxy.cut()
        proxy.heal()
        submitting.join(60)
        client.close()
    assert made == [job.job for job in cluster.client.jobs(name_contains="once")]


def test_watch_and_logs_go_on_over_lost_connections(cluster: Cluster) -> None:
    host, _, port = cluster.address.rpartition(":")
    with Proxy((host, int(port))) as proxy:
        client = Client(f"127.0.0.1:{proxy.port}", state=cluster.state)
        job = client.submit({"command": COUNTING.removeprefix("command: ").strip()})
        data, cut_at = b"", 5
        for chunk in client.logs(job, follow=True):
            data += chunk.data
            if data.count(b"\n") >= cut_at:
                cut_at += 15
                proxy.cut()
        seen = []
        for change in client.watch(job):
            seen.append(change.entry)
            proxy.cut()
        client.close()
        assert proxy.accepted > 5
    assert data == b"".join(b"line %d\n" % i for i in range(60))
    assert tuple(seen) == cluster.client.timeline(job).entries


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_follower_survives_the_schedulers_restart(tmp_path: Path, how: str) -> None:
    with Cluster(tmp_path, agents=1, agent_args=["--cold"]) as cluster:
        job = cluster.submit_text(COUNTING)
        away: list[str] = []
        client = Client(
            cluster.address, state=cluster.state, on_away=lambda error, wait_s: away.append(error.code)
        )
        data = b""
        for chunk in client.logs(job, follow=True):
            if not data:
                cluster.kill_scheduler() if how == "kill" else cluster.stop_scheduler()
                cluster.start_scheduler()
            data += chunk.data
        assert data == b"".join(b"line %d\n" % i for i in range(60))
        assert set(away) == {"unavailable"}
        assert client.wait(job, timeout_s=30).state is JobState.SUCCEEDED
        assert client.job(job).attempt == 1
        client.close()


def test_all_of_it_under_tls(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=1, scheduler_args=["--tls"], agent_args=["--cold"]) as cluster:
        job = cluster.submit_text("command: echo encrypted")
        with Client(state=cluster.state) as client:  # finds the certificate in the state folder
            assert b"".join(chunk.data for chunk in client.logs(job, follow=True)) == b"encrypted\n"
        with pytest.raises(Unavailable):
            Client(cluster.address, state=cluster.state, patience_s=0.2).jobs()  # speaks plainly
