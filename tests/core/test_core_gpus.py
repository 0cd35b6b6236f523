"""GPUs that are out of service: nobody is placed on them, and whose attempt ends by them."""

from dataclasses import replace

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.attempt_events import AttemptEnded
from paceline.scheduler.core.node import NodeInventory, SickGpu
from paceline.scheduler.core.timeline import describe
from paceline.spec.failures import FailureClass
from paceline.spec.gpu_health import GpuState
from paceline.spec.ids import Micros, NodeId
from paceline.spec.lifecycle import AttemptOutcome, JobState
from support.paddock import Paddock, inventory, shape

XID = "XID 79: fallen off the bus; needs a reboot"


def with_sick(facts: NodeInventory, state: GpuState, *indices: int, since_us: int = 0) -> NodeInventory:
    return replace(
        facts,
        gpus=tuple(gpu for gpu in facts.gpus if gpu.index not in indices),
        sick=tuple(
            SickGpu(gpu.index, gpu.model, state, XID, Micros(since_us))
            for gpu in facts.gpus
            if gpu.index in indices
        ),
    )


@pytest.fixture
def paddock() -> Paddock:
    paddock = Paddock()
    paddock.node_joins("n1", gpus=4)
    return paddock


def tells(paddock: Paddock, state: GpuState, *indices: int) -> None:
    facts = with_sick(inventory("n1", gpus=4), state, *indices, since_us=paddock.now_us)
    paddock.inventories["n1"] = facts
    paddock.tell(s.InventoryChanged(NodeId("n1"), paddock.sessions["n1"], facts))


def gpus(paddock: Paddock, job: int) -> list[int]:
    return [index for task in paddock.job(job).tasks for index in task.gpu_indices]


def test_a_gang_on_a_quarantined_gpu_starts_on_others_and_uses_no_retry(paddock: Paddock) -> None:
    [job, other] = paddock.submit(shape(2, gpus=1), shape(gpus=1))
    paddock.starts(job)
    paddock.starts(other)
    assert (gpus(paddock, job), gpus(paddock, other)) == ([0, 1], [2])
    tells(paddock, GpuState.QUARANTINED, 1)
    found = paddock.job(job)
    assert (found.state, found.attempt, gpus(paddock, job)) == (JobState.STARTING, 2, [0, 3])
    assert (found.course.retries_used, found.course.free_restarts) == (0, 1)
    assert {stop.key.task for stop in paddock.stops_sent(job)} == {0, 1}
    [ended] = [event for event in paddock.history(job) if isinstance(event, AttemptEnded)]
    assert ended.ending.code == "gpu-fault" and ended.ending.failure is not None
    assert ended.ending.failure.kind is FailureClass.NODE_LOST
    assert f"GPU 1 of n1 is quarantined: {XID}" in describe(ended)
    assert (paddock.job(other).attempt, paddock.state_of(other)) == (1, JobState.RUNNING)


def test_it_is_a_level_told_again_it_changes_nothing(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(gpus=1))
    paddock.starts(job)
    tells(paddock, GpuState.QUARANTINED, 0)
    tells(paddock, GpuState.QUARANTINED, 0)
    paddock.scheduler_restarts()
    paddock.node_joins("n1", paddock.job(job).key(0))
    assert paddock.job(job).attempt == 2


def test_a_hello_tells_it_as_well(paddock: Paddock) -> None:
    """Also where the agent, or the scheduler, was not there when it happened."""
    [job] = paddock.submit(shape(2, gpus=1, exclusive=True))
    paddock.starts(job)
    paddock.scheduler_restarts()
    paddock.inventories["n1"] = with_sick(inventory("n1", gpus=4), GpuState.QUARANTINED, 0)
    keys = [paddock.job(job).key(task) for task in (0, 1)]
    paddock.node_joins("n1", *keys)
    assert paddock.state_of(job) is JobState.QUEUED
    assert {stop.key for stop in paddock.stops_sent(job)} == set(keys)
    for task in (0, 1):
        paddock.task_ends(job, task, -9, "stopped", attempt=1)
    assert (paddock.job(job).attempt, gpus(paddock, job)) == (2, [1, 2])


def test_a_node_that_lost_its_tasks_and_a_gpu_is_waited_for_no_longer(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(gpus=1, exclusive=True))
    paddock.starts(job)
    paddock.inventories["n1"] = with_sick(inventory("n1", gpus=4), GpuState.QUARANTINED, 0)
    paddock.node_joins("n1")
    assert (paddock.job(job).attempt, gpus(paddock, job)) == (2, [1])


def test_a_drained_gpu_keeps_its_gang_and_gets_no_other(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(gpus=1))
    paddock.starts(job)
    tells(paddock, GpuState.DRAINED, 0)
    assert (paddock.job(job).attempt, paddock.state_of(job)) == (1, JobState.RUNNING)
    paddock.finishes(job)
    [after] = paddock.submit(shape(4, gpus=1))
    assert paddock.state_of(after) is JobState.QUEUED
    tells(paddock, GpuState.OK)
    assert gpus(paddock, after) == [0, 1, 2, 3]


def test_what_waits_says_which_gpus_are_out_of_service(paddock: Paddock) -> None:
    [small] = paddock.submit(shape(3, gpus=1))
    tells(paddock, GpuState.QUARANTINED, 3)
    [waits, never] = paddock.submit(shape(2, gpus=1), shape(gpus=4))
    paddock.pass_time(120)
    sick = f"1 of 4 GPUs of n1 is quarantined for 2 min 0 s: {XID}"
    reasons = [" ".join(reason.text for reason in paddock.why(job).reasons) for job in (waits, never)]
    assert all(sick in text for text in reasons), reasons
    assert paddock.why(never).never
    tells(paddock, GpuState.OK)
    paddock.finishes(small)
    paddock.finishes(waits)
    assert gpus(paddock, never) == [0, 1, 2, 3]


def test_a_job_that_is_being_stopped_keeps_its_grace(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(gpus=1))
    paddock.starts(job)
    paddock.cancel(job, grace_s=30)
    tells(paddock, GpuState.QUARANTINED, 0)
    assert paddock.state_of(job) is JobState.RUNNING


@pytest.mark.parametrize(
    ("xid", "counts"), [(31, True), (13, True), (999, True), (48, False), (94, False), (74, False)]
)
def test_a_rank_that_died_with_an_xid_is_charged_by_whose_fault_that_is(
    paddock: Paddock, xid: int, counts: bool
) -> None:
    """Heard before its node says more of the GPU."""
    [job] = paddock.submit(shape(gpus=1, retries=1))
    paddock.starts(job)
    paddock.says(job, 0, s.Exited(0, 1, "CUDA error", xid=xid, xid_gpu=0))
    found = paddock.job(job)
    assert found.attempt == 2 or found.state is JobState.QUEUED
    assert found.course.retries_used == counts
    ending = found.course.ending
    assert ending is not None and f"XID {xid} on GPU 0" in ending.text
    assert (ending.outcome is AttemptOutcome.WORKER_FAILED) == counts
    if counts:
        assert ending.hint.startswith(f"XID {xid}: ")
