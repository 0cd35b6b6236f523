"""Nodes whose agents end with their tasks: who is told, how long they have, and what is said of it."""

from dataclasses import replace

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.node import SickGpu
from paceline.spec.gpu_health import GpuState
from paceline.spec.ids import NodeId
from paceline.spec.lifecycle import JobState, NodeContact
from support.paddock import Paddock, shape

SECOND = 1_000_000


@pytest.fixture
def paddock() -> Paddock:
    made = Paddock()
    for name in ("a", "b"):
        made.node_joins(name, cpus=4)
    return made


def leaves(paddock: Paddock, name: str, *, leaving: bool = True) -> None:
    paddock.inventories[name] = replace(paddock.inventories[name], leaving=leaving)
    paddock.tell(s.InventoryChanged(NodeId(name), paddock.sessions[name], paddock.inventories[name]))


def contact(paddock: Paddock, name: str) -> NodeContact:
    return paddock.state.nodes[NodeId(name)].contact


def test_its_jobs_have_what_their_saves_take_and_go_on_elsewhere(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(cpus=4))
    paddock.starts(job)
    paddock.saves(job, 10, took_us=10 * SECOND)
    leaves(paddock, "a")
    assert [(stop.node, stop.grace_us) for stop in paddock.stops_sent(job)] == [("a", 45 * SECOND)]
    assert paddock.note("a") == "its agent ends; 1 task left"
    text = paddock.why(job).reasons[0].text
    assert "stopping (preempted: the agent of a ends): 0 of 1 tasks" in text, text
    paddock.leaves(job)
    found = paddock.job(job)
    assert (found.attempt, paddock.nodes_of(job), found.course.retries_used) == (2, ["b"], 0)
    assert paddock.note("a") == "its agent ends"
    assert paddock.replayed().nodes[NodeId("a")].inventory.leaving


def test_all_of_a_gang_is_told_and_what_stops_anyway_is_not(paddock: Paddock) -> None:
    gang, cancelled = paddock.submit(shape(2, cpus=2), shape(cpus=2, grace_s=60))
    for job in (gang, cancelled):
        paddock.starts(job)
    paddock.cancel(cancelled)
    leaves(paddock, paddock.nodes_of(cancelled)[0])
    assert sorted(stop.node for stop in paddock.stops_sent(gang)) == ["a", "b"]
    assert [stop.grace_us for stop in paddock.stops_sent(cancelled)] == [60 * SECOND]


def test_it_gets_no_work_until_an_agent_is_there_again(paddock: Paddock) -> None:
    leaves(paddock, "a")
    leaves(paddock, "b")
    [job] = paddock.submit(shape(cpus=4))
    why = paddock.why(job)
    assert paddock.state_of(job) is JobState.QUEUED and not why.never
    text = why.reasons[0].text
    assert "none of the 2 nodes is connected (0 silent, 0 lost, 2 whose agent ends)" in text, text
    paddock.stream_breaks("a")
    leaves(paddock, "b", leaving=False)
    assert paddock.nodes_of(job) == ["b"]
    leaves(paddock, "b")
    paddock.inventories["a"] = replace(paddock.inventories["a"], leaving=False)
    paddock.node_joins("a")
    paddock.leaves(job)
    assert paddock.nodes_of(job) == ["a"]


def test_nodes_that_have_said_so_are_lost_without_suspicion(paddock: Paddock) -> None:
    paddock.node_joins("c", cpus=4)
    for name in ("a", "b"):
        leaves(paddock, name)
        paddock.stream_breaks(name)
    paddock.pass_time(30)
    assert not paddock.state.suspected
    assert {contact(paddock, name) for name in ("a", "b")} == {NodeContact.LOST}


def test_a_job_whose_gpu_fails_meanwhile_ends_by_that(paddock: Paddock) -> None:
    """Its attempt is over: nobody is told to save."""
    paddock.node_joins("g", gpus=2)
    [job] = paddock.submit(shape(gpus=1))
    paddock.starts(job)
    [task] = paddock.job(job).tasks
    left = tuple(gpu for gpu in paddock.inventories["g"].gpus if gpu.index not in task.gpu_indices)
    model, bad = "NVIDIA H100 80GB HBM3", GpuState.QUARANTINED
    sick = tuple(SickGpu(index, model, bad, "XID 79") for index in task.gpu_indices)
    paddock.inventories["g"] = replace(paddock.inventories["g"], gpus=left, sick=sick)
    leaves(paddock, "g")
    found = paddock.job(job)
    assert found.course.ending is not None and found.course.ending.code == "gpu-fault"
    assert all(stop.why != "preempted" for stop in paddock.stops_sent(job))
    assert paddock.state_of(job) is JobState.QUEUED, "not on the GPU that is left there"
