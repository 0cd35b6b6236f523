"""Nodes out of service and back: who is placed where, who leaves, what is said, and what it outlives."""

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.attempt_events import StopRequested
from paceline.scheduler.core.node import Cordon
from paceline.scheduler.core.node_events import NodeCordoned, NodeUncordoned
from paceline.scheduler.core.timeline import describe
from paceline.spec.errors import Conflict, NotFound
from paceline.spec.ids import Micros, NodeId
from paceline.spec.lifecycle import JobState, NodeContact
from support.paddock import Paddock, inventory, shape

SECOND = 1_000_000
DAY_S = 86_400


@pytest.fixture
def paddock() -> Paddock:
    made = Paddock()
    for name in ("a", "b"):
        made.node_joins(name, cpus=4)
    return made


def running(paddock: Paddock, *shapes: object) -> list[int]:
    jobs = paddock.submit(*shapes)  # type: ignore[arg-type]
    for job in jobs:
        paddock.starts(job)
    return jobs


def saves(paddock: Paddock, job: int, step: int) -> None:
    paddock.says(job, 0, s.Metrics(0, step, {}), s.Published(step, f"step-{step}", "hash"))


def stops(paddock: Paddock, job: int) -> None:
    for task in paddock.job(job).tasks:
        paddock.says(job, task.task, s.Exited(0, 0), s.Ended((0,), (0,), "preempted"))


def cordon_of(paddock: Paddock, name: str) -> Cordon | None:
    return paddock.state.nodes[NodeId(name)].cordon


def told(paddock: Paddock) -> list[str]:
    return [
        describe(event) for event in paddock.history() if isinstance(event, NodeCordoned | NodeUncordoned)
    ]


def test_nothing_new_is_placed_on_a_cordoned_node_and_what_runs_there_goes_on(paddock: Paddock) -> None:
    [job] = running(paddock, shape(cpus=4))
    assert paddock.nodes_of(job) == ["a"]
    assert paddock.cordon("a", why="new disks") == []
    assert paddock.state_of(job) is JobState.RUNNING and not paddock.stops_sent(job)
    second, third = paddock.submit(shape(cpus=4), shape(cpus=4))
    assert paddock.nodes_of(second) == ["b"]
    paddock.finishes(job)
    assert paddock.state_of(third) is JobState.QUEUED
    paddock.uncordon("a")
    assert paddock.nodes_of(third) == ["a"]
    assert told(paddock) == ["node a is cordoned by ann: new disks", "node a is put back into service by ann"]


def test_what_runs_on_a_drained_node_saves_and_goes_on_elsewhere(paddock: Paddock) -> None:
    [job] = running(paddock, shape(cpus=2, retries=1))
    assert paddock.drain("a", why="new disks") == [job]
    assert paddock.note("a") == "draining, 1 task left (for 0 ms, by ann: new disks)"
    assert "stopping (preempted: a is drained: new disks): 0 of 1 tasks" in paddock.why(job).reasons[0].text
    paddock.pass_time(3)
    saves(paddock, job, 40)
    stops(paddock, job)
    found = paddock.job(job)
    assert (found.attempt, paddock.nodes_of(job), found.course.retries_used) == (2, ["b"], 0)
    assert paddock.starts_sent(job)[-1].job.course.checkpoints[0].step == 40
    assert paddock.note("a") == "drained (for 3 s, by ann: new disks)"
    texts = [describe(event) for event in paddock.history(job)]
    assert "preemption by ann (a is drained: new disks): the tasks have 30 s to end" in texts
    [end] = [text for text in texts if text.startswith("attempt 1 ended")]
    assert end.endswith("(preempted, uses no retry): preempted by ann: a is drained: new disks")


def test_a_job_is_given_what_its_saves_take_but_no_more_than_the_deadline(paddock: Paddock) -> None:
    first, second = running(paddock, shape(cpus=4), shape(cpus=4))
    paddock.says(first, 0, s.Published(1, "step-1", "hash", stall_us=20 * SECOND))
    paddock.drain("a")
    assert [stop.grace_us for stop in paddock.stops_sent(first)] == [45 * SECOND]
    paddock.pass_time(5)
    assert paddock.drain("a") == [], "said again it changes nothing"
    assert paddock.drain("a", "b", deadline_s=10) == [first, second]
    assert [stop.grace_us for stop in paddock.stops_sent(first)] == [45 * SECOND, 10 * SECOND]
    assert [stop.grace_us for stop in paddock.stops_sent(second)] == [10 * SECOND]
    assert paddock.stops_sent(second)[0].why == "preempted"
    [asked] = [event for event in paddock.history(second) if isinstance(event, StopRequested)]
    assert asked.stop.why == "b is drained"
    paddock.pass_time(26)
    assert {paddock.state_of(job) for job in (first, second)} == {JobState.QUEUED}, "fenced at the deadline"
    assert paddock.note("b").startswith("drained (for 26 s, by ann)")


def test_one_who_leaves_anyway_keeps_its_time(paddock: Paddock) -> None:
    cancelled, growing = running(paddock, shape(cpus=4, grace_s=60), shape(cpus=2))
    paddock.cancel(cancelled)
    assert paddock.drain("a", "b") == [growing]
    stops(paddock, cancelled)
    assert paddock.state_of(cancelled) is JobState.CANCELLED


def test_a_gang_on_two_of_them_is_told_once(paddock: Paddock) -> None:
    [job] = running(paddock, shape(2, cpus=3))
    assert paddock.drain("b", "a", "a") == [job]
    [asked] = [event for event in paddock.history(job) if isinstance(event, StopRequested)]
    assert asked.stop.why == "a, b are drained"
    assert len(paddock.stops_sent(job)) == 2


def test_a_gang_that_may_shrink_goes_on_without_the_node(paddock: Paddock) -> None:
    [job] = running(paddock, shape(2, least=1, cpus=4))
    paddock.drain("b")
    saves(paddock, job, 10)
    stops(paddock, job)
    assert (paddock.nodes_of(job), paddock.job(job).attempt) == (["a"], 2)
    paddock.starts(job)
    [_, size] = paddock.why(job).reasons
    assert "there is no room for more instances" in size.text
    assert "1 of 2 nodes is cordoned (b, by ann): it would have room for 1 task" in size.text
    paddock.uncordon("b")
    saves(paddock, job, 20)
    assert paddock.job(job).course.stop is not None, "it grows back"


def test_a_gang_does_not_stop_to_grow_where_it_would_lose_as_much(paddock: Paddock) -> None:
    """Of its two instances the one on the cordoned node would not come back."""
    paddock.node_joins("b", cpus=0)
    [job] = running(paddock, shape(2, least=1, cpus=4))
    assert paddock.nodes_of(job) == ["a"]
    paddock.cordon("a")
    paddock.node_joins("b", cpus=4)
    saves(paddock, job, 10)
    assert paddock.job(job).course.stop is None
    paddock.node_joins("c", cpus=4)
    saves(paddock, job, 20)
    assert paddock.job(job).course.stop is not None


def test_a_fallen_gang_restarts_without_the_cordoned_node(paddock: Paddock) -> None:
    [job] = running(paddock, shape(cpus=4, retries=1))
    paddock.cordon("a")
    paddock.rank_dies(job, 0)
    assert paddock.nodes_of(job) == ["b"]


def test_the_same_key_counts_once(paddock: Paddock) -> None:
    [job] = running(paddock, shape(cpus=4))
    assert paddock.drain("a", key="k") == [job]
    paddock.uncordon("a", key="u")
    assert paddock.drain("a", key="k") == [job] and cordon_of(paddock, "a") is None
    paddock.cordon("a")
    assert paddock.uncordon("a", key="u") == [] and cordon_of(paddock, "a") is not None


def test_said_again_it_stays_since_when_and_keeps_its_reason(paddock: Paddock) -> None:
    paddock.cordon("a", why="new disks")
    since_us = Micros(paddock.now_us)
    paddock.pass_time(60, step_s=1)
    paddock.cordon("a", by="bob")
    assert cordon_of(paddock, "a") == Cordon("ann", "new disks", since_us)
    paddock.drain("a", by="bob")
    paddock.cordon("a", why="a new mainboard")
    assert cordon_of(paddock, "a") == Cordon("ann", "a new mainboard", since_us, drains=True)
    paddock.uncordon("a")
    paddock.uncordon("a")
    assert told(paddock)[1:] == [
        "node a is drained by bob: new disks",
        "node a is drained by ann: a new mainboard",
        "node a is put back into service by ann",
    ]


def test_unknown_names_name_the_nearest_and_nothing_is_done(paddock: Paddock) -> None:
    paddock.node_joins("rack-3-a")
    with pytest.raises(NotFound, match="there is no node rack-3-b") as refused:
        paddock.cordon("a", "rack-3-b")
    assert refused.value.hint == "did you mean rack-3-a?"
    assert cordon_of(paddock, "a") is None
    with pytest.raises(NotFound) as refused:
        paddock.uncordon("mars")
    assert refused.value.hint == "`pace nodes` lists what there is"


def test_a_name_that_two_nodes_have_is_refused_and_their_ids_are_not(paddock: Paddock) -> None:
    paddock.inventories["x"] = paddock.inventories["y"] = inventory("twin")
    paddock.node_joins("x")
    paddock.node_joins("y")
    with pytest.raises(Conflict, match="2 nodes are called twin") as refused:
        paddock.cordon("twin")
    assert refused.value.hint == "name them by id: x, y"
    paddock.cordon("y")
    assert (cordon_of(paddock, "x"), cordon_of(paddock, "y") is None) == (None, False)


def test_the_cordon_outlives_the_scheduler_the_agent_and_the_machine(paddock: Paddock) -> None:
    paddock.drain("a", why="new disks")
    standing = cordon_of(paddock, "a")
    paddock.scheduler_restarts()
    paddock.node_joins("a")
    paddock.node_joins("b")
    paddock.node_joins("a", cpus=8)
    assert standing is not None and cordon_of(paddock, "a") == standing
    [job] = paddock.submit(shape(cpus=4))
    assert paddock.nodes_of(job) == ["b"]
    paddock.goes_silent("a")
    paddock.pass_time(10 * DAY_S, step_s=3600)
    assert paddock.state.nodes[NodeId("a")].contact is NodeContact.LOST
    assert "it is drained (for 240 h 0 min, by ann: new disks)" in paddock.note("a")
    assert paddock.replayed().nodes[NodeId("a")].cordon == standing
    paddock.uncordon("a")
    assert NodeId("a") not in paddock.state.nodes, (
        "what was lost for so long is forgotten once it is put back"
    )


def test_a_job_that_only_cordoned_nodes_could_run_waits_and_keeps_nobody_up(paddock: Paddock) -> None:
    paddock.node_joins("g", cpus=4, gpus=8)
    paddock.cordon("g", why="new disks")
    wants, other = paddock.submit(shape(gpus=8), shape(cpus=4))
    assert paddock.nodes_of(other) == ["a"]
    why = paddock.why(wants)
    assert not why.never and why.reasons[0].code == "cordoned"
    assert why.reasons[0].text == (
        "needs 1 task with 8 GPUs, 1 cpu; the other nodes could not run it: no node has GPUs, asked 8 per "
        "task; 1 of 3 nodes is cordoned (g: new disks, by ann): it would have room for 1 task"
    )
    paddock.goes_silent("g")
    paddock.pass_time(10)
    assert not paddock.why(wants).never, "one that is being repaired may well be switched off"
    assert "it would have room for 1 task when empty" in paddock.why(wants).reasons[0].text
    paddock.node_joins("g")
    [never] = paddock.submit(shape(gpus=16))
    assert paddock.why(never).never
    paddock.uncordon("g")
    assert paddock.nodes_of(wants) == ["g"]


def test_why_counts_the_cordoned_with_numbers_and_names(paddock: Paddock) -> None:
    for name in ("c", "d", "e"):
        paddock.node_joins(name, cpus=4)
    jobs = running(paddock, *[shape(cpus=4)] * 5)
    paddock.cordon("d", "e", why="new disks")
    paddock.cordon("c", by="bob")
    for job in jobs[3:]:
        paddock.finishes(job)
    [waits] = paddock.submit(shape(3, cpus=4))
    [reason, *_] = paddock.why(waits).reasons
    assert reason.code == "cordoned" and reason.text.endswith(
        "3 of 5 nodes are cordoned (c, by bob; d: new disks, by ann; e: new disks, by ann): "
        "they would have room for 2 tasks"
    )
    [waits] = paddock.submit(shape(cpus=4))
    [reason, *_] = paddock.why(waits).reasons
    assert reason.code == "not-now" and reason.fields["cordoned"] == 3
    assert "they would have room for 2 tasks" in reason.text
    paddock.cancel(waits)
    paddock.cordon("a", "b")
    [waits] = paddock.submit(shape(cpus=1))
    [reason, *_] = paddock.why(waits).reasons
    assert reason.text.startswith(
        "needs 1 task with 1 cpu; 5 of 5 nodes are cordoned (a, by ann; b, by ann; c, "
    )
    assert "; and 2 more)" in reason.text


def test_a_drained_node_that_is_switched_off_raises_no_suspicion(paddock: Paddock) -> None:
    paddock.node_joins("c", cpus=4)
    paddock.drain("a", "b")
    paddock.goes_silent("a")
    paddock.goes_silent("b")
    paddock.pass_time(10)
    assert not paddock.state.suspected
    assert paddock.state.contacts[NodeContact.LOST] == 2


def test_a_lost_node_is_drained_at_once(paddock: Paddock) -> None:
    [job] = running(paddock, shape(cpus=4))
    blocker = running(paddock, shape(cpus=4))[0]
    paddock.goes_silent("a")
    paddock.pass_time(10)
    assert paddock.state_of(job) is JobState.RUNNING, "stranded"
    assert paddock.drain("a") == [job]
    assert paddock.state_of(job) is JobState.QUEUED
    paddock.finishes(blocker)
    assert paddock.nodes_of(job) == ["b"]
    paddock.node_joins("a", paddock.starts_sent(job)[0].key)
    assert paddock.note("a").startswith("drained")
