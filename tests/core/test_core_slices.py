"""MIG slices and the memory of GPUs: who is given which, and what is said where none is."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.candidates import most_tasks, tasks_that_fit
from paceline.scheduler.core.gpu_choice import groups_of
from paceline.scheduler.core.node import GpuKind, NodeGpu, NodeInventory, SickGpu, matches
from paceline.scheduler.core.timeline import describe
from paceline.scheduler.records import job_from_row, job_row
from paceline.spec.gpu_health import GpuState
from paceline.spec.ids import NodeId
from paceline.spec.lifecycle import JobState
from paceline.spec.resources import GpuWish
from paceline.spec.slices import is_slice, slice_index
from support.paddock import Paddock, shape

XID = "XID 48: double-bit ECC error"
A100 = "NVIDIA A100-SXM4-40GB"


@pytest.fixture
def paddock() -> Paddock:
    return Paddock()


def gpus(paddock: Paddock, job: int) -> list[tuple[int, ...]]:
    return [task.gpu_indices for task in paddock.job(job).tasks]


def told(paddock: Paddock, job: int) -> str:
    return " ".join(reason.text for reason in paddock.why(job).reasons)


def tells(paddock: Paddock, facts: NodeInventory) -> None:
    paddock.inventories["n1"] = facts
    paddock.tell(s.InventoryChanged(NodeId("n1"), paddock.sessions["n1"], facts))


def sick(facts: NodeInventory, state: GpuState, *indices: int) -> NodeInventory:
    return replace(
        facts,
        gpus=tuple(gpu for gpu in facts.gpus if gpu.index not in indices),
        sick=tuple(SickGpu(gpu.index, gpu.model, state, XID) for gpu in facts.gpus if gpu.index in indices),
    )


def test_a_slice_goes_to_who_names_it_and_a_whole_gpu_to_who_does_not(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=1, model=A100, slices=("1g.5gb", "1g.5gb", "3g.20gb"))
    small, large = slice_index(1, 7, 0), slice_index(1, 9, 0)
    [any_gpu, again, by_model] = paddock.submit(shape(gpus=1), shape(gpus=1), shape(gpus=1, models=("A100",)))
    assert gpus(paddock, any_gpu) == [(0,)]
    assert [paddock.state_of(job) for job in (again, by_model)] == [JobState.QUEUED] * 2
    [first, third, fourth] = paddock.submit(
        shape(gpus=1, models=("1g.5gb",)), shape(gpus=1, models=("3g.20GB",)), shape(gpus=1, models=("MIG",))
    )
    assert [gpus(paddock, job) for job in (first, third, fourth)] == [
        [(small,)],
        [(large,)],
        [(small + 100,)],
    ]


def test_a_share_is_never_taken_of_a_slice(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=1, slices=("1g.10gb",))
    halves = paddock.submit(*[shape(gpus=0.5)] * 3)
    assert [gpus(paddock, job) for job in halves] == [[(0,)], [(0,)], []]


def test_a_task_with_several_processes_may_have_a_slice_for_each(paddock: Paddock) -> None:
    paddock.node_joins("n1", slices=("1g.5gb",) * 7)
    [gang] = paddock.submit(shape(2, gpus=3, ranks=3, models=("1g.5gb",)))
    given = [index for indices in gpus(paddock, gang) for index in indices]
    assert given == [slice_index(0, 7 + at, 0) for at in range(6)]
    assert "GPUs 0/7/0,0/8/0," in "\n".join(describe(event) for event in paddock.history(gang))


def test_what_waits_for_whole_gpus_says_that_slices_are_free(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=1, model=A100, slices=("1g.5gb",) * 3)
    [first, waits, other] = paddock.submit(
        shape(gpus=1), shape(gpus=1, models=("A100",)), shape(gpus=1, models=("H100",))
    )
    assert told(paddock, waits) == (
        "needs 1 task with 1 A100 GPU, 1 cpu; 0 of 1 fit now; n1 has 0 A100 GPUs free of 1"
        f" (job {first} holds 1 there); 3 MIG slices 1g.5gb are free, but it asks for whole GPUs;"
        " a slice has `model: 1g.5gb`"
    )
    assert "MIG slices 1g.5gb are free" not in told(paddock, other), "they are of another model"


def test_where_there_are_only_slices_a_whole_gpu_is_never_found(paddock: Paddock) -> None:
    paddock.node_joins("n1", slices=("1g.5gb", "2g.10gb", "1g.5gb"))
    [never, many, typo] = paddock.submit(
        shape(gpus=1), shape(gpus=4, ranks=4, models=("1g.5gb",)), shape(gpus=1, models=("4g.40gb",))
    )
    assert told(paddock, never) == (
        "never: no node has whole GPUs, asked 1 per task; 2 MIG slices 1g.5gb, 1 MIG slice 2g.10gb are free,"
        " but it asks for whole GPUs; a slice has `model: 1g.5gb`"
    )
    assert "never: the largest node has 2 1g.5gb MIG slices, asked 4 per task" in told(paddock, many)
    assert "no node has a MIG slice like 4g.40gb; they have NVIDIA H100" in told(paddock, typo)


def test_what_waits_for_a_slice_says_who_holds_them(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=2, slices=("1g.5gb",))
    [first, second] = paddock.submit(*[shape(gpus=1, models=("1g.5gb",))] * 2)
    assert told(paddock, second) == (
        "needs 1 task with 1 1g.5gb MIG slice, 1 cpu; 0 of 1 fit now; n1 has 0 1g.5gb MIG slices free of 1"
        f" (job {first} holds 1 there)"
    )


def test_slices_leave_service_and_come_back_with_their_gpu(paddock: Paddock) -> None:
    paddock.node_joins("n1", slices=("1g.5gb", "1g.5gb"))
    facts = paddock.inventories["n1"]
    paddock.node_joins("n2", slices=("1g.5gb", "1g.5gb"))
    [job] = paddock.submit(shape(gpus=2, ranks=2, models=("MIG",)))
    paddock.starts(job)
    assert paddock.nodes_of(job) == ["n1"]
    tells(paddock, sick(facts, GpuState.QUARANTINED, *(gpu.index for gpu in facts.gpus)))
    found = paddock.job(job)
    assert (found.attempt, found.course.retries_used, paddock.nodes_of(job)) == (2, 0, ["n2"])
    story = "\n".join(describe(event) for event in paddock.history(job))
    assert f"GPU 0/7/0 of n1 is quarantined: {XID}" in story
    [waits] = paddock.submit(shape(gpus=1, models=("1g.5gb",)))
    assert f"2 of 2 GPUs of n1 are quarantined: {XID}" in told(paddock, waits)
    tells(paddock, facts)
    assert paddock.nodes_of(waits) == ["n1"]


def test_a_gpu_that_was_lost_before_its_agent_came_ends_what_has_its_slices(paddock: Paddock) -> None:
    """It tells neither its mode nor its slices then."""
    paddock.node_joins("n1", slices=("1g.5gb",))
    paddock.node_joins("n2", slices=("1g.5gb",))
    [job] = paddock.submit(shape(gpus=1, models=("1g.5gb",)))
    paddock.starts(job)
    lost = SickGpu(0, "NVIDIA GPU", GpuState.QUARANTINED, "lost: it has fallen off the bus")
    tells(paddock, replace(paddock.inventories["n1"], gpus=(), sick=(lost,)))
    assert (paddock.job(job).attempt, paddock.nodes_of(job)) == (2, ["n2"])


def test_another_layout_moves_nobody_and_gives_nothing_twice(paddock: Paddock) -> None:
    paddock.node_joins("n1", slices=("1g.5gb", "1g.5gb"))
    facts = paddock.inventories["n1"]
    [job] = paddock.submit(shape(gpus=1, models=("1g.5gb",)))
    paddock.starts(job)
    [held] = gpus(paddock, job)[0]
    larger = NodeGpu(slice_index(0, 2, 0), f"{A100} MIG 3g.20gb")
    tells(paddock, replace(facts, gpus=(larger, facts.gpus[0])))
    [large, small] = paddock.submit(shape(gpus=1, models=("3g.20gb",)), shape(gpus=1, models=("1g.5gb",)))
    assert (gpus(paddock, large), paddock.state_of(small)) == ([(larger.index,)], JobState.QUEUED)
    tells(paddock, replace(facts, gpus=(larger,)))
    assert (paddock.state_of(job), gpus(paddock, job)) == (JobState.RUNNING, [(held,)])
    paddock.finishes(job)
    tells(paddock, facts)
    assert gpus(paddock, small) == [(held,)]


def test_a_gpu_with_less_memory_will_not_do(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=2, gpu_gib=24, model="NVIDIA A10")
    paddock.node_joins("n2", gpus=1, gpu_gib=40, model=A100)
    [large, waits] = paddock.submit(*[shape(gpus=1, gpu_gib=40)] * 2)
    assert paddock.nodes_of(large) == ["n2"]
    assert told(paddock, waits) == (
        "needs 1 task with 1 GPU of 40 GiB or more, 1 cpu; 0 of 1 fit now; n2 has 0 GPUs of 40 GiB or more"
        f" free of 1 (job {large} holds 1 there); n1's GPUs have 24 GiB each, asked 40 GiB"
    )
    [never, named] = paddock.submit(shape(gpus=1, gpu_gib=80), shape(gpus=1, gpu_gib=40, models=("A10",)))
    assert told(paddock, never).startswith(
        "never: no node has GPUs with so much memory: n2's GPUs have 40 GiB each, asked 80 GiB"
    )
    assert paddock.nodes_of(named) == [] and "asked 40 GiB" in told(paddock, named)
    [share] = paddock.submit(shape(gpus=0.5, gpu_gib=20, models=("A10",)))
    assert paddock.nodes_of(share) == ["n1"], "a share asks for the memory of its GPU"


def test_the_memory_of_a_slice_is_its_own(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpu_gib=80, slices=("1g.10gb", "3g.40gb"))
    [large, never] = paddock.submit(
        shape(gpus=1, gpu_gib=20, models=("MIG",)), shape(gpus=1, gpu_gib=80, models=("MIG",))
    )
    assert gpus(paddock, large) == [(slice_index(0, 8, 0),)]
    assert "n1's MIG slices have 40 GiB each, asked 80 GiB" in told(paddock, never)


def test_a_gpu_of_unknown_memory_is_not_taken_for_large() -> None:
    assert matches(GpuKind(A100), GpuWish(("A100",)))
    assert not matches(GpuKind(A100), GpuWish(("A100",), 1))


def test_rows_from_before_there_was_memory_are_read(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(gpus=1))
    row = job_row(paddock.job(job))
    assert '"gpu_memory_bytes":0' in row.demand
    old = row._replace(demand=row.demand.replace(',"gpu_memory_bytes":0', ""))
    assert job_from_row(old) == paddock.job(job)


def test_slices_outlive_a_restart_of_the_scheduler(paddock: Paddock) -> None:
    paddock.node_joins("n1", slices=("1g.5gb", "1g.5gb"))
    [job] = paddock.submit(shape(gpus=1, models=("1g.5gb",)))
    paddock.scheduler_restarts()
    paddock.node_joins("n1", paddock.job(job).key(0))
    assert list(paddock.state.loads[NodeId("n1")].free_gpus) == [slice_index(0, 8, 0)]


def test_slices_are_in_no_group_but_of_their_numa_node() -> None:
    halves = tuple(NodeGpu(slice_index(gpu, 1, 0), f"{A100} MIG 3g.20gb", numa=gpu) for gpu in (0, 1))
    assert groups_of(halves) == tuple(frozenset({one.index}) for one in halves)


kinds = st.sampled_from(["1g.5gb", "2g.10gb", "3g.20gb"])
asks = st.tuples(
    st.sampled_from([(), ("A100",), ("1g.5gb",), ("3g.20gb", "2g.10gb"), ("MIG",)]),
    st.sampled_from([0, 4, 12, 40]),
    st.integers(1, 3),
)


@given(st.integers(0, 3), st.lists(kinds, max_size=7), st.lists(asks, min_size=1, max_size=12))
def test_who_is_given_what_is_what_was_asked_for(
    whole: int, slices: list[str], asked: list[tuple[tuple[str, ...], int, int]]
) -> None:
    """Each its own, whole or slice as it was named, and large enough; who waits finds too few of them."""
    paddock = Paddock()
    paddock.node_joins("n1", cpus=64, gpus=whole, gpu_gib=40, model=A100, slices=slices)
    facts = paddock.inventories["n1"]
    by_index = {gpu.index: gpu for gpu in facts.gpus}
    shapes = [shape(gpus=count, ranks=count, models=models, gpu_gib=least) for models, least, count in asked]
    taken: list[int] = []
    for job, one in zip(paddock.submit(*shapes), shapes, strict=True):
        wish, count = one.demand.gpu, one.demand.per_task.gpus
        will_do = [
            gpu.index
            for gpu in facts.gpus
            if is_slice(gpu.index) == wish.slices
            and gpu.memory_bytes >= wish.memory_bytes
            and (not wish.models or any(model in gpu.model for model in wish.models))
        ]
        assert most_tasks(facts, one.demand) == min(1, len(will_do) // count)
        if paddock.job(job).placed:
            [given] = gpus(paddock, job)
            assert len(given) == count and set(given) <= set(will_do) and not set(given) & set(taken)
            assert {by_index[index].memory_bytes >= wish.memory_bytes for index in given} == {True}
            taken += given
    load = paddock.state.loads[NodeId("n1")]
    assert sorted([*taken, *load.free_gpus]) == [gpu.index for gpu in facts.gpus]
    for one in shapes:
        assert (tasks_that_fit(paddock.state.nodes[NodeId("n1")], load, one.demand) > 0) == (
            len([index for index in load.free_gpus if matches(_kind(by_index[index]), one.demand.gpu)])
            >= one.demand.per_task.gpus
        )


def _kind(gpu: NodeGpu) -> GpuKind:
    return GpuKind(gpu.model, gpu.memory_bytes)
