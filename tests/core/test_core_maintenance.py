"""Maintenance windows of pools: who starts before one, who leaves when it begins, who starts after it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.scheduler.core.attempt_events import AttemptStarted, PlacesClaimed, StopRequested
from paceline.scheduler.core.cluster_policy import NO_POLICY, ClusterPolicy, PoolPolicy, Window
from paceline.scheduler.core.policy_changes import policy_changes
from paceline.scheduler.core.reasons import node_reason
from paceline.scheduler.core.settings import Order, Settings
from paceline.scheduler.core.standings import pool_standings
from paceline.scheduler.core.timeline import describe
from paceline.spec.failures import FailureClass
from paceline.spec.ids import Micros, NodeId
from paceline.spec.lifecycle import JobState
from support.paddock import START_US, Paddock, shape
from support.sim_checks import picture
from support.sim_laws import state_is_sane

MINUTE = 60_000_000
LEAD_MINUTES = 10
"""How long a job runs at least before it is stopped for others: so long before a window nobody starts."""


def window(begin: float, end: float, why: str = "new drives") -> Window:
    """In minutes from the start of the paddock's clock, 1970-01-12 13:46:40 UTC."""
    return Window(START_US + round(begin * MINUTE), START_US + round(end * MINUTE), why)


def with_windows(*windows: Window) -> ClusterPolicy:
    pools = {"fast": PoolPolicy(("f*",), maintenance=windows), "rest": PoolPolicy(("r*",), default=True)}
    return ClusterPolicy(pools=pools)


@pytest.fixture
def paddock() -> Paddock:
    """No silence is long enough to lose a node."""
    made = Paddock(Settings(heartbeat_us=10**15))
    for name in ("f1", "f2", "r1"):
        made.node_joins(name, cpus=4)
    return made


def goes_on(paddock: Paddock, minutes: float) -> None:
    paddock.goes_on_until(START_US + round(minutes * MINUTE))


def running(paddock: Paddock, cpus: float = 4, pool: str = "fast", **more: object) -> int:
    [job] = paddock.submit(shape(cpus=cpus, pool=pool, **more))  # type: ignore[arg-type]
    paddock.starts(job)
    return job


def saves_and_leaves(paddock: Paddock, job: int, step: int) -> None:
    paddock.saves(job, step)
    paddock.leaves(job)


def note(paddock: Paddock, name: str) -> str:
    reason = node_reason(paddock.state, paddock.state.nodes[NodeId(name)], Micros(paddock.now_us))
    return "" if reason is None else reason.text


def test_what_runs_when_it_begins_saves_and_goes_on_when_it_ends(paddock: Paddock) -> None:
    paddock.policy_becomes(with_windows(window(60, 180)))
    job = running(paddock)
    assert paddock.nodes_of(job) == ["f1"]
    [_, ahead] = paddock.why(job).reasons
    assert ahead.text == (
        "pool fast is under maintenance from 1970-01-12 14:46:40 UTC to 1970-01-12 16:46:40 UTC "
        "(new drives), which begins in 1 h 0 min: it saves and goes on elsewhere then"
    )
    goes_on(paddock, 59)
    assert not paddock.stops_sent(job)
    goes_on(paddock, 60)
    assert [stop.grace_us for stop in paddock.stops_sent(job)] == [30_000_000]
    assert "stopping (preempted: f1 is under maintenance until 1970-01-12 16:46:40 UTC: new drives)" in (
        paddock.why(job).reasons[0].text
    )
    assert note(paddock, "f1").endswith("(new drives), 2 h 0 min more; 1 task left")
    saves_and_leaves(paddock, job, 10)
    assert paddock.state_of(job) is JobState.QUEUED
    [reason, *_] = paddock.why(job).reasons
    assert (reason.code, reason.text) == (
        "maintenance",
        "needs 1 task with 4 cpus of pool fast; 2 of 2 nodes are closed (pool fast is under maintenance "
        "until 1970-01-12 16:46:40 UTC (new drives), 2 h 0 min more): they would have room for 2 tasks",
    )
    goes_on(paddock, 179)
    assert paddock.state_of(job) is JobState.QUEUED
    goes_on(paddock, 180)
    assert paddock.nodes_of(job) == ["f1"] and paddock.job(job).attempt == 2
    assert paddock.starts_sent(job)[-1].job.course.checkpoints[0].step == 10
    assert paddock.job(job).course.retries_used == 0 and not note(paddock, "f1")
    [end] = [
        text for event in paddock.history(job) if (text := describe(event)).startswith("attempt 1 ended")
    ]
    assert "(preempted, uses no retry)" in end


def test_it_goes_on_elsewhere_where_there_is_room(paddock: Paddock) -> None:
    """Also a job of a pool of which only a part is under maintenance; a gang leaves whole."""
    pools = {"all": PoolPolicy(("*",)), "part": PoolPolicy(("f1",), maintenance=(window(60, 180),))}
    paddock.policy_becomes(ClusterPolicy(pools=pools))
    job = running(paddock, tasks=2, pool="all")
    assert paddock.nodes_of(job) == ["f1", "f2"]
    goes_on(paddock, 60)
    assert len(paddock.stops_sent(job)) == 2
    saves_and_leaves(paddock, job, 10)
    assert sorted(paddock.nodes_of(job)) == ["f2", "r1"]


def test_nobody_starts_who_would_be_stopped_before_it_has_run_its_least_time(paddock: Paddock) -> None:
    paddock.policy_becomes(with_windows(window(60, 180)))
    goes_on(paddock, 60 - LEAD_MINUTES - 1)
    first = running(paddock)
    goes_on(paddock, 60 - LEAD_MINUTES)
    [second] = paddock.submit(shape(cpus=4, pool="fast"))
    assert paddock.state_of(first) is JobState.RUNNING and paddock.state_of(second) is JobState.QUEUED
    assert note(paddock, "f2") == (
        "pool fast is under maintenance from 1970-01-12 14:46:40 UTC to 1970-01-12 16:46:40 UTC "
        "(new drives), which begins in 10 min 0 s"
    )
    [reason, *_] = paddock.why(second).reasons
    assert "2 of 2 nodes are closed (pool fast is under maintenance from" in reason.text
    paddock.finishes(first)
    assert paddock.state_of(second) is JobState.QUEUED
    goes_on(paddock, 180)
    assert paddock.nodes_of(second) == ["f1"]


def test_one_that_is_not_tried_again_after_a_preemption_ends_with_it(paddock: Paddock) -> None:
    paddock.policy_becomes(with_windows(window(60, 180)))
    job = running(paddock, retry_on=[FailureClass.NODE_LOST])
    assert paddock.why(job).reasons[-1].text.endswith(": it ends then")
    goes_on(paddock, 60)
    paddock.leaves(job)
    assert paddock.state_of(job) is JobState.FAILED


def test_a_window_that_has_begun_already_counts_at_once_and_may_be_called_off(paddock: Paddock) -> None:
    job = running(paddock, pool="")
    paddock.policy_becomes(with_windows(window(-10, 60, "")))
    [stop] = [event for event in paddock.history(job) if isinstance(event, StopRequested)]
    assert stop.stop.why == "f1 is under maintenance until 1970-01-12 14:46:40 UTC" and not stop.stop.by
    paddock.policy_becomes(with_windows())
    other = running(paddock)
    assert paddock.nodes_of(other) == ["f2"] and not paddock.state.closed


def test_one_that_is_over_is_no_matter(paddock: Paddock) -> None:
    paddock.policy_becomes(with_windows(window(-60, -10)))
    job = running(paddock)
    assert not paddock.stops_sent(job) and len(paddock.why(job).reasons) == 1


def test_nodes_that_were_kept_for_a_job_are_kept_no_longer(paddock: Paddock) -> None:
    """Else others would wait for it through the whole window."""
    paddock.policy_becomes(with_windows(window(60, 180)))
    running(paddock)
    running(paddock)
    goes_on(paddock, 60 - LEAD_MINUTES - 0.1)
    [high] = paddock.submit(shape(cpus=4, pool="fast"), priority=9)
    assert paddock.state.jobs[high].course.claim is not None  # type: ignore[index]
    goes_on(paddock, 60 - LEAD_MINUTES)
    assert not paddock.state.claimed and paddock.state_of(high) is JobState.QUEUED
    assert "f1 takes no work now" in describe(paddock.history(high)[-1])


def test_a_scheduler_that_was_away_when_it_began_tells_them_late(paddock: Paddock) -> None:
    paddock.policy_becomes(with_windows(window(60, 180)))
    job = running(paddock)
    paddock.now_us = START_US + 70 * MINUTE
    paddock.scheduler_restarts()
    paddock.node_joins("f1", *(start.key for start in paddock.starts_sent(job)))
    assert len(paddock.stops_sent(job)) >= 1
    assert paddock.job(job).course.stop is not None


def test_nothing_is_due_between_its_bounds(paddock: Paddock) -> None:
    """Timers wake the loop for a window's three moments, and never in between."""
    paddock.policy_becomes(with_windows(window(60, 180)))
    seen = []
    while (due_us := paddock.engine.next_due_us()) is not None and due_us < START_US + 10_000 * MINUTE:
        seen.append((due_us - START_US) / MINUTE)
        paddock.pass_time((due_us - paddock.now_us) / 1e6, step_s=1e9)
    assert seen == [60 - LEAD_MINUTES, 60, 180]


def test_what_is_told_of_the_pool(paddock: Paddock) -> None:
    policy = with_windows(window(60, 180))
    paddock.policy_becomes(policy)
    assert (
        "pool fast: new, nodes f*, maintenance 1970-01-12 14:46:40 UTC to 1970-01-12 16:46:40 UTC "
        in (policy_changes(NO_POLICY, policy)[0])
    )
    assert [pool.cpu_milli_free for pool in pool_standings(paddock.state)] == [8000, 4000]
    goes_on(paddock, 100)
    assert [pool.cpu_milli_free for pool in pool_standings(paddock.state)] == [0, 4000]


windows = st.lists(
    st.tuples(st.integers(0, 200), st.integers(1, 60)).map(lambda one: window(one[0], one[0] + one[1])),
    max_size=3,
)
moves = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 3), st.sampled_from(["fast", "rest"]), st.integers(-1, 1)),
    st.tuples(st.just("leave"), st.integers(0, 20)),
    st.tuples(st.just("time"), st.integers(1, 40)),
    st.tuples(st.just("policy"), windows),
)


@settings(max_examples=60, deadline=None)
@given(windows, st.lists(moves, max_size=30), st.sampled_from([0, 10]))
def test_no_window_is_ever_in_the_way_and_history_leads_to_the_same(
    first: list[Window], told: list[tuple[str, object]], lead_minutes: int
) -> None:
    """Nobody starts on a closed node, whoever runs on one whose window has begun is leaving."""
    order = Order(min_run_us=lead_minutes * MINUTE)
    paddock = Paddock(Settings(order=order, heartbeat_us=10**15))
    for name in ("f1", "f2", "r1"):
        paddock.node_joins(name, cpus=4)
    paddock.policy_becomes(with_windows(*first))
    for move in told:
        match move:
            case ("submit", int(tasks), str(pool), int(priority)):
                for job in paddock.submit(shape(tasks, cpus=2, pool=pool), priority=priority):
                    if paddock.state_of(job) is JobState.STARTING:
                        paddock.starts(job)
            case ("leave", int(at)):
                placed = sorted(paddock.state.placed)
                if placed:
                    job = placed[at % len(placed)]
                    paddock.leaves(job) if paddock.job(job).course.stop else paddock.finishes(job)
            case ("time", int(minutes)):
                goes_on(paddock, (paddock.now_us - START_US) / MINUTE + minutes)
            case ("policy", list(changed)):
                paddock.policy_becomes(with_windows(*changed))
        state_is_sane(paddock.state)
        leaves_what_is_under_maintenance(paddock)
    assert picture(paddock.state) == picture(paddock.replayed())
    starts_where_it_is_open(paddock, order.min_run_us)


def leaves_what_is_under_maintenance(paddock: Paddock) -> None:
    windows = paddock.state.policy.pools["fast"].maintenance
    if any(one.from_us <= paddock.now_us < one.to_us for one in windows):
        for job in paddock.state.jobs.values():
            there = job.placed and any(task.node.startswith("f") for task in job.tasks)
            assert not there or job.course.stop is not None, f"job {job.number} stays"


def starts_where_it_is_open(paddock: Paddock, lead_us: int) -> None:
    windows: tuple[Window, ...] = ()
    for event in paddock.history():
        policy = getattr(event, "policy", None)
        if isinstance(policy, ClusterPolicy):
            windows = policy.pools["fast"].maintenance
        nodes = [place.node for place in event.places] if isinstance(event, AttemptStarted) else []
        nodes = list(event.nodes) if isinstance(event, PlacesClaimed) else nodes
        closed = any(one.from_us - lead_us <= event.at_us < one.to_us for one in windows)
        assert not closed or not any(name.startswith("f") for name in nodes), f"{event} in a window"
