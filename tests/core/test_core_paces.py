"""Slow ranks: what is one, when it is told, and what follows by policy."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.pace import RankPace
from paceline.scheduler.core.paces import is_slow, own_us, pace_lines
from paceline.scheduler.core.progress_events import StragglerFound
from paceline.scheduler.core.settings import Settings
from paceline.spec.lifecycle import JobState
from support.paddock import Paddock, shape

MS = 1000


def gang(paddock: Paddock, tasks: int = 4) -> int:
    for at in range(tasks):
        paddock.node_joins(f"n{at}", cpus=1)
    [job] = paddock.submit(shape(tasks, cpus=1))
    paddock.starts(job)
    return job


def window(paddock: Paddock, job: int, waits: Sequence[float], step_ms: int = 100) -> None:
    """All steps are as long as the slowest's; each rank waits for the others for its share of it."""
    paddock.pass_time(30, step_s=1)
    for task, share in enumerate(waits):
        pace = RankPace(task, step_ms * MS, compute=1 - share, peers=share)
        paddock.says(job, task, s.Paced((pace,)))


def found(paddock: Paddock, job: int) -> list[StragglerFound]:
    return [event for event in paddock.history(job) if isinstance(event, StragglerFound)]


def test_a_rank_that_is_slow_again_and_again_is_told_and_then_ever_less() -> None:
    paddock = Paddock()
    job = gang(paddock)
    for number in range(1, 14):  # the first has no peers to be compared with yet
        window(paddock, job, (0.5, 0.55, 0.0, 0.5))
        assert len(found(paddock, job)) == sum(number >= at for at in (4, 7, 13))
    first = found(paddock, job)[0]
    assert (first.ranks, first.node) == ((2,), "n2")
    assert first.text == (
        "rank 2 on n2 is slow: 100 ms of its own a step, its peers 50 ms (median of 3), in 3 windows in a row"
    )
    lines = pace_lines(paddock.state, paddock.job(job))
    assert lines[0] == "100 ms a step: 50% computing, 50% waiting for peers, 0% for data"
    assert lines[1].startswith("rank 2 on n2 is slow") and len(lines) == 2
    assert not paddock.state.resting, "reports alone drain nothing"


def test_one_slow_window_or_two_are_no_news() -> None:
    paddock = Paddock()
    job = gang(paddock)
    for _ in range(3):
        window(paddock, job, (0.5, 0.5, 0.0, 0.5))
        window(paddock, job, (0.5, 0.5, 0.0, 0.5))
        window(paddock, job, (0.5, 0.5, 0.5, 0.5))
    assert not found(paddock, job)


def test_nothing_is_said_before_all_have_told() -> None:
    paddock = Paddock()
    job = gang(paddock)
    for _ in range(5):
        window(paddock, job, (0.5, 0.5, 0.0))
    assert not found(paddock, job)


def test_a_new_attempt_begins_without_a_past() -> None:
    paddock = Paddock()
    job = gang(paddock)
    for _ in range(2):
        window(paddock, job, (0.5, 0.5, 0.0, 0.5))
    paddock.task_ends(job, 1, -9, "lease ran out")
    assert paddock.job(job).attempt == 2 and not paddock.state.paces
    paddock.starts(job)
    window(paddock, job, (0.5, 0.5, 0.0, 0.5))
    assert not found(paddock, job)


def test_by_policy_its_node_is_drained_for_new_gangs_for_a_while() -> None:
    paddock = Paddock(Settings(straggler_reports_max=2, straggler_drain_us=600_000_000))
    job = gang(paddock, tasks=3)
    for _ in range(6):
        window(paddock, job, (0.5, 0.5, 0.0))
    assert paddock.state.resting == {"n2"}
    assert paddock.state_of(job) is JobState.RUNNING, "what runs there goes on"
    for task in range(3):
        paddock.task_ends(job, task)
    [next_job] = paddock.submit(shape(3, cpus=1))
    assert paddock.state_of(next_job) is JobState.QUEUED
    assert "n2 is drained for 10 min 0 s more: in report 2 on it" in paddock.why(next_job).reasons[0].text
    paddock.pass_time(601, step_s=1)
    assert paddock.state_of(next_job) is JobState.STARTING
    assert paddock.replayed().nodes["n2"].slow_us == ()  # type: ignore[index]


@pytest.mark.parametrize(("hours", "drained"), [(23, True), (25, False)])
def test_reports_older_than_a_day_do_not_count(hours: int, drained: bool) -> None:
    paddock = Paddock(Settings(straggler_reports_max=2, heartbeat_us=86_400_000_000))
    for _ in range(2):
        job = gang(paddock, tasks=3)
        for _ in range(4):
            window(paddock, job, (0.5, 0.5, 0.0))
        assert len(found(paddock, job)) == 1
        if not paddock.state.resting:
            for task in range(3):
                paddock.task_ends(job, task)
            paddock.pass_hours(hours)
    assert paddock.state.resting == ({"n2"} if drained else set())
    slow_us = paddock.state.nodes["n2"].slow_us  # type: ignore[index]
    assert len(slow_us) == (0 if drained else 1)
    assert paddock.replayed().nodes["n2"].slow_us == slow_us  # type: ignore[index]


@pytest.mark.parametrize(
    ("one", "peers", "slow"),
    [
        (100, [100], False),
        (151, [100], True),
        (149, [100], False),
        (200, [100, 100, 100], True),
        (200, [100, 110, 250, 260, 90], False),
        (1000, [100, 110, 250, 260, 90], True),
        (100, [], False),
    ],
)
def test_what_is_slow(one: float, peers: list[float], slow: bool) -> None:
    assert is_slow(one, peers) is slow


@given(st.lists(st.floats(1, 1e9), min_size=2, max_size=30))
def test_at_most_half_of_a_gang_is_slow(values: list[float]) -> None:
    slow = [at for at, one in enumerate(values) if is_slow(one, values[:at] + values[at + 1 :])]
    assert len(slow) <= len(values) / 2


def test_where_shares_cannot_be_measured_the_whole_step_counts() -> None:
    paces = {0: RankPace(0, 100), 1: RankPace(1, 100, compute=0.25, peers=0.75)}
    assert own_us(paces) == {0: 100, 1: 25}


def test_where_only_the_data_is_measured_others_wait_for_the_rank_that_has_it_last() -> None:
    paddock = Paddock()
    job = gang(paddock)
    for _ in range(4):
        paddock.pass_time(30, step_s=1)
        for task, share in enumerate((0.1, 0.12, 0.7, 0.1)):
            paddock.says(job, task, s.Paced((RankPace(task, 100 * MS, data=share),)))
    [first] = found(paddock, job)
    assert first.text == (
        "rank 2 on n2 is slow: 100 ms of its own a step, its peers 40 ms (median of 3), in 3 windows in a row"
    )
    assert pace_lines(paddock.state, paddock.job(job))[0] == "100 ms a step: 11% waiting for data"
