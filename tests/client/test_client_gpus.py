"""GPUs as the client has them: off the wire, and in the note of `pace nodes`."""

from dataclasses import replace

import pytest
from paceline.client import codecs, views
from paceline.client.cli.nodes import models, note
from paceline.client.cli.output import now_us
from paceline.proto.generated import nodes_pb2
from paceline.spec.errors import InvalidRequest
from paceline.spec.gpu_health import GpuState

XID = "XID 79: fallen off the bus; needs a reboot"


def node_with(*gpus: nodes_pb2.Gpu) -> views.Node:
    inventory = nodes_pb2.Inventory(name="n1", gpus=gpus)
    return codecs.to_node(nodes_pb2.NodeView(node_id="n1", contact="connected", inventory=inventory))


def test_the_note_says_which_gpus_are_out_of_service_since_when_and_why() -> None:
    since_us = now_us() - 720_000_000
    node = node_with(
        nodes_pb2.Gpu(index=0, health="ok", state="ok"),
        nodes_pb2.Gpu(index=1, health=XID, state="quarantined", since_us=since_us, quarantines=3),
        nodes_pb2.Gpu(index=2, health="ok", state="ok", needs="a reset: rows of its memory"),
        nodes_pb2.Gpu(index=3, health="XID 74: NVLink error", state="drained", quarantines=1),
    )
    told = note(node).split("; GPU ")
    assert told[0] == f"GPU 1 quarantined 12m 00s ago: {XID} (3 times so far)"
    assert told[1:] == ["2 needs a reset: rows of its memory", "3 drained: XID 74: NVLink error"]
    assert views.to_json(node)["gpus"][1]["state"] == "quarantined"
    assert note(replace(node, reason=views.Reason("x", "the weightiest", "", {}))) == "the weightiest"


def test_an_agent_that_only_says_what_is_wrong_is_understood() -> None:
    node = node_with(nodes_pb2.Gpu(index=0, health="lost"), nodes_pb2.Gpu(index=1, health="ok"))
    assert [gpu.state for gpu in node.gpus] == [GpuState.DRAINED, GpuState.OK]
    assert note(node) == "GPU 0 drained: lost"


def test_a_gpu_says_its_numa_node_where_that_is_known() -> None:
    node = node_with(nodes_pb2.Gpu(index=0, numa_node=0), nodes_pb2.Gpu(index=1))
    assert [gpu.numa_node for gpu in node.gpus] == [0, None]


def test_the_table_says_how_many_of_what_with_how_much_memory() -> None:
    h100 = {"name": "NVIDIA H100 80GB HBM3", "memory_total_bytes": 80 << 30}
    slices = [
        nodes_pb2.GpuSlice(gpu_instance=at, name="NVIDIA H100 MIG 1g.10gb", memory_total_bytes=10 << 30)
        for at in (7, 8)
    ]
    node = node_with(
        nodes_pb2.Gpu(index=0, **h100),
        nodes_pb2.Gpu(index=1, **h100),
        nodes_pb2.Gpu(index=2, mig_enabled=True, slices=slices, **h100),
        nodes_pb2.Gpu(index=3, name="NVIDIA GPU"),
    )
    assert models(node) == (
        "2 x NVIDIA H100 80GB HBM3 with 80.0 GiB, 2 x NVIDIA H100 MIG 1g.10gb with 10.0 GiB, 1 x NVIDIA GPU"
    )
    assert [one.index for one in node.gpus[2].slices] == [30700, 30800]
    assert views.to_json(node)["gpus"][2]["slices"][0]["memory_total_bytes"] == 10 << 30


def test_a_state_of_another_version_says_so() -> None:
    with pytest.raises(InvalidRequest, match="GpuState 'melted'"):
        node_with(nodes_pb2.Gpu(index=0, state="melted"))
