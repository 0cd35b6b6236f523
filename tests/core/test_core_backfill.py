"""Jobs run on nodes that are kept for another one until that one can have them: one short story per rule.

Nobody has run before in these stories. So who has run for an hour is expected to run for another one, and who
has not run yet for less than nine hours at odds of nine to one; both never longer than its limits.timeout.
"""

import pytest
from paceline.scheduler.core.attempt_events import AttemptStarted
from paceline.scheduler.core.cluster_policy import ClusterPolicy
from paceline.scheduler.core.job import Loan
from paceline.scheduler.core.settings import GPU_HOUR_US, SECOND_US, Order
from paceline.scheduler.core.timeline import describe
from paceline.scheduler.trace import Arrival, Replay
from paceline.spec.failures import FailureClass
from paceline.spec.ids import JobId, Micros
from paceline.spec.lifecycle import JobState
from support.paddock import Paddock, shape
from support.sim_laws import state_is_sane

from .test_core_order import ORDER, paddock_with, reason, runs

HOUR_S = 3600


def with_nodes_kept(*, preemption: bool, others: int = 0) -> tuple[Paddock, int, int]:
    """n1 has two GPUs: one is held by a job that has run for an hour, and for the other, large one, which has
    waited as long, all of n1 is kept. Who holds n1, and the large one. `others`: nodes with one GPU."""
    long = 100 * GPU_HOUR_US  # nobody is stopped by the other rules
    paddock = paddock_with(
        patience_us=GPU_HOUR_US, preemption=preemption, lifted_percent=100, min_run_us=long
    )
    paddock.node_joins("n1", gpus=2, cpus=32)
    holder = runs(paddock, shape(gpus=1))
    [large] = paddock.submit(shape(gpus=2))
    for at in range(others):
        paddock.node_joins(f"m{at}", gpus=1, cpus=32)
    paddock.pass_hours(1)
    [asks] = paddock.submit(shape(gpus=3))  # so that the line is looked at
    paddock.cancel(asks)
    assert paddock.state.claims == {large}
    return paddock, holder, large


def has_run_four_times(paddock: Paddock, *, seconds: float) -> None:
    """A job of that name, one after the other on a node that goes again."""
    paddock.node_joins("n2", gpus=1, cpus=32)
    for _ in range(4):
        earlier = runs(paddock, shape(gpus=1, cpus=2), saves=False)
        assert paddock.nodes_of(earlier) == ["n2"]
        paddock.pass_time(seconds, step_s=seconds)
        paddock.finishes(earlier)
    paddock.cordon("n2")


def in_hours(paddock: Paddock, hours: float) -> Micros:
    return Micros(paddock.now_us + round(hours * GPU_HOUR_US))


@pytest.mark.parametrize("preemption", [True, False])
def test_who_will_be_gone_in_time_runs_on_kept_nodes(preemption: bool) -> None:
    paddock, holder, large = with_nodes_kept(preemption=preemption)
    until_us = in_hours(paddock, 1)
    [short] = paddock.submit(shape(gpus=1, timeout_s=HOUR_S - 1))
    assert paddock.nodes_of(short) == ["n1"]
    assert paddock.job(short).course.loan == Loan(JobId(large), until_us)
    [placed] = [event for event in paddock.history(short) if isinstance(event, AttemptStarted)]
    assert describe(placed) == (
        "attempt 1 placed on n1 (task 0, GPUs 1); on nodes that are kept for job "
        f"{large}, which is expected to have them in 1 h 0 min"
    )
    assert reason(paddock, large) == (
        f"n1 is kept for it since 0 ms: it starts when enough of what job {holder}, job {short} hold there "
        "is freed"
    )
    state_is_sane(paddock.state)
    paddock.scheduler_restarts()
    assert paddock.job(short).course.loan == Loan(JobId(large), until_us)


@pytest.mark.parametrize(
    ("limit_s", "text"),
    [
        (HOUR_S + 60, "it would have 1 h 0 min, and may take 1 h 1 min (at odds of nine to one)"),
        (0, "it would have 1 h 0 min, and may take 9 h 0 min (at odds of nine to one)"),
    ],
)
def test_who_may_take_longer_waits_and_is_told_why(limit_s: int, text: str) -> None:
    paddock, _, large = with_nodes_kept(preemption=True)
    [job] = paddock.submit(shape(gpus=1, timeout_s=limit_s))
    assert paddock.state_of(job) is JobState.QUEUED
    said = {one.code: one for one in paddock.why(job).reasons}
    assert said["too-long"].text == f"on the nodes that are kept for job {large} {text}"


@pytest.mark.parametrize(
    ("preemption", "retry_on"), [(False, (FailureClass.PREEMPTED,)), (True, (FailureClass.NODE_LOST,))]
)
def test_who_could_not_be_told_to_leave_needs_a_limit(
    preemption: bool, retry_on: tuple[FailureClass, ...]
) -> None:
    paddock, *_ = with_nodes_kept(preemption=preemption)
    [endless] = paddock.submit(shape(gpus=1, retry_on=retry_on))
    assert paddock.state_of(endless) is JobState.QUEUED
    assert "no-limit" in [one.code for one in paddock.why(endless).reasons]
    [short] = paddock.submit(shape(gpus=1, retry_on=retry_on, timeout_s=HOUR_S / 2))
    paddock.goes_on_until(paddock.now_us + ORDER.review_us)
    assert paddock.nodes_of(short) == ["n1"], "though it stands behind the other"


def test_by_its_history_it_needs_no_limit() -> None:
    paddock, *_ = with_nodes_kept(preemption=True)
    has_run_four_times(paddock, seconds=600)
    [again] = paddock.submit(shape(gpus=1))
    assert paddock.nodes_of(again) == ["n1"]


def test_who_is_still_there_when_the_others_have_left_is_told_to_leave() -> None:
    paddock, holder, large = with_nodes_kept(preemption=True)
    has_run_four_times(paddock, seconds=60)
    short = runs(paddock, shape(gpus=1))
    loan = paddock.job(short).course.loan
    assert loan is not None
    paddock.goes_on_until(loan.until_us + GPU_HOUR_US)
    assert not paddock.stops_sent(short), "nobody would gain by it"
    paddock.finishes(holder)
    stop = paddock.job(short).course.stop
    assert stop is not None
    assert stop.why == f"its nodes are kept for job {large}, which can have them all now"
    paddock.leaves(short)
    assert paddock.nodes_of(large) == ["n1"]
    assert paddock.state_of(short) is JobState.QUEUED and paddock.job(short).course.gave_way_to == large
    state_is_sane(paddock.state)


def test_who_may_not_be_told_is_waited_for_and_nobody_comes_after_it() -> None:
    """The one that it waits for is ended by its limit, within the hour that was expected of the holder."""
    paddock, holder, large = with_nodes_kept(preemption=False)
    lent = runs(paddock, shape(gpus=1, timeout_s=HOUR_S - 60))
    over_us = in_hours(paddock, (HOUR_S - 60) / HOUR_S)
    paddock.pass_time(60, step_s=60)
    paddock.finishes(holder)
    [late] = paddock.submit(shape(gpus=1, timeout_s=HOUR_S))
    assert paddock.state_of(late) is JobState.QUEUED
    assert not paddock.stops_sent(lent) and paddock.state_of(large) is JobState.QUEUED
    paddock.goes_on_until(over_us)
    assert [stop.why for stop in paddock.stops_sent(lent)] == ["timed-out"]
    paddock.leaves(lent)
    assert paddock.nodes_of(large) == ["n1"]


def test_a_gang_may_be_on_kept_nodes_and_on_others() -> None:
    paddock, *_ = with_nodes_kept(preemption=False, others=1)
    [gang] = paddock.submit(shape(2, gpus=1, timeout_s=60))
    assert sorted(paddock.nodes_of(gang)) == ["m0", "n1"]
    state_is_sane(paddock.state)


def test_nodes_that_others_are_leaving_are_lent_to_nobody() -> None:
    paddock = paddock_with()
    paddock.node_joins("n1", gpus=8, cpus=32)
    low = runs(paddock, shape(gpus=4))
    paddock.pass_hours(0.5)
    paddock.submit(shape(gpus=8), priority=1)
    assert paddock.stops_sent(low)
    [short] = paddock.submit(shape(gpus=1, timeout_s=1))
    assert paddock.state_of(short) is JobState.QUEUED


def replayed(*, preemption: bool) -> tuple[float, list[float]]:
    """In seconds: when a gang of all eight GPUs starts that came at 0:05, and all starts of the jobs of a
    minute, of which four come in each. One with four GPUs runs for two hours from 0:00."""
    long, gang = Arrival(0, 2 * HOUR_S, 1, 4, name="long"), Arrival(300, 600, 2, 4, name="gang")
    stream = [Arrival(15 * at, 60, 1, 1, name="short") for at in range(1, 4 * 130)]
    jobs = sorted([long, gang, *stream], key=lambda job: job.submit_s)
    order = Order(patience_us=GPU_HOUR_US, preemption=preemption, min_run_us=100 * GPU_HOUR_US)
    replay = Replay(jobs, nodes=2, gpus=4, policy=ClusterPolicy(order=order))
    while replay.advance():
        pass
    started_us = replay.rehearsal.course.started_us
    starts = {number: started_us[JobId(number)] / SECOND_US for number in range(1, len(jobs) + 1)}
    [large] = [starts[at] for at, job in enumerate(jobs, 1) if job is gang]
    return large, [starts[at] for at, job in enumerate(jobs, 1) if job.name == "short"]


def test_short_jobs_go_on_while_nodes_are_kept_and_the_gang_waits_no_longer_for_them() -> None:
    """Its patience is over at 1:05, and who runs for two hours is over at 2:00. Without preemption short jobs
    have no limits here, and are not let in."""
    large, shorts = replayed(preemption=False)
    assert 2 * HOUR_S <= large <= 2 * HOUR_S + 61
    assert not any(HOUR_S + 301 < at < 2 * HOUR_S for at in shorts)
    lent_large, lent_shorts = replayed(preemption=True)
    assert lent_large <= large + 61
    assert sum(HOUR_S + 301 < at < 2 * HOUR_S for at in lent_shorts) > 60
