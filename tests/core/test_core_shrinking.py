"""Elastic gangs give up nodes before anybody is stopped whole: a story for each rule."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from paceline.scheduler.core.attempt_events import AttemptEnded, AttemptStarted
from paceline.scheduler.core.settings import Order, Settings
from paceline.scheduler.core.shrinking import Search
from paceline.scheduler.core.timeline import describe
from paceline.spec.ids import NodeId
from paceline.spec.lifecycle import JobState
from support.paddock import Paddock, shape
from support.sim_laws import state_is_sane

ORDER = Order(min_run_us=600 * 10**6)


def with_nodes(*gpus: int, **knobs: object) -> Paddock:
    """Nodes n1, n2, ... which are never given up for their silence: hours pass in one step."""
    paddock = Paddock(Settings(heartbeat_us=10**13, order=replace(ORDER, **knobs)))  # type: ignore[arg-type]
    for at, count in enumerate(gpus, start=1):
        paddock.node_joins(f"n{at}", gpus=count, cpus=64)
    return paddock


@pytest.fixture
def paddock() -> Paddock:
    return with_nodes(4, 4, 4)


def runs(paddock: Paddock, *args: int, saves: bool = True, priority: int = 0, **more: object) -> int:
    [job] = paddock.submit(shape(*args, **more), priority=priority)  # type: ignore[arg-type]
    paddock.starts(job)
    if saves:
        paddock.saves(job, 1)
    return job


def stop_text(paddock: Paddock, job: int) -> str:
    stop = paddock.job(job).course.stop
    return "" if stop is None else stop.why


def told(paddock: Paddock, job: int) -> list[str]:
    kinds = (AttemptEnded, AttemptStarted)
    return [describe(event) for event in paddock.history(job) if isinstance(event, kinds)]


def test_a_gang_gives_up_one_node_and_goes_on_at_once(paddock: Paddock) -> None:
    """Not that of rank 0, where there is another."""
    gang = runs(paddock, 3, least=1, gpus=4, rendezvous=True)
    paddock.pass_hours(1)
    [urgent] = paddock.submit(shape(gpus=4), priority=5)
    claim = paddock.job(urgent).course.claim
    assert claim is not None and claim.victims == (gang,)
    [given_up] = claim.nodes
    assert stop_text(paddock, gang) == f"gives up {given_up}: job {urgent} has priority 5, this one 0"
    paddock.leaves(gang)
    assert paddock.nodes_of(urgent) == [given_up]
    again = paddock.job(gang)
    assert again.state is JobState.STARTING and again.attempt == 2
    assert sorted([*paddock.nodes_of(gang), given_up]) == ["n1", "n2", "n3"]
    assert again.course.free_restarts == 0 and again.course.retries_used == 0
    assert told(paddock, gang)[1:] == [
        f"attempt 1 ended (preempted, uses no retry): preempted: gives up {given_up}: "
        f"job {urgent} has priority 5, this one 0",
        "attempt 2 placed on n1 (task 0, GPUs 0,1,2,3), n3 (task 1, GPUs 0,1,2,3); "
        "goes on with 2 of 3 instances (min 1): no room for more",
    ]


def test_it_is_made_smaller_though_another_would_lose_less(paddock: Paddock) -> None:
    gang = runs(paddock, 2, least=1, gpus=4)
    single = runs(paddock, gpus=4)
    paddock.pass_hours(1)
    paddock.submit(shape(gpus=4), priority=5)
    assert stop_text(paddock, gang).startswith("gives up n") and not stop_text(paddock, single)


def test_one_that_has_never_saved_is_not_made_smaller_for_it_could_lose_all(paddock: Paddock) -> None:
    gang = runs(paddock, 2, least=1, gpus=4, saves=False)
    single = runs(paddock, gpus=4)
    paddock.pass_hours(1)
    paddock.submit(shape(gpus=4), priority=5)
    assert stop_text(paddock, single) and not stop_text(paddock, gang)


def test_several_give_up_a_part_before_one_is_stopped() -> None:
    paddock = with_nodes(4, 4, 4, 4)
    first, second = (runs(paddock, 2, least=1, gpus=4) for _ in range(2))
    paddock.pass_hours(1)
    [urgent] = paddock.submit(shape(2, gpus=4), priority=5)
    assert all(stop_text(paddock, job).startswith("gives up n") for job in (first, second))
    paddock.leaves(first)
    assert paddock.state_of(first) is JobState.STARTING, "it waits for nobody"
    assert paddock.state_of(urgent) is JobState.QUEUED
    paddock.leaves(second)
    assert paddock.state_of(urgent) is paddock.state_of(second) is JobState.STARTING
    assert [len(paddock.nodes_of(job)) for job in (first, second)] == [1, 1]


def test_at_its_least_it_is_stopped_whole_and_waits_its_turn(paddock: Paddock) -> None:
    gang = runs(paddock, 3, least=3, most=4, gpus=4)
    paddock.pass_hours(1)
    [urgent] = paddock.submit(shape(gpus=4), priority=5)
    assert stop_text(paddock, gang) == f"job {urgent} has priority 5, this one 0"
    paddock.leaves(gang)
    assert paddock.state_of(gang) is JobState.QUEUED
    assert paddock.job(gang).course.gave_way_to == urgent


def test_it_does_not_take_the_room_back_while_somebody_waits(paddock: Paddock) -> None:
    gang = runs(paddock, 3, least=1, gpus=4)
    paddock.pass_hours(1)
    [urgent] = paddock.submit(shape(gpus=4), priority=5)
    paddock.leaves(gang)
    paddock.starts(gang)
    [late] = paddock.submit(shape(4, gpus=4))
    paddock.starts(urgent)
    assert paddock.job(gang).course.growth is None
    paddock.cancel(late)
    paddock.finishes(urgent)
    assert paddock.job(gang).course.growth is not None, "nobody waits, and there is room"


def test_a_crash_between_the_notice_and_the_end_changes_nothing(paddock: Paddock) -> None:
    gang = runs(paddock, 2, least=1, gpus=4)
    other = runs(paddock, gpus=4, saves=False)
    paddock.pass_hours(1)
    [urgent] = paddock.submit(shape(gpus=4), priority=5)
    paddock.scheduler_restarts()
    for name in ("n1", "n2", "n3"):
        tasks = [task.key for job in (gang, other) for task in paddock.starts_sent(job) if task.node == name]
        paddock.node_joins(name, *tasks)
    paddock.leaves(gang)
    assert paddock.state_of(urgent) is paddock.state_of(gang) is JobState.STARTING
    state_is_sane(paddock.state)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_whoever_can_go_on_does_and_the_other_starts(
    running: list[tuple[int, int, int]], tasks: int, gpus: int
) -> None:
    paddock = with_nodes(4, 4, 4, min_run_us=0)
    jobs = [
        job
        for count, least, each in running
        for job in paddock.submit(shape(count, least=min(least, count), gpus=each))
    ]
    for job in jobs:
        if paddock.state_of(job) is JobState.STARTING:
            paddock.starts(job)
    [urgent] = paddock.submit(shape(tasks, gpus=gpus), priority=5)
    stopped = [job for job in jobs if paddock.job(job).course.stop is not None]
    assume(stopped)
    smaller = {job for job in stopped if stop_text(paddock, job).startswith("gives up")}
    for job in stopped:
        paddock.leaves(job)
        state_is_sane(paddock.state)
    assert paddock.state_of(urgent) is JobState.STARTING
    assert all(paddock.state_of(job) is JobState.STARTING for job in smaller)


class EachAnew(Search):
    """Looks at every node again after each step."""

    def _touched(self, name: NodeId, needed: object) -> Iterable[NodeId]:
        return list(self.here)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=8),
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
)
def test_nodes_are_cleared_as_if_all_were_looked_at_anew(
    running: list[tuple[int, int, int]], tasks: int, gpus: int, rendezvous: bool
) -> None:
    paddock = with_nodes(4, 4, 4, 4, 4)
    for count, least, each in running:
        one = shape(count, least=min(least, count), gpus=each, rendezvous=rendezvous)
        for job in paddock.submit(one):
            if paddock.state_of(job) is JobState.STARTING:
                paddock.starts(job)
    [urgent] = paddock.submit(shape(tasks, gpus=gpus))
    state = paddock.state
    losses = {
        number: 10 + 7 * number % 5
        for number in sorted(state.placed)
        if len(state.jobs[number].tasks) > state.jobs[number].demand.instance_count_min
    }
    given_up = (state, paddock.job(urgent), losses, list(state.nodes))
    assert Search(*given_up).find() == EachAnew(*given_up).find()
