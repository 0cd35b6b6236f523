"""Nodes out of service over the real wire, on a real store; also across a restart of the scheduler."""

from pathlib import Path
from typing import Any

import pytest
from paceline.proto.failures import translated
from paceline.proto.generated import nodes_pb2
from paceline.spec.errors import InvalidRequest, NotFound
from support.wire import Wire, until, wire


async def cordon(wired: Wire, *nodes: str, **more: Any) -> nodes_pb2.CordonReply:
    request = {"key": "k", "why": "new disks", "by": "ann", **more}
    reply: nodes_pb2.CordonReply = await wired.nodes.Cordon(nodes_pb2.CordonRequest(nodes=nodes, **request))
    return reply


async def test_a_drained_node_is_left_and_stays_out_of_service_over_restarts(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        [job] = await wired.submit()
        key = await agent.run(job)
        for _ in range(2):  # the same call again
            reply = await cordon(wired, "n1-name", drain=True, deadline_s=7)
            assert list(reply.jobs) == [job]
        [node] = reply.nodes
        told = node.cordon
        assert (told.by, told.why, told.drains, told.tasks_left) == ("ann", "new disks", True, 1)
        assert node.reason.code == "cordoned" and node.reason.text.startswith("draining, 1 task left (for ")
        await until("the notice is there", lambda: agent.stops or None)
        assert [stop.grace_s for stop in agent.stops] == [7]
        await agent.end(key, codes=(-15,))
        await wired.wait_state(job, "QUEUED")
        why = (await wired.get(job)).reason
        assert why.code == "cordoned" and "1 of 1 nodes is cordoned (n1-name: new disks, by ann)" in why.text
    async with wire(tmp_path) as wired, wired.agent() as agent:
        [node] = (await wired.nodes.List(nodes_pb2.ListNodesRequest())).nodes
        assert node.cordon == nodes_pb2.CordonView(
            by="ann", why="new disks", since_us=told.since_us, drains=True
        )
        assert node.reason.text.startswith("drained (for ")
        again = await cordon(wired, "n1", drain=True)
        assert list(again.jobs) == [job], "the key is kept"
        back = await wired.nodes.Uncordon(nodes_pb2.UncordonRequest(key="u", nodes=["n1"], by="ann"))
        assert not back.nodes[0].HasField("cordon") and not back.jobs
        await agent.end(await agent.run(job))
        await wired.wait_state(job, "SUCCEEDED")


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"key": ""}, "idempotency key"),
        ({"by": "a\nb"}, "user"),
        ({"why": "a\x1b[2J"}, "why"),
        ({"why": "x" * 501}, "why"),
        ({"nodes": []}, "0 nodes"),
        ({"nodes": ["n"] * 1001}, "1001 nodes"),
        ({"nodes": [""]}, "name"),
        ({"nodes": ["x" * 201]}, "name"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
        ({"deadline_s": 86_401}, "deadline_s"),
    ],
)
async def test_what_makes_no_sense_is_refused(tmp_path: Path, bad: Any, word: str) -> None:
    async with wire(tmp_path) as wired:
        request = {"key": "k", "nodes": ["n1"], "drain": True, **bad}
        with pytest.raises(InvalidRequest, match=word), translated():
            await wired.nodes.Cordon(nodes_pb2.CordonRequest(**request))


async def test_one_unknown_name_refuses_all_and_the_nearest_is_named(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent():
        with pytest.raises(NotFound, match=r"no node n1-nam\b") as refused, translated():
            await cordon(wired, "n1", "n1-nam")
        assert refused.value.hint == "did you mean n1-name?"
        [node] = (await wired.nodes.List(nodes_pb2.ListNodesRequest())).nodes
        assert not node.HasField("cordon")
