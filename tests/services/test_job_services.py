"""Jobs, nodes and agents over the real wire, on a real store; also across a restart of the scheduler."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import pytest
from paceline.proto.failures import translated
from paceline.proto.generated import agent_pb2, common_pb2, jobs_pb2, nodes_pb2
from paceline.scheduler.core.settings import Settings
from paceline.scheduler.services.agents import redial_s
from paceline.spec.errors import Conflict, InvalidRequest, LimitExceeded, NotFound, PacelineError, Unavailable
from support.wire import Agent, Wire, in_mig_mode, mig_slice, until, wire


def document(**spec: object) -> jobs_pb2.JobDocument:
    text = json.dumps({"type": "command", "command": "true", "code": "/tmp", **spec})
    return jobs_pb2.JobDocument(document=text, source="job.yaml")


async def names(wired: Wire, **request: Any) -> list[int]:
    reply = await wired.jobs.List(jobs_pb2.ListJobsRequest(**request))
    return [job.job for job in reply.jobs]


async def test_a_repeated_submit_makes_no_second_job(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        request = jobs_pb2.SubmitRequest(key="once", user="ada", jobs=[document(), document()])
        replies = await asyncio.gather(*(wired.jobs.Submit(request) for _ in range(10)))
        assert {tuple(reply.jobs) for reply in replies} == {(1, 2)}
        assert sum(not reply.repeated_call for reply in replies) == 1
    async with wire(tmp_path) as wired:
        again = await wired.jobs.Submit(request)
        assert list(again.jobs) == [1, 2] and again.repeated_call
        assert await wired.submit() == [3]


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"key": ""}, "idempotency key"),
        ({"key": "with space"}, "idempotency key"),
        ({"key": "k" * 65}, "idempotency key"),
        ({"jobs": []}, "0 jobs"),
        ({"jobs": [document()] * 1001}, "1001 jobs"),
        ({"user": "a\nb"}, "user"),
        ({"user": "a" * 201}, "user"),
        ({"jobs": [jobs_pb2.JobDocument(document="{", source="x.yaml")]}, r"x\.yaml"),
        ({"jobs": [jobs_pb2.JobDocument(document="[]", source="x.yaml")]}, r"x\.yaml"),
        ({"jobs": [document(), document(comand="x")]}, "comand"),
        ({"jobs": [document(command="${{inputs.no}}")]}, "no"),
        ({"jobs": [document(code="relative/path")]}, "code"),
        ({"jobs": [document(priority=10**30)]}, "priority"),
    ],
)
async def test_a_submit_that_makes_no_sense_is_refused_whole(tmp_path: Path, bad: Any, word: str) -> None:
    async with wire(tmp_path) as wired:
        request = {"key": "k", "user": "ada", "jobs": [document()], **bad}
        with pytest.raises(InvalidRequest, match=word), translated():
            await wired.jobs.Submit(jobs_pb2.SubmitRequest(**request))
        assert await names(wired) == []


async def test_a_job_runs_and_is_told_from_submit_to_end(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        [job] = await wired.submit(
            name="train",
            command="python x.py ${{inputs.lr}} ${{outputs.model}}",
            inputs={"lr": 0.5},
            outputs={"model": {}},
            environment_variables={"OUT": "${{outputs.model}}"},
            limits={"timeout": 60, "log_size": "1Mi"},
            checkpoint={"keep_last": 3},
            grace_s=7,
        )
        start = await agent.wait_start(job)
        model = str(tmp_path / "storage" / str(job) / "outputs" / "1" / "model")
        assert start.command == f"python x.py 0.5 {model}"
        assert dict(start.environment) == {"OUT": model}
        assert (start.cwd, start.job_name, start.grace_s, start.timeout_s) == ("/tmp", "train", 7, 60)
        assert (start.keep_last, start.log_bytes_max) == (3, 1 << 20)
        assert list(start.output_folders) == [model]
        assert start.job_folder == str(tmp_path / "storage" / str(job))
        await agent.run(job)
        await agent.report(
            start.task, metrics=agent_pb2.MetricsReported(rank=0, step=5, values={"loss": 0.25})
        )
        failed = agent_pb2.CheckpointFailed(step=4, why="rank 0: No space left on device")
        await agent.report(start.task, checkpoint_failed=failed)
        published = agent_pb2.CheckpointPublished(step=5, path="/c/5", manifest_hash="h", size_bytes=9)
        await agent.report(start.task, checkpoint=published)
        there = agent_pb2.CheckpointUploaded(step=5, path="/c/5", url="s3://b/5", seconds=2)
        await agent.report(start.task, uploaded=there)
        bad = agent_pb2.CheckpointDamaged(step=5, path="/c/5", copy="storage", why="x: hash differs")
        await agent.report(start.task, damaged=bad)
        await agent.end(start.task)
        view = await wired.wait_state(job, "SUCCEEDED")
        assert view.outputs["model"] == model and view.metrics["loss"] == 0.25 and view.step == 5
        [kept] = view.checkpoints
        assert (kept.path, kept.url, dict(kept.damaged)) == (
            "/c/5",
            "s3://b/5",
            {"storage": "x: hash differs"},
        )
        assert kept.good
        assert view.tasks[0].node == "n1-name" and list(view.tasks[0].exit_codes) == [0]
        assert json.loads(view.document)["command"].startswith("python")
        timeline = await wired.jobs.Timeline(jobs_pb2.GetJobRequest(job=job))
        kinds = [entry.kind for entry in timeline.entries]
        assert kinds[0] == "JobSubmitted" and kinds[-1] == "AttemptEnded"
        assert {"CheckpointAccepted", "CheckpointFailed"} <= set(kinds)
        assert all(entry.text and json.loads(entry.body) for entry in timeline.entries)
        parts = {f.name: getattr(timeline.ledger, f.name) for f in timeline.ledger.DESCRIPTOR.fields}
        assert parts.pop("wall_us") == sum(parts.values()) == view.finished_us - view.submitted_us


async def test_of_more_metrics_than_a_job_keeps_those_told_first_stay(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        [job] = await wired.submit(name="train", command="python x.py")
        start = await agent.wait_start(job)
        await agent.run(job)
        names = ["speed", "loss", *(f"layer{n}" for n in range(100))]
        values = dict.fromkeys(names, 1.0)
        await agent.report(start.task, metrics=agent_pb2.MetricsReported(values=values, order=names))
        await agent.end(start.task)
        view = await wired.wait_state(job, "SUCCEEDED")
        assert sorted(view.metrics) == sorted(names[: len(view.metrics)])
        assert {"speed", "loss"} < set(view.metrics) < set(names)


async def test_listing_filters_pages_and_says_why_jobs_wait(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        await wired.submit(5, name="alpha")
        await wired.submit(3, name="beta", resources={"instance_count": 2})
        assert await names(wired) == [8, 7, 6, 5, 4, 3, 2, 1]
        assert await names(wired, name_contains="ALPH", page=common_pb2.Page(limit=2)) == [5, 4]
        assert await names(wired, user="nobody") == []
        assert await names(wired, states=["QUEUED"], page=common_pb2.Page(limit=1)) == [8]
        seen: list[int] = []
        cursor = ""
        while True:
            page = common_pb2.Page(limit=3, cursor=cursor)
            reply = await wired.jobs.List(jobs_pb2.ListJobsRequest(page=page))
            seen += [job.job for job in reply.jobs]
            assert all(job.reason.text and not job.document for job in reply.jobs)
            cursor = reply.next_cursor
            if not cursor:
                break
        assert seen == [8, 7, 6, 5, 4, 3, 2, 1]
        pages = [common_pb2.Page(limit=1001), common_pb2.Page(limit=-1), common_pb2.Page(cursor="x")]
        for bad in (*({"page": page} for page in pages), {"states": ["NO"]}):
            with pytest.raises(InvalidRequest), translated():
                await names(wired, **bad)


async def test_why_tells_never_from_not_now(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent(cpus=4):
        [never] = await wired.submit(resources={"cpus": 1000})
        running, waiting = await wired.submit(2, resources={"cpus": 3})
        said = await wired.jobs.Why(jobs_pb2.GetJobRequest(job=never))
        assert said.never and "1000" in said.reasons[0].text
        said = await wired.jobs.Why(jobs_pb2.GetJobRequest(job=waiting))
        assert not said.never and said.reasons and said.reasons[0].text
        assert (await wired.get(running)).state == "STARTING"


async def test_cancel_before_and_after_the_start(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        [waiting] = await wired.submit()
        view = await wired.jobs.Cancel(jobs_pb2.CancelRequest(job=waiting))
        assert view.state == "CANCELLED"
        again = await wired.jobs.Cancel(jobs_pb2.CancelRequest(job=waiting))
        assert again.state == "CANCELLED"
        async with wired.agent() as agent:
            [job] = await wired.submit()
            task = await agent.run(job)
            view = await wired.jobs.Cancel(jobs_pb2.CancelRequest(job=job, grace_s=2))
            assert view.cancel_requested and view.state == "RUNNING"
            await until("a stop", lambda: agent.stops or None)
            assert (agent.stops[0].task.job, agent.stops[0].grace_s) == (job, 2)
            await agent.end(task, codes=(-15,))
            assert (await wired.wait_state(job, "CANCELLED")).exit_code != 0
            [done] = await wired.submit()
            await agent.end(await agent.run(done))
            with pytest.raises(Conflict, match="is over"), translated():
                await wired.jobs.Cancel(jobs_pb2.CancelRequest(job=done))
        for bad, error in ((999, NotFound), (0, InvalidRequest), (-5, InvalidRequest)):
            with pytest.raises(error), translated():
                await wired.jobs.Cancel(jobs_pb2.CancelRequest(job=bad))


async def test_watch_gives_history_then_news_then_ends(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        [job] = await wired.submit()
        await agent.wait_start(job)
        call = wired.jobs.Watch(jobs_pb2.WatchRequest(job=job))
        first = await asyncio.wait_for(call.read(), 20)
        assert first.entry.kind == "JobSubmitted"
        await agent.end(await agent.run(job))
        kinds, last = [first.entry.kind], first
        while (reply := await asyncio.wait_for(call.read(), 20)) is not grpc.aio.EOF:
            assert reply.entry.seq > last.entry.seq
            kinds.append(reply.entry.kind)
            last = reply
        assert kinds == [
            "JobSubmitted",
            "AttemptStarted",
            "TaskStarted",
            "RankExited",
            "TaskEnded",
            "AttemptEnded",
        ]
        assert last.job.state == "SUCCEEDED"
        later = wired.jobs.Watch(jobs_pb2.WatchRequest(job=job, after_seq=last.entry.seq - 1))
        assert [reply.entry.seq async for reply in later] == [last.entry.seq]


async def test_a_restart_keeps_jobs_agents_and_reports(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        [job, waiting] = await wired.submit(2, resources={"cpus": 3})
        task = await agent.run(job)
        await until("the start is told", lambda: agent.acks.get((job, 1, 0)) == 1 or None)
        cluster = wired.made.cluster_id
        seqs = agent._seqs
    async with wire(tmp_path) as wired:
        assert wired.made.cluster_id == cluster
        assert (await wired.get(job)).state == "RUNNING"
        agent = Agent(wired, "n1")
        agent._seqs = seqs
        await agent.connect(incarnation="i2", tasks=[task])
        assert [(p.task.job, p.journal_seq) for p in agent.welcome.positions] == [(job, 1)]
        await agent.end(task)
        await wired.wait_state(job, "SUCCEEDED")
        await agent.end(await agent.run(waiting))
        await wired.wait_state(waiting, "SUCCEEDED")
        await agent.close()


async def test_heartbeats_come_back_and_renew(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        assert agent.welcome.heartbeat_s == 1 and agent.welcome.lease_exclusive_s == 20
        assert agent.welcome.redial_s == redial_s(1) == 0.1
        for n in range(1, 6):
            await agent.beat(n)
        await until("five replies", lambda: agent.beats == [1, 2, 3, 4, 5] or None)


def test_the_more_nodes_the_further_apart_they_dial() -> None:
    assert [redial_s(nodes) for nodes in (1, 200, 1_000, 10_000)] == [0.1, 0.1, 0.5, 5.0]


async def test_a_newer_stream_of_a_node_takes_the_older_ones_place(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as old:
        new = Agent(wired, "n1")
        await new.connect(incarnation="i2")
        await until("the old one ends", old.is_over)
        [job] = await wired.submit()
        await new.end(await new.run(job))
        assert job not in old.starts
        await new.close()


async def test_nodes_show_inventory_samples_free_and_contact(tmp_path: Path) -> None:
    gpus = [
        nodes_pb2.Gpu(index=0, uuid="u0", name="NVIDIA H100", health="ok", memory_total_bytes=80),
        nodes_pb2.Gpu(index=1, uuid="u1", name="NVIDIA H100", health="XID 79: fallen off the bus"),
        nodes_pb2.Gpu(index=2, uuid="u2", name="NVIDIA H100", health="ok", mig_enabled=True),
        nodes_pb2.Gpu(index=3, uuid="u3", health="XID 48", state="quarantined", since_us=7, quarantines=2),
        nodes_pb2.Gpu(index=4, uuid="u4", health="XID 74", state="drained", needs="a reset"),
    ]
    async with wire(tmp_path) as wired:
        async with wired.agent(cpus=8, gpus=gpus, labels={"rack": "r1"}) as agent:
            [job] = await wired.submit(resources={"gpus": 1, "cpus": 2})
            start = await agent.wait_start(job)
            assert list(start.gpu_indices) == [0]
            await agent.beat(1, gpus=[agent_pb2.GpuSample(index=0, utilization_percent=77)])
            await until("the beat", lambda: agent.beats or None)
            reply = await wired.nodes.List(nodes_pb2.ListNodesRequest())
            [node] = reply.nodes
            assert (node.node_id, node.contact, node.inventory.name) == ("n1", "connected", "n1-name")
            assert node.inventory.labels["rack"] == "r1"
            assert [g.utilization_percent for g in node.inventory.gpus] == [77, 0, 0, 0, 0]
            assert node.inventory.gpus[1].health.startswith("XID 79")
            told = [(g.state, g.needs, g.since_us, g.quarantines) for g in node.inventory.gpus[3:]]
            assert told == [("quarantined", "", 7, 2), ("drained", "a reset", 0, 0)]
            assert (node.free.cpu_milli, node.free.gpus) == (6000, 0)
            assert [(t.job, t.attempt, t.task) for t in node.tasks] == [(job, 1, 0)]
            assert not node.HasField("reason") and not reply.cluster_suspected

        async def unknown() -> nodes_pb2.NodeView | None:
            [node] = (await wired.nodes.List(nodes_pb2.ListNodesRequest())).nodes
            return node if node.contact != "connected" else None

        node = await until("the lost contact is seen", unknown)
        assert node.HasField("reason") and node.reason.text


async def test_labels_taints_and_links_of_gpus_come_to_placement(tmp_path: Path) -> None:
    def gpu(index: int, numa: int, *peers: int) -> nodes_pb2.Gpu:
        links = [nodes_pb2.GpuLink(peer_index=peer, kind="nvlink", width=4) for peer in peers]
        return nodes_pb2.Gpu(index=index, name="NVIDIA A40", state="ok", numa_node=numa, links=links)

    gpus = [gpu(0, 0), gpu(1, 0, 2), gpu(2, 0, 1), gpu(3, 1)]
    async with (
        wire(tmp_path) as wired,
        wired.agent("n1", gpus=gpus, labels={"rack": "r1"}, taints={"spot": ""}) as agent,
        wired.agent("n2", labels={"rack": "r2"}) as other,
    ):
        tolerant = {"tolerate": ["spot"], "labels": {"rack": ["r1", "r9"]}}
        [job] = await wired.submit(resources={"gpus": 2}, placement=tolerant)
        assert list((await agent.wait_start(job)).gpu_indices) == [1, 2]
        [gang] = await wired.submit(resources={"instance_count": 2}, topology={"within": "rack"})
        await other.wait_start(gang)
        assert gang not in agent.starts
        [never] = await wired.submit(placement={"labels": {"rack": "r3"}})
        reply = await wired.jobs.Why(jobs_pb2.GetJobRequest(job=never))
        assert "no node has rack=r3; 1 has rack=r1, 1 has rack=r2" in reply.reasons[0].text


async def test_slices_and_the_memory_of_gpus_come_to_placement(tmp_path: Path) -> None:
    whole = nodes_pb2.Gpu(index=0, name="NVIDIA A100-SXM4-40GB", state="ok", memory_total_bytes=40 << 30)
    divided = in_mig_mode(mig_slice(9, "1g.5gb", 5), mig_slice(2, "3g.20gb", 20))
    async with wire(tmp_path) as wired, wired.agent("n1", gpus=[whole, divided]) as agent:
        asked = {"count": 1, "model": "MIG", "memory": "10Gi"}
        [large] = await wired.submit(resources={"gpus": asked})
        assert list((await agent.wait_start(large)).gpu_indices) == [20200]
        [small] = await wired.submit(resources={"gpus": {"count": 1, "model": "1g.5gb"}})
        assert list((await agent.wait_start(small)).gpu_indices) == [20900]
        [any_gpu] = await wired.submit(resources={"gpus": {"count": 1, "memory": "40Gi"}})
        assert list((await agent.wait_start(any_gpu)).gpu_indices) == [0]
        view = await wired.get(large)
        assert (list(view.gpu_models), view.gpu_memory_bytes) == (["MIG"], 10 << 30)
        [node] = (await wired.nodes.List(nodes_pb2.ListNodesRequest())).nodes
        assert [one.uuid for one in node.inventory.gpus[1].slices] == ["MIG-9", "MIG-2"]
        assert node.free.gpus == 0


@pytest.mark.parametrize(
    ("hello", "error"),
    [
        ({"node_id": ""}, InvalidRequest),
        ({"node_id": "../../etc"}, InvalidRequest),
        ({"node_id": "n" * 101}, InvalidRequest),
        ({"inventory": nodes_pb2.Inventory(rendezvous_ports=[0])}, InvalidRequest),
        ({"inventory": nodes_pb2.Inventory(labels={"x": "y" * 300_000})}, LimitExceeded),
        ({"inventory": nodes_pb2.Inventory(labels={"a b": "c"})}, InvalidRequest),
        ({"inventory": nodes_pb2.Inventory(labels={f"k{at}": "v" for at in range(65)})}, InvalidRequest),
        ({"inventory": nodes_pb2.Inventory(taints={"spot": "\x1b[31m"})}, InvalidRequest),
        ({"inventory": nodes_pb2.Inventory(capacity=common_pb2.Resources(cpu_milli=-1))}, InvalidRequest),
        ({"tasks": [common_pb2.TaskKey()]}, InvalidRequest),
        ({"inventory": nodes_pb2.Inventory(gpus=[nodes_pb2.Gpu(state="fine")])}, InvalidRequest),
        ({"inventory": nodes_pb2.Inventory(gpus=[nodes_pb2.Gpu(index=10_000)])}, InvalidRequest),
        ({"inventory": nodes_pb2.Inventory(gpus=[in_mig_mode(mig_slice(100, "1g.5gb", 5))])}, InvalidRequest),
        (
            {"inventory": nodes_pb2.Inventory(gpus=[in_mig_mode(nodes_pb2.GpuSlice(name="A100"))])},
            InvalidRequest,
        ),
    ],
)
async def test_a_hello_that_makes_no_sense_is_refused(
    tmp_path: Path, hello: Any, error: type[PacelineError]
) -> None:
    async with wire(tmp_path) as wired:
        message = agent_pb2.Hello(**{"node_id": "n1", "incarnation": "i", **hello})
        call = wired.sessions.Session(iter([agent_pb2.FromAgent(hello=message)]))
        with pytest.raises(error), translated():
            async for _ in call:
                pass
        assert not (await wired.nodes.List(nodes_pb2.ListNodesRequest())).nodes


async def test_a_stream_that_begins_with_something_else_is_refused(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        call = wired.sessions.Session()
        await call.write(agent_pb2.FromAgent(heartbeat=agent_pb2.Heartbeat()))
        assert await asyncio.wait_for(call.code(), 20) is grpc.StatusCode.INVALID_ARGUMENT


async def test_reports_beyond_their_bound_end_the_stream(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        entry = agent_pb2.JournalEntry(
            task=common_pb2.TaskKey(job=1, attempt=1), seq=1, started=agent_pb2.TaskStarted()
        )
        await agent.say(reports=agent_pb2.Reports(entries=[entry] * 1001))
        await until("the stream ends", agent.is_over)
        assert agent.error is not None and agent.error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_stopping_tells_everyone_and_takes_the_record_away(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        agent = Agent(wired, "n1")
        await agent.connect()
        [job] = await wired.submit()
        await agent.run(job)
        watch = wired.jobs.Watch(jobs_pb2.WatchRequest(job=job, after_seq=10**9))
        waiting = asyncio.create_task(watch.read())
        said = json.loads((tmp_path / "scheduler.json").read_text())
        assert said["address"] == wired.made.address and said["cluster_id"] == wired.made.cluster_id
        wired.close = agent.close  # the scheduler stops while the client's streams are open
    assert not (tmp_path / "scheduler.json").exists()
    with pytest.raises(Unavailable, match="stopping"), translated():
        await waiting


async def test_a_stored_document_that_cannot_be_read_fails_its_job_alone(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        bad, good = await wired.submit(2)
    with sqlite3.connect(tmp_path / "paceline.db") as connection:
        future = '{"type": "from-the-future"}'
        connection.execute("UPDATE documents SET document = ? WHERE job = ?", (future, bad))
    connection.close()
    async with wire(tmp_path) as wired, wired.agent() as agent:
        view = await wired.wait_state(bad, "FAILED")
        assert view.reason.code == "unreadable-document" and "from-the-future" in view.document
        await agent.end(await agent.run(good))
        await wired.wait_state(good, "SUCCEEDED")
        assert bad not in agent.starts and agent.error is None


async def test_an_operator_says_that_silent_nodes_are_gone(tmp_path: Path) -> None:
    settings = Settings(heartbeat_us=500_000, return_heartbeats=1)
    async with wire(tmp_path, settings=settings) as wired:
        trust = await wired.nodes.Trust(nodes_pb2.TrustRequest(by="ann"))
        assert (trust.was_suspected, trust.silent) == (False, 0)
        async with wired.agent(), wired.agent("n2"):
            pass

        async def suspected() -> bool | None:
            reply = await wired.nodes.List(nodes_pb2.ListNodesRequest())
            return reply.cluster_suspected or None

        await until("both are silent", suspected)
        trust = await wired.nodes.Trust(nodes_pb2.TrustRequest(by="ann"))
        assert (trust.was_suspected, trust.silent) == (True, 2)

        async def lost() -> bool | None:
            nodes = (await wired.nodes.List(nodes_pb2.ListNodesRequest())).nodes
            return all(node.contact == "lost" for node in nodes) or None

        await until("both are given up", lost)
        with pytest.raises(InvalidRequest), translated():
            await wired.nodes.Trust(nodes_pb2.TrustRequest(by="\x1b[2J"))
