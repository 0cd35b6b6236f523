"""Whose turn it is, who is stopped for whom, and for whom nodes are kept: one short story per rule."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from paceline.scheduler.core.cluster_policy import ClusterPolicy
from paceline.scheduler.core.job import Shape
from paceline.scheduler.core.order import why_before
from paceline.scheduler.core.preemption import Clearing
from paceline.scheduler.core.settings import GPU_HOUR_US, Order, Settings
from paceline.scheduler.core.turns import TRIES_MAX, Turns
from paceline.spec.failures import FailureClass
from paceline.spec.ids import Micros
from paceline.spec.lifecycle import JobState
from paceline.spec.resources import Constraints
from support.paddock import Paddock, shape
from support.sim_laws import state_is_sane

ORDER = Order(class_limits_us=(GPU_HOUR_US, 4 * GPU_HOUR_US), min_run_us=600 * 10**6)


def paddock_with(**knobs: object) -> Paddock:
    """Nodes are never given up for their silence: hours pass in one step."""
    order = replace(ORDER, **knobs)  # type: ignore[arg-type]
    return Paddock(Settings(heartbeat_us=10**13, order=order))


@pytest.fixture
def paddock() -> Paddock:
    return paddock_with()


def runs(paddock: Paddock, shape: Shape, *, saves: bool = True, priority: int = 0) -> int:
    [job] = paddock.submit(shape, priority=priority)
    paddock.starts(job)
    if saves:
        paddock.saves(job, 1)
    return job


def reason(paddock: Paddock, job: int) -> str:
    return paddock.why(job).reasons[0].text


def test_who_was_served_more_gives_way_and_waits_its_turn_again(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=8, cpus=32)
    long = runs(paddock, shape(gpus=8))
    paddock.pass_hours(0.5)
    [new] = paddock.submit(shape(gpus=2))
    assert reason(paddock, new) == f"n1 is kept for it since 0 ms: job {long} saves and leaves, within 30 s"
    assert [stop.why for stop in paddock.stops_sent(long)] == ["preempted"]
    stop = paddock.job(long).course.stop
    assert stop is not None
    assert stop.why == f"job {new} goes first: it has had 0.0 GPU-hours so far, this one 4.0"
    [late] = paddock.submit(shape(gpus=8))
    paddock.leaves(long)
    assert paddock.state_of(new) is JobState.STARTING
    again = paddock.job(long)
    assert again.state is JobState.QUEUED and again.course.gave_way_to == new
    assert again.course.service == 2, "4 GPU-hours: past both limits"
    assert again.course.free_restarts == 0, "it costs none of its restarts"
    paddock.starts(new)
    paddock.finishes(new)
    assert paddock.state_of(late) is JobState.STARTING, "it was served less"
    assert reason(paddock, long).startswith("needs 1 task with 8 GPUs")


def test_nobody_is_stopped_who_has_not_saved_or_has_just_begun(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=8, cpus=32)
    unsaved = runs(paddock, shape(gpus=4), saves=False)
    paddock.pass_hours(2)
    fresh = runs(paddock, shape(gpus=4))
    paddock.submit(shape(gpus=2))
    assert not paddock.stops_sent(unsaved) and not paddock.stops_sent(fresh)
    paddock.pass_hours(0.1)
    assert not paddock.stops_sent(fresh), "0.4 GPU-hours: no class above that of the one who waits"


def test_a_higher_priority_stops_who_loses_least(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=4, cpus=32)
    paddock.node_joins("n2", gpus=4, cpus=32)
    unsaved = runs(paddock, shape(gpus=4), saves=False)
    saver = runs(paddock, shape(gpus=4))
    paddock.pass_hours(0.2)
    [urgent] = paddock.submit(shape(gpus=4), priority=5)
    assert not paddock.stops_sent(unsaved), "it would lose all that it has done"
    stop = paddock.job(saver).course.stop
    assert stop is not None and stop.why == f"job {urgent} has priority 5, this one 0"
    paddock.leaves(saver)
    assert paddock.nodes_of(urgent) == paddock.nodes_of(saver)


def test_nobody_is_stopped_in_vain(paddock: Paddock) -> None:
    """All that may be stopped would not do, or it would never start again."""
    paddock.node_joins("n1", gpus=8, cpus=32)
    once = runs(paddock, shape(gpus=4, retry_on=[FailureClass.NODE_LOST]), priority=9)
    small = runs(paddock, shape(gpus=4))
    paddock.pass_hours(2)
    paddock.submit(shape(gpus=8), priority=5)
    assert not paddock.stops_sent(small), f"job {once} counts for more and stays: 8 GPUs are never free"
    state_is_sane(paddock.state)


def test_what_is_freed_on_kept_nodes_is_for_nobody_else(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=4, cpus=32)
    paddock.node_joins("n2", gpus=4, cpus=32)
    first, second = runs(paddock, shape(gpus=4)), runs(paddock, shape(gpus=4))
    paddock.pass_hours(1)
    [gang] = paddock.submit(shape(2, gpus=4), priority=1)
    paddock.leaves(first)
    [small] = paddock.submit(shape(gpus=1), priority=1)
    assert paddock.state_of(small) is JobState.QUEUED
    assert "n1 is kept for job 3" in " ".join(one.text for one in paddock.why(small).reasons)
    paddock.scheduler_restarts()
    paddock.node_joins("n1")
    paddock.node_joins("n2", *[task.key for task in paddock.starts_sent(second)])
    assert paddock.state.claims == {gang}
    paddock.leaves(second)
    assert sorted(paddock.nodes_of(gang)) == ["n1", "n2"]
    assert not paddock.state.claimed


def test_a_claim_is_dropped_when_a_node_takes_no_work(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=4, cpus=32)
    long = runs(paddock, shape(gpus=4))
    paddock.pass_hours(1)
    [new] = paddock.submit(shape(gpus=4))
    paddock.cordon("n1")
    assert paddock.state.claims == set()
    assert "ClaimDropped" in [type(event).__name__ for event in paddock.history(new)]
    paddock.leaves(long)
    assert paddock.state_of(new) is JobState.QUEUED
    paddock.uncordon("n1")
    assert paddock.state_of(new) is JobState.STARTING


def test_room_is_made_within_the_one_rack_that_a_gang_asks_for(paddock: Paddock) -> None:
    """Though it would cost less in two."""
    for name, rack in (("n1", "r1"), ("n2", "r2"), ("n3", "r2")):
        paddock.node_joins(name, gpus=4, cpus=32, labels={"rack": rack})
    runs(paddock, shape(gpus=4))
    paddock.pass_hours(0.5)
    others = [runs(paddock, shape(gpus=2)) for _ in range(4)]
    paddock.pass_hours(0.5)
    [gang] = paddock.submit(shape(2, gpus=4, constraints=Constraints(within="rack")), priority=1)
    told = [job for job in others if paddock.stops_sent(job)]
    assert told == others
    for job in others:
        paddock.leaves(job)
    assert paddock.nodes_of(gang) == ["n2", "n3"]


def test_one_that_waits_too_long_has_nodes_kept_for_it() -> None:
    """Though nobody may be stopped: small jobs that come and go pass it no longer."""
    paddock = paddock_with(patience_us=GPU_HOUR_US, preemption=False, lifted_percent=100)
    paddock.node_joins("n1", gpus=2, cpus=32)
    first = runs(paddock, shape(gpus=1))
    [large] = paddock.submit(shape(gpus=2))
    second = runs(paddock, shape(gpus=1))
    paddock.pass_hours(1)
    [third] = paddock.submit(shape(gpus=1))
    paddock.finishes(second)
    assert paddock.state_of(third) is JobState.QUEUED, "the large one has waited for an hour"
    assert reason(paddock, large) == (
        f"n1 is kept for it since 0 ms: it starts when enough of what job {first} holds there is freed"
    )
    paddock.finishes(first)
    assert paddock.state_of(large) is JobState.STARTING
    assert paddock.job(large).course.lifted == 1


def test_who_could_not_be_stopped_when_its_node_was_kept_is_stopped_when_it_can_be() -> None:
    paddock = paddock_with(patience_us=300 * 10**6)
    paddock.node_joins("n1", gpus=2, cpus=32)
    young = runs(paddock, shape(gpus=2))
    [patient] = paddock.submit(shape(gpus=2))
    paddock.pass_hours(0.1)
    assert paddock.state.claims == {patient} and not paddock.stops_sent(young), "it has run for 6 minutes"
    paddock.pass_hours(0.1)
    assert [stop.why for stop in paddock.stops_sent(young)] == ["preempted"]
    claim = paddock.job(patient).course.claim
    assert claim is not None and claim.victims == (young,)
    paddock.leaves(young)
    assert paddock.state_of(patient) is JobState.STARTING


def test_a_walk_looks_for_so_many_whom_to_stop_and_the_next_goes_on(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=1, cpus=64)
    runs(paddock, shape(gpus=1))
    for cpus in range(1, TRIES_MAX + 5):
        paddock.submit(shape(gpus=1, cpus=cpus))
    turns, now_us = Turns(), Micros(paddock.now_us)
    assert not list(turns.walk(paddock.state, now_us)) and len(turns.denied) == TRIES_MAX
    assert turns.review_us is not None and turns.review_us < now_us + paddock.state.order.review_us
    assert not list(turns.walk(paddock.state, turns.review_us)) and len(turns.denied) == TRIES_MAX + 4


@pytest.mark.parametrize(("waiting", "lifted"), [(1, True), (2, False)])
def test_patience_lifts_all_that_fit_together_and_under_overload_only_a_part(
    waiting: int, lifted: bool
) -> None:
    paddock = paddock_with(patience_us=GPU_HOUR_US, preemption=False, lifted_percent=0)
    paddock.node_joins("n1", gpus=2, cpus=32)
    runs(paddock, shape(gpus=1))
    large = [paddock.submit(shape(gpus=2))[0] for _ in range(waiting)]
    paddock.pass_hours(1)
    [small] = paddock.submit(shape(gpus=1))
    assert (large[0] in paddock.state.claims) is lifted
    assert (paddock.state_of(small) is JobState.STARTING) is not lifted


def test_a_fallen_gang_has_nodes_kept_for_it_at_once(paddock: Paddock) -> None:
    """What is left of its room is not given away while it waits for the rest."""
    paddock.node_joins("n1", gpus=4, cpus=32)
    paddock.node_joins("n2", gpus=4, cpus=32)
    paddock.node_joins("n3", gpus=4, cpus=32)
    [gang] = paddock.submit(shape(2, gpus=4, retries=1))
    paddock.starts(gang)
    other = runs(paddock, shape(gpus=4), saves=False)
    paddock.cordon(paddock.nodes_of(gang)[1])
    paddock.rank_dies(gang, 0, code=1)
    paddock.task_ends(gang, 0, code=1)
    paddock.task_ends(gang, 1, code=-9)
    [small] = paddock.submit(shape(gpus=1))
    assert paddock.state_of(gang) is paddock.state_of(small) is JobState.QUEUED
    assert paddock.state.claims == {gang}
    paddock.finishes(other)
    assert paddock.state_of(gang) is JobState.STARTING


def test_a_fallen_gang_with_a_node_kept_takes_another_that_comes(paddock: Paddock) -> None:
    """With what it still has; nobody who comes later gets it."""
    paddock.node_joins("n1", gpus=4, cpus=32)
    paddock.node_joins("n2", gpus=4, cpus=32)
    [gang] = paddock.submit(shape(2, gpus=4, retries=1))
    paddock.starts(gang)
    paddock.node_joins("n3", gpus=4, cpus=32)
    runs(paddock, shape(gpus=4), saves=False)
    paddock.cordon("n2")
    paddock.rank_dies(gang, 0, code=1)
    paddock.task_ends(gang, 0, code=1)
    paddock.task_ends(gang, 1, code=-9)
    assert paddock.state.claims == {gang}
    [small] = paddock.submit(shape(gpus=1))
    paddock.node_joins("n4", gpus=4, cpus=32)
    assert paddock.nodes_of(gang) == ["n1", "n4"]
    assert paddock.state_of(small) is JobState.QUEUED and not paddock.state.claims


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 50)), min_size=1, max_size=7),
    st.integers(1, 4),
    st.integers(1, 3),
)
@example([(1, 3), (1, 31), (1, 31), (1, 31), (4, 32), (4, 32)], 1, 3)
def test_the_victims_are_enough_none_is_needless_and_few_are_lost(
    running: list[tuple[int, int]], gpus: int, tasks: int
) -> None:
    """Beside the best of all sets: no step of the greedy choice loses more than all of that, which would make
    room for the next task, too. (In most cases it loses as little: benchmarks/reclaim.py.)"""
    paddock = paddock_with(min_run_us=0)
    for name in ("n1", "n2", "n3"):
        paddock.node_joins(name, gpus=4, cpus=64)
    jobs = [job for size, _ in running for job in paddock.submit(shape(gpus=size))]
    placed = [job for job in jobs if paddock.state_of(job) is JobState.STARTING]
    losses = {job: loss for job, (_, loss) in zip(jobs, running, strict=True) if job in placed}
    [waiting] = paddock.submit(shape(tasks, gpus=gpus), priority=-9)
    assume(paddock.state_of(waiting) is JobState.QUEUED)
    area = frozenset(paddock.state.nodes)
    clearing = Clearing(paddock.state, paddock.job(waiting), dict(losses), area)  # type: ignore[arg-type]

    def enough(gone: set[int]) -> bool:
        rooms = dict.fromkeys(("n1", "n2", "n3"), 4)
        for job in set(placed) - gone:
            rooms[paddock.nodes_of(job)[0]] -= paddock.job(job).demand.per_task.gpus
        return sum(room // gpus for room in rooms.values()) >= tasks

    sets = [
        {job for job, goes in zip(placed, which, strict=True) if goes}
        for which in product((False, True), repeat=len(placed))
    ]
    costs = [sum(losses[job] for job in gone) for gone in sets if enough(gone)]
    assert clearing.find() == bool(costs)
    if costs:
        assert enough(set(clearing.victims))
        assert not any(enough(clearing.victims - {one}) for one in clearing.victims)
        assert sum(losses[job] for job in clearing.victims) <= tasks * min(costs)


def test_who_stands_before_says_why(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=8, cpus=32)
    long = runs(paddock, shape(gpus=8))
    paddock.pass_hours(0.5)
    [new] = paddock.submit(shape(gpus=8))
    paddock.leaves(long)
    [late] = paddock.submit(shape(gpus=8))
    [urgent] = paddock.submit(shape(gpus=8), priority=3)

    def before(other: int, job: int) -> str:
        return why_before(paddock.state, paddock.job(other), paddock.job(job), Micros(paddock.now_us))

    assert paddock.state_of(new) is JobState.STARTING
    assert before(late, long) == "0.0 GPU-hours so far, this one has had 4.0"
    assert before(urgent, late) == "priority 3, this one has 0"
    [later] = paddock.submit(shape(gpus=8))
    assert before(late, later) == "submitted earlier"
    assert before(later, late) == "room for it comes sooner"
    paddock.pass_hours(25)
    [newest] = paddock.submit(shape(gpus=8))
    assert before(long, newest) == "it has waited 25 h 0 min in all"


def test_another_policy_is_another_look(paddock: Paddock) -> None:
    """At once, though room was asked for in vain a moment ago."""
    paddock.policy_becomes(ClusterPolicy(order=replace(ORDER, preemption=False)))
    paddock.node_joins("n1", gpus=4, cpus=32)
    long = runs(paddock, shape(gpus=4))
    paddock.pass_hours(5)
    paddock.submit(shape(gpus=4), priority=9)
    assert not paddock.stops_sent(long)
    paddock.policy_becomes(ClusterPolicy(order=ORDER))
    assert paddock.stops_sent(long)


def test_without_preemption_nobody_is_stopped() -> None:
    paddock = paddock_with(preemption=False)
    paddock.node_joins("n1", gpus=4, cpus=32)
    long = runs(paddock, shape(gpus=4))
    paddock.pass_hours(5)
    paddock.submit(shape(gpus=4), priority=9)
    assert not paddock.stops_sent(long)


def test_what_nodes_could_hold_is_told_as_they_are_now(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=2)
    paddock.node_joins("n2", gpus=1)
    _, second, third = paddock.submit(*[shape(gpus=2)] * 3)
    assert "; n1 has 0 GPUs free of 2 " in reason(paddock, second) and "n2" not in reason(paddock, second)
    paddock.node_joins("n2", gpus=2)
    assert paddock.state_of(second) is JobState.STARTING
    told = paddock.why(third).reasons
    assert any("; n2 has 0 GPUs free of 2 " in one.text for one in told)
