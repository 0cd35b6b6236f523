"""What jobs used, weighted with what they held: the parts add up, and so do stretches of time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.spent import NOTHING_SPENT, Spent, spent_by
from paceline.spec.ids import Micros
from support.paddock import START_US, Paddock, shape

GPU_SECOND = 1000 * 1_000_000
"""In thousandths times microseconds."""


def story() -> tuple[Paddock, int]:
    """Placed at once, on 2 x 2 GPUs. Runs from second 10 to 40, a save copied at 20; runs again since 45."""
    paddock = Paddock()
    paddock.node_joins("n1", gpus=8)
    [job] = paddock.submit(shape(2, gpus=2, cpus=1, retries=1))
    paddock.pass_time(10)
    paddock.starts(job)
    paddock.pass_time(10)
    paddock.says(job, 0, s.Published(10, "10", "hash", staged_us=Micros(paddock.now_us)))
    paddock.pass_time(20)
    paddock.rank_dies(job, 0)
    paddock.pass_time(5)
    paddock.starts(job)
    paddock.pass_time(15)
    return paddock, job


def used(paddock: Paddock, job: int, since_s: float = -1, until_s: float | None = None) -> Spent:
    need = paddock.job(job).demand.per_task
    until_us = Micros(paddock.now_us if until_s is None else START_US + round(until_s * 1e6))
    events = [event for event in paddock.history(job) if event.at_us <= until_us]
    return spent_by(events, need, Micros(START_US + round(since_s * 1e6)), until_us)


def test_a_job_that_waits_has_used_nothing() -> None:
    paddock = Paddock()
    paddock.node_joins("n1", gpus=8)
    [job] = paddock.submit(shape(gpus=9))
    paddock.pass_time(1)
    assert used(paddock, job) == NOTHING_SPENT


def test_what_was_held_is_productive_lost_or_other() -> None:
    usage = used(*story())
    assert usage.jobs == 1
    assert usage.allocated == 60 * 4 * GPU_SECOND
    assert usage.productive == (10 + 15) * 4 * GPU_SECOND
    assert usage.lost == 20 * 4 * GPU_SECOND
    assert usage.other == (10 + 5) * 4 * GPU_SECOND, "two starts"
    assert usage.cpus == 60 * 2 * GPU_SECOND


def test_a_share_of_a_gpu_counts_as_one() -> None:
    paddock = Paddock()
    paddock.node_joins("n1", gpus=1)
    [job] = paddock.submit(shape(gpus=0.25))
    paddock.starts(job)
    paddock.pass_time(8)
    paddock.finishes(job)
    paddock.pass_time(8)
    assert used(paddock, job).allocated == used(paddock, job).productive == 2 * GPU_SECOND


def test_time_in_line_between_two_attempts_is_nobodys() -> None:
    paddock = Paddock()
    paddock.node_joins("n1", gpus=1)
    first, second = paddock.submit(shape(gpus=1), shape(gpus=1))
    paddock.starts(first)
    paddock.pass_time(10)
    paddock.finishes(first)
    assert used(paddock, second).allocated == 0
    paddock.pass_time(5)
    assert used(paddock, first).allocated == 10 * GPU_SECOND
    assert used(paddock, second).allocated == used(paddock, second).other == 5 * GPU_SECOND


STORY = story()


@given(st.floats(0, 60))
@pytest.mark.parametrize("part", ["allocated", "productive", "lost", "other", "cpus"])
def test_two_stretches_add_up_to_the_whole(part: str, at_s: float) -> None:
    paddock, job = STORY
    before, after = used(paddock, job, until_s=at_s), used(paddock, job, since_s=at_s)
    assert getattr(before, part) + getattr(after, part) == getattr(used(paddock, job), part)
