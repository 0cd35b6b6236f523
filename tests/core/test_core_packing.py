"""Where jobs go on nodes with GPUs: shares first where shares are, whole nodes kept whole."""

from dataclasses import replace

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.node import GpuGroup, GpuKind, NodeGpu, NodeInventory, SickGpu, fresh_load
from paceline.scheduler.core.packing import best_share, fit_of, growth_of
from paceline.scheduler.core.workload import KINDS_MAX, SCALE, TASKS_MAX, Workload
from paceline.scheduler.records import job_from_row, job_row
from paceline.spec.gpu_health import GpuState
from paceline.spec.ids import NodeId
from paceline.spec.lifecycle import JobState
from paceline.spec.resources import Resources
from support.paddock import Paddock, inventory, shape

WHOLE = 1000 * SCALE
H100 = GpuKind("H100")


@pytest.fixture
def paddock() -> Paddock:
    return Paddock()


def gpus(paddock: Paddock, job: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(task.node, task.gpu_indices) for task in paddock.job(job).tasks]


def tells(paddock: Paddock, facts: NodeInventory) -> None:
    paddock.tell(s.InventoryChanged(NodeId("n1"), paddock.sessions["n1"], facts))


def learnt(*asks: tuple[float, int]) -> Workload:
    """Tasks with one cpu: so much GPU, so many of them."""
    workload = Workload()
    for amount, count in asks:
        workload.learn(shape(gpus=amount).demand, count)
    return workload


def test_jobs_with_one_gpu_fill_partly_used_nodes_first(paddock: Paddock) -> None:
    """Also when another node stands before them by name, and nobody has asked for more than one yet."""
    for name in ("n1", "n2", "n3"):
        paddock.node_joins(name, cpus=64, gpus=8)
    ones = paddock.submit(*[shape(gpus=1)] * 9)
    assert [node for job in ones for node in paddock.nodes_of(job)] == ["n1"] * 8 + ["n2"]
    for job in ones[:8]:
        paddock.starts(job)
        paddock.finishes(job)
    more = paddock.submit(*[shape(gpus=1)] * 7)
    assert {node for job in more for node in paddock.nodes_of(job)} == {"n2"}
    eights = paddock.submit(shape(gpus=8), shape(gpus=8))
    assert sorted(paddock.nodes_of(job)[0] for job in eights) == ["n1", "n3"]


def test_shares_fill_a_gpu_before_they_begin_another(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=2)
    halves = paddock.submit(*[shape(gpus=0.5)] * 3)
    assert [gpus(paddock, job) for job in halves] == [[("n1", (0,))], [("n1", (0,))], [("n1", (1,))]]
    [whole, small] = paddock.submit(shape(gpus=1), shape(gpus=0.4))
    assert paddock.state_of(whole) is JobState.QUEUED
    paddock.cancel(whole)
    assert gpus(paddock, small) == [("n1", (1,))]
    free = paddock.state.loads[NodeId("n1")].free
    assert (free.gpus, free.gpu_milli) == (0, 100)
    for job in (halves[0], halves[1]):
        paddock.starts(job)
        paddock.finishes(job)
    free = paddock.state.loads[NodeId("n1")].free
    assert (free.gpus, free.gpu_milli) == (1, 100)


def test_a_gang_may_have_several_shares_of_one_gpu(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=2)
    [gang] = paddock.submit(shape(4, gpus=0.4))
    assert sorted(gpus(paddock, gang)) == [("n1", (0,))] * 2 + [("n1", (1,))] * 2


def test_what_waits_for_a_share_says_what_is_left(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=1)
    [first, second] = paddock.submit(shape(gpus=0.7), shape(gpus=0.5, models=("H100",)))
    [reason] = paddock.why(second).reasons
    assert reason.text == (
        "needs 1 task with 0.5 of an H100, 1 cpu; 0 of 1 fit now; n1 has 0.3 of an H100 left at most"
        f" (job {first} holds 0.7 there)"
    )
    [third] = paddock.submit(shape(gpus=0.5, models=("T4",)))
    assert "no node has a GPU like T4; they have NVIDIA H100 80GB HBM3" in paddock.why(third).reasons[0].text


def test_all_that_share_a_bad_gpu_start_elsewhere(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=4)
    halves = paddock.submit(*[shape(gpus=0.5)] * 2)
    for job in halves:
        paddock.starts(job)
    well = paddock.inventories["n1"]
    bad = SickGpu(0, "NVIDIA H100 80GB HBM3", GpuState.QUARANTINED, "XID 79: fallen off the bus")
    tells(paddock, replace(well, gpus=well.gpus[1:], sick=(bad,)))
    for job in halves:
        found = paddock.job(job)
        assert (found.attempt, found.course.retries_used) == (2, 0)
        assert gpus(paddock, job) == [("n1", (1,))]
    tells(paddock, well)
    assert sorted(paddock.state.loads[NodeId("n1")].free_gpus) == [0, 2, 3]


def test_shares_outlive_a_restart_of_the_scheduler(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=1)
    paddock.submit(*[shape(gpus=0.3)] * 2)
    paddock.scheduler_restarts()
    paddock.node_joins("n1", *paddock.state.loads[NodeId("n1")].tasks)
    assert paddock.state.loads[NodeId("n1")].shared_gpus == {0: 400}
    assert paddock.state.workload.counts


def test_a_row_from_before_there_were_shares_is_read(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(gpus=1))
    row = job_row(paddock.job(job))
    assert '"gpu_milli":0' in row.demand
    old = row._replace(demand=row.demand.replace(',"gpu_milli":0', ""))
    assert job_from_row(old) == paddock.job(job)


def test_growth_is_what_typical_tasks_lose() -> None:
    """Half of the tasks want 0.5, half a whole GPU; cpus are no matter."""
    workload = learnt((0.5, 1), (1, 1))
    half, whole = shape(gpus=0.5).demand, shape(gpus=1).demand
    fresh, begun = (GpuGroup(H100, 1, ()),), (GpuGroup(H100, 0, (500,)),)
    assert growth_of(workload, fresh, 8000, half) == WHOLE // 4, "the other half is lost to whole ones"
    assert growth_of(workload, begun, 8000, half) == -WHOLE // 4, "and this was lost before"
    assert growth_of(workload, fresh, 8000, whole) == 0


def test_a_share_goes_where_the_least_is_lost() -> None:
    workload = learnt((0.3, 9), (0.7, 1))
    groups = (GpuGroup(H100, 1, (300, 700)),)
    assert best_share(workload, groups, 8000, shape(gpus=0.3).demand)[:2] == (H100, 300)
    assert best_share(workload, groups, 8000, shape(gpus=0.7).demand)[:2] == (H100, 700)


def test_cpu_only_jobs_go_where_no_gpu_idles() -> None:
    workload = learnt((1, 10))
    facts = NodeInventory("n", "n", Resources(8000, 0, 1), (NodeGpu(0, "H100"),))
    plain = NodeInventory("m", "m", Resources(8000, 0, 0))
    demand = shape(cpus=4).demand
    assert fit_of(workload, plain, fresh_load(plain), demand) < fit_of(
        workload, facts, fresh_load(facts), demand
    )


def test_a_model_that_nobody_wants_is_used_by_those_that_take_any() -> None:
    workload = Workload()
    workload.learn(shape(gpus=1, models=("H100",)).demand, 9)
    workload.learn(shape(gpus=1).demand)
    costly, plain = inventory("a", gpus=1, model="H100"), inventory("b", gpus=1, model="T4")
    demand = shape(gpus=1).demand
    loads = [fresh_load(costly), fresh_load(plain)]
    assert fit_of(workload, plain, loads[1], demand) < fit_of(workload, costly, loads[0], demand)


def test_the_workload_is_bounded_and_forgets() -> None:
    workload = Workload()
    for at in range(3 * KINDS_MAX):
        workload.learn(shape(cpus=1 + at / 1000, gpus=1).demand, 8)
    assert len(workload.shares) <= KINDS_MAX
    for _ in range(40):
        workload.learn(shape(gpus=0.5).demand, TASKS_MAX // 8)
    assert workload.total <= 2 * TASKS_MAX
    assert max(workload.shares, key=lambda kind: workload.shares[kind]).gpu_milli == 500
    version = workload.version
    workload.learn(shape(gpus=0.5).demand, TASKS_MAX)
    assert workload.version == version, "nothing has changed"
