"""Which devices of a node come to placement, and what is known of each."""

from paceline.proto.generated import nodes_pb2
from paceline.scheduler.core.node import NodeGpu, SickGpu
from paceline.scheduler.services.inventories import inventory_of
from paceline.spec.gpu_health import GpuState
from paceline.spec.ids import Micros
from support.wire import in_mig_mode, mig_slice

A100 = "NVIDIA A100-SXM4-40GB"


def test_a_gpu_in_mig_mode_is_its_slices_near_the_same_memory_and_without_nvlink() -> None:
    def linked(peer: int) -> list[nodes_pb2.GpuLink]:
        return [nodes_pb2.GpuLink(peer_index=peer, kind="nvlink", width=12)]

    divided = in_mig_mode(
        mig_slice(9, "1g.5gb", 5), mig_slice(2, "3g.20gb", 20), numa_node=1, links=linked(0)
    )
    others = [
        nodes_pb2.Gpu(index=index, name=A100, memory_total_bytes=40 << 30, links=linked(2 - index))
        for index in (0, 2)
    ]
    assert inventory_of(nodes_pb2.Inventory(gpus=[others[0], divided, others[1]])).gpus == (
        NodeGpu(0, A100, -1, 0, 40 << 30),
        NodeGpu(2, A100, -1, 0, 40 << 30),
        NodeGpu(20200, f"{A100} MIG 3g.20gb", 1, -1, 20 << 30),
        NodeGpu(20900, f"{A100} MIG 1g.5gb", 1, -1, 5 << 30),
    )


def test_slices_are_as_healthy_as_their_gpu() -> None:
    bad = in_mig_mode(mig_slice(9, "1g.5gb", 5), state="quarantined", health="XID 79", since_us=7)
    found = inventory_of(nodes_pb2.Inventory(gpus=[bad]))
    model = f"{A100} MIG 1g.5gb"
    assert found.gpus == ()
    assert found.sick == (SickGpu(20900, model, GpuState.QUARANTINED, "XID 79", Micros(7), 5 << 30),)


def test_an_agent_that_knows_no_slices_offers_none() -> None:
    old = nodes_pb2.Gpu(index=1, name=A100, mig_enabled=True, mig_devices=["MIG-a", "MIG-b"])
    found = inventory_of(nodes_pb2.Inventory(gpus=[old]))
    assert (found.gpus, found.sick) == ((), ())
