"""Reservations: which nodes, who starts there and when, who leaves when one begins, and what is said."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.scheduler.core.cluster_policy import (
    NO_POLICY,
    ClusterPolicy,
    PoolPolicy,
    QueuePolicy,
    Reservation,
    Window,
)
from paceline.scheduler.core.policy_changes import policy_changes
from paceline.scheduler.core.settings import Order, Settings
from paceline.scheduler.core.standings import pool_standings
from paceline.spec.errors import InvalidRequest, NotFound
from paceline.spec.ids import NodeId
from paceline.spec.lifecycle import JobState
from support.paddock import START_US, Paddock, shape
from support.sim_checks import picture
from support.sim_laws import state_is_sane

MINUTE = 60_000_000
LEAD_MINUTES = 10


def kept(begin: float, end: float, nodes: int = 2, users: tuple[str, ...] | None = ("ann",)) -> Reservation:
    """In minutes from the start of the paddock's clock, 1970-01-12 13:46:40 UTC."""
    from_us, to_us = (START_US + round(minutes * MINUTE) for minutes in (begin, end))
    return Reservation(from_us, to_us, nodes, users)


def with_reservations(**reservations: Reservation) -> ClusterPolicy:
    return ClusterPolicy(pools={"fast": PoolPolicy(("f*",), reservations=reservations, default=True)})


@pytest.fixture
def paddock() -> Paddock:
    """Three nodes for one task each; no silence is long enough to lose one."""
    made = Paddock(Settings(heartbeat_us=10**15))
    for name in ("f3", "f1", "f2"):
        made.node_joins(name, cpus=4)
    return made


def goes_on(paddock: Paddock, minutes: float) -> None:
    paddock.goes_on_until(START_US + round(minutes * MINUTE))


def submitted(paddock: Paddock, pool: str = "fast", *, user: str = "ann", tasks: int = 1) -> int:
    [job] = paddock.submit(shape(tasks, cpus=4, pool=pool), user=user)
    if paddock.state_of(job) is JobState.STARTING:
        paddock.starts(job)
    return job


def test_who_runs_there_leaves_when_it_begins_and_only_its_jobs_start(paddock: Paddock) -> None:
    paddock.policy_becomes(with_reservations(exam=kept(60, 120)))
    others = [submitted(paddock, user="bob") for _ in range(3)]
    [mine] = [submitted(paddock, "fast/exam")]
    assert paddock.state_of(mine) is JobState.QUEUED
    [reason] = paddock.why(mine).reasons
    assert not paddock.why(mine).never and (reason.code, reason.text) == (
        "reservation-ahead",
        "waits for its reservation of 2 nodes: fast/exam (users ann) from 1970-01-12 14:46:40 UTC to "
        "1970-01-12 15:46:40 UTC, which begins in 1 h 0 min",
    )
    assert paddock.why(others[0]).reasons[-1].text == (
        "f1 is reserved as fast/exam (users ann) from 1970-01-12 14:46:40 UTC to 1970-01-12 15:46:40 UTC, "
        "which begins in 1 h 0 min: it saves and goes on elsewhere then"
    )
    goes_on(paddock, 60)
    assert [len(paddock.stops_sent(job)) for job in others] == [1, 1, 0]
    for job in others[:2]:
        paddock.saves(job, 10)
        paddock.leaves(job)
    assert paddock.nodes_of(mine) == ["f1"] and {paddock.state_of(job) for job in others[:2]} == {
        JobState.QUEUED
    }, "though f2 is free"
    [reason, *_] = paddock.why(others[1]).reasons
    assert (
        "2 of 3 nodes are reserved as fast/exam (users ann) until 1970-01-12 15:46:40 UTC, 1 h 0 min more: "
        "they would have room for 2 tasks"
    ) in reason.text
    paddock.starts(mine)
    goes_on(paddock, 120)
    assert paddock.state_of(mine) is JobState.RUNNING, "it goes on when the span is over"
    assert paddock.nodes_of(others[1]) == ["f2"] and not paddock.stops_sent(mine)


def test_nobody_else_starts_there_shortly_before(paddock: Paddock) -> None:
    paddock.policy_becomes(with_reservations(exam=kept(60, 120)))
    goes_on(paddock, 60 - LEAD_MINUTES)
    assert paddock.nodes_of(submitted(paddock, user="bob")) == ["f3"]
    assert paddock.state_of(submitted(paddock, user="bob")) is JobState.QUEUED
    mine = submitted(paddock, "fast/exam", tasks=2)
    assert paddock.state_of(mine) is JobState.QUEUED
    goes_on(paddock, 60)
    assert paddock.nodes_of(mine) == ["f1", "f2"]


def test_one_that_was_not_there_in_time_goes_on_as_any_of_the_pool(paddock: Paddock) -> None:
    paddock.policy_becomes(with_reservations(exam=kept(0, 60, 1)))
    first, late = submitted(paddock, "fast/exam"), submitted(paddock, "fast/exam")
    assert paddock.state_of(late) is JobState.QUEUED, "the two free nodes are not its"
    goes_on(paddock, 60)
    assert paddock.nodes_of(late) == ["f2"] and paddock.state_of(first) is JobState.RUNNING


def test_who_may_not_or_is_late_is_refused(paddock: Paddock) -> None:
    both = ClusterPolicy(
        {"prod": QueuePolicy()},
        pools={
            "fast": PoolPolicy(
                ("f*",),
                reservations={
                    "exam": kept(0, 60),
                    "over": kept(-60, 0),
                    "prod": Reservation(0, START_US + MINUTE, 1, None, ("prod",)),
                },
            )
        },
    )
    paddock.policy_becomes(both)
    with pytest.raises(InvalidRequest, match="reservation fast/exam is for ann; not for bob"):
        submitted(paddock, "fast/exam", user="bob")
    with pytest.raises(
        InvalidRequest, match="reservation fast/prod is for the queues prod; not for the root"
    ):
        submitted(paddock, "fast/prod")
    with pytest.raises(InvalidRequest, match="fast/over is over since 1970-01-12 13:46:40 UTC"):
        submitted(paddock, "fast/over")
    with pytest.raises(NotFound, match="there is no reservation fast/exams") as refused:
        submitted(paddock, "fast/exams")
    assert refused.value.hint == "did you mean fast/exam?"
    with pytest.raises(NotFound, match="there is no pool fst"):
        submitted(paddock, "fst/exam")


def test_reservations_share_the_nodes_by_time(paddock: Paddock) -> None:
    """Two at one time have nodes of their own; one after the other may have the same."""
    policy = with_reservations(a=kept(60, 120, 2), b=kept(90, 150, 2), c=kept(120, 180, 2))
    paddock.policy_becomes(policy)
    assert paddock.state.assigned == {"fast/a": ("f1", "f2"), "fast/b": ("f3",), "fast/c": ("f1", "f2")}
    mine = submitted(paddock, "fast/a")
    goes_on(paddock, 119)
    paddock.starts(mine)
    goes_on(paddock, 120)
    assert paddock.stops_sent(mine), "the next one begins"
    [pool] = pool_standings(paddock.state)
    assert pool.reserved == {"a": ("f1", "f2"), "b": ("f3",), "c": ("f1", "f2")} and pool.waiting == 0


def test_a_node_that_is_cordoned_is_replaced_and_one_that_is_silent_is_not(paddock: Paddock) -> None:
    paddock.policy_becomes(with_reservations(exam=kept(60, 120)))
    assert paddock.state.assigned["fast/exam"] == ("f1", "f2")
    paddock.drain("f1")
    assert paddock.state.assigned["fast/exam"] == ("f2", "f3")
    paddock.node_joins("f0", cpus=4)
    assert paddock.state.assigned["fast/exam"] == ("f0", "f2")
    paddock.uncordon("f1")
    assert paddock.state.assigned["fast/exam"] == ("f0", "f1")
    paddock.scheduler_restarts()
    assert paddock.state.assigned["fast/exam"] == ("f0", "f1"), "all are silent now"


def test_a_maintenance_goes_before_it(paddock: Paddock) -> None:
    pool = PoolPolicy(
        ("f*",),
        maintenance=(Window(START_US + 60 * MINUTE, START_US + 70 * MINUTE),),
        reservations={"exam": kept(60, 120)},
    )
    paddock.policy_becomes(ClusterPolicy(pools={"fast": pool}))
    mine = submitted(paddock, "fast/exam")
    goes_on(paddock, 69)
    assert paddock.state_of(mine) is JobState.QUEUED and paddock.why(mine).reasons[0].code == "maintenance"
    goes_on(paddock, 70)
    assert paddock.nodes_of(mine) == ["f1"]


def test_it_may_be_called_off_while_jobs_wait_for_it(paddock: Paddock) -> None:
    paddock.policy_becomes(with_reservations(exam=kept(60, 120)))
    mine = submitted(paddock, "fast/exam")
    paddock.policy_becomes(with_reservations())
    assert paddock.nodes_of(mine) == ["f1"]
    assert (
        "reservations exam (users ann) of 2 from 1970-01-12 14:46:40 UTC to"
        in (policy_changes(NO_POLICY, with_reservations(exam=kept(60, 120)))[0])
    )


def test_who_waits_for_one_keeps_no_gang_from_growing(paddock: Paddock) -> None:
    paddock.policy_becomes(with_reservations(exam=kept(600, 1200)))
    submitted(paddock, "fast/exam")
    [gang] = paddock.submit(shape(2, least=1, cpus=4, pool="fast"))
    assert len(paddock.nodes_of(gang)) == 2 and not paddock.state.queue.waits


reservations = st.dictionaries(
    st.sampled_from("abc"),
    st.tuples(st.integers(0, 120), st.integers(1, 60), st.integers(1, 3)).map(
        lambda one: kept(one[0], one[0] + one[1], one[2])
    ),
    max_size=3,
)
moves = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 2), st.sampled_from(["fast", "fast/a", "fast/b", ""])),
    st.tuples(st.just("leave"), st.integers(0, 20)),
    st.tuples(st.just("time"), st.integers(1, 40)),
    st.tuples(st.just("policy"), reservations),
    st.tuples(st.just("join"), st.sampled_from(["f0", "f4"])),
    st.tuples(st.just("cordon"), st.sampled_from(["f1", "f2"])),
    st.tuples(st.just("uncordon"), st.sampled_from(["f1", "f2"])),
)


@settings(max_examples=80, deadline=None)
@given(reservations, st.lists(moves, max_size=30), st.sampled_from([0, 10]))
def test_nobody_is_where_another_has_reserved_and_history_leads_to_the_same(
    first: dict[str, Reservation], told: list[tuple[str, object]], lead_minutes: int
) -> None:
    """Whoever runs on a node that another's reservation has is leaving."""
    paddock = Paddock(Settings(order=Order(min_run_us=lead_minutes * MINUTE), heartbeat_us=10**15))
    for name in ("f1", "f2", "f3"):
        paddock.node_joins(name, cpus=4)
    paddock.policy_becomes(with_reservations(**first))
    for move in told:
        match move:
            case ("submit", int(tasks), str(pool)):
                try:
                    [job] = paddock.submit(shape(tasks, cpus=2, pool=pool), user="ann")
                except (InvalidRequest, NotFound):
                    continue
                if paddock.state_of(job) is JobState.STARTING:
                    paddock.starts(job)
            case ("leave", int(at)):
                placed = sorted(paddock.state.placed)
                if placed:
                    job = placed[at % len(placed)]
                    paddock.leaves(job) if paddock.job(job).course.stop else paddock.finishes(job)
            case ("time", int(minutes)):
                goes_on(paddock, (paddock.now_us - START_US) / MINUTE + minutes)
            case ("policy", dict(changed)):
                paddock.policy_becomes(with_reservations(**changed))
            case ("join", str(name)):
                paddock.node_joins(name, cpus=4)
            case ("cordon", str(name)):
                paddock.cordon(name)
            case ("uncordon", str(name)):
                paddock.uncordon(name)
        state_is_sane(paddock.state)
        nobody_intrudes(paddock)
    assert picture(paddock.state) == picture(paddock.replayed())


def nobody_intrudes(paddock: Paddock) -> None:
    state = paddock.state
    for job in (job for job in state.jobs.values() if job.placed and job.course.stop is None):
        for task in job.tasks:
            asked = state.reserved.get(NodeId(task.node))
            begun = asked is not None and state.spans[asked]
            assert not begun or job.demand.pool == asked, f"job {job.number} stays on {task.node} of {asked}"
