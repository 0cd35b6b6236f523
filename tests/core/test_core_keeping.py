"""Ranks that may stay up for the next attempt: when they are told to wait, and what is told of them."""

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.amounts import others_of, ranks_text
from paceline.scheduler.core.task_events import GangReformed
from paceline.scheduler.core.timeline import describe
from support.paddock import Paddock, shape


@pytest.fixture
def paddock() -> Paddock:
    made = Paddock()
    for name in ("n1", "n2", "n3"):
        made.node_joins(name)
    return made


def keeps(paddock: Paddock, job: int) -> list[int]:
    return [stop.keep_us for stop in paddock.stops_sent(job)]


def test_after_a_fall_the_others_may_wait_for_the_next_attempt(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(2, retries=3))
    paddock.starts(job)
    paddock.rank_dies(job, 1)
    assert paddock.job(job).attempt == 2
    assert keeps(paddock, job) == [paddock.state.settings.reform_us] * 2
    assert paddock.nodes_of(job) == ["n1", "n2"], "where they are"


def test_where_the_next_attempt_is_held_back_they_wait_longer(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(2, retries=3))
    for _ in range(2):
        paddock.starts(job)
        paddock.rank_dies(job, 1)
    held_us = paddock.job(job).course.held_until_us - paddock.now_us
    assert held_us > 0
    assert keeps(paddock, job)[-2:] == [paddock.state.settings.reform_us + held_us] * 2


@pytest.mark.parametrize("more", [{"retries": 0}, {"retries": 3, "exclusive": True}])
def test_no_rank_is_kept_where_none_follows_or_all_must_be_gone(
    paddock: Paddock, more: dict[str, int]
) -> None:
    [job] = paddock.submit(shape(2, **more))
    paddock.starts(job)
    paddock.rank_dies(job, 1)
    assert set(keeps(paddock, job)) == {0}


def test_no_rank_of_a_gang_that_is_cancelled_is_kept(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(2, retries=3))
    paddock.starts(job)
    paddock.cancel(job)
    assert set(keeps(paddock, job)) == {0}


def test_a_node_that_is_lost_leaves_the_others_waiting(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(2, retries=3))
    paddock.starts(job)
    paddock.goes_silent("n2")
    paddock.pass_time(5)
    assert paddock.nodes_of(job) == ["n1", "n3"]
    assert keeps(paddock, job) == [paddock.state.settings.reform_us] * 2


def test_work_that_was_kept_is_not_lost_and_can_be_lost_later(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(2, retries=5))
    paddock.starts(job)
    paddock.pass_time(30)
    paddock.rank_dies(job, 1)
    assert paddock.ledger(job).lost_us >= 30_000_000
    paddock.starts(job)
    paddock.says(job, 0, s.Reformed((1,), 2, 120, 250_000))
    kept = paddock.ledger(job)
    assert kept.lost_us == 0
    assert kept.productive_us >= 30_000_000
    [event] = [each for each in paddock.history(job) if isinstance(each, GangReformed)]
    assert describe(event) == (
        "rank 0 of 2 stayed up, rank 1 new, in 250 ms; goes on after step 120, no step repeated"
    )
    paddock.pass_time(10)
    paddock.rank_dies(job, 0)
    paddock.starts(job)
    paddock.pass_time(10)
    book = paddock.ledger(job)
    assert book.lost_us >= 40_000_000, "nobody kept it the second time"
    parts = (book.queued_us, book.starting_us, book.productive_us, book.checkpoint_us, book.lost_us)
    assert sum(parts) + book.restarting_us + book.hung_us == book.wall_us


@pytest.mark.parametrize(
    ("replaced", "size", "stayed"),
    [
        ((1,), 2, "rank 0"),
        ((0, 3), 8, "ranks 1-2, 4-7"),
        ((), 1 << 53, "ranks 0-9007199254740991"),
        ((5, 5, 2, 9), 4, "ranks 0-1, 3"),
        (tuple(range(0, 40, 2)), 40, "ranks 1, 3, 5, 7, 9, 11, 13, 15 and more"),
    ],
)
def test_who_stayed_up(replaced: tuple[int, ...], size: int, stayed: str) -> None:
    """Whatever a job's code says of itself: the text is short, and made at once."""
    assert ranks_text(others_of(replaced, size)) == stayed
