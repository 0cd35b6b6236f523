"""Nobody waits for ever. Of one line, the longest wait of a job is

    patience + the run times of all that came before it + the longest run time of all + the pit stops

whatever comes after it, and though nobody says how long jobs run. What came before may have to run one after
the other; then nodes are kept for it, where the last may have just begun. (Between queues fair shares see to
it: test_core_fair.py.)
"""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.scheduler.core.cluster_policy import ClusterPolicy
from paceline.scheduler.core.settings import SECOND_US, Order
from paceline.scheduler.rehearsal import PIT_STOP
from paceline.scheduler.trace import Arrival, Replay
from paceline.spec.ids import JobId

NODES, GPUS = 2, 4
PATIENCE_S = 1800
PIT_STOP_S = (PIT_STOP.save_us + PIT_STOP.restart_us) / SECOND_US

arrivals = st.builds(
    Arrival,
    submit_s=st.integers(0, 7200),
    duration_s=st.integers(60, 3600),
    tasks=st.integers(1, NODES),
    gpus=st.integers(1, GPUS),
)


def waits_s(jobs: Sequence[Arrival], order: Order) -> tuple[list[float], int]:
    """From each job's submission to its first start; how often one was stopped."""
    replay = Replay(jobs, NODES, GPUS, policy=ClusterPolicy(order=order))
    while replay.advance():
        pass
    course = replay.rehearsal.course
    assert len(course.ended_us) == len(jobs)
    waited = [
        course.started_us[JobId(number)] / SECOND_US - job.submit_s for number, job in enumerate(jobs, 1)
    ]
    return waited, len(course.stops)


def longest_s(jobs: Sequence[Arrival], at: int, stops: int) -> float:
    """The wait of the `at`-th."""
    before = sum(job.duration_s for job in jobs[:at])
    return PATIENCE_S + before + max(job.duration_s for job in jobs) + stops * PIT_STOP_S


@settings(max_examples=60, deadline=None)
@given(st.lists(arrivals, min_size=1, max_size=40), st.booleans(), st.sampled_from([0, 15, 100]))
def test_nobody_waits_longer_than_the_bound(
    drawn: list[Arrival], preemption: bool, lifted_percent: int
) -> None:
    jobs = sorted(drawn, key=lambda job: job.submit_s)
    order = Order(patience_us=PATIENCE_S * SECOND_US, preemption=preemption, lifted_percent=lifted_percent)
    waited, stops = waits_s(jobs, order)
    for at, wait in enumerate(waited):
        assert wait <= longest_s(jobs, at, stops), f"job {at + 1} of {jobs}"


@pytest.mark.parametrize(("patience_s", "kept"), [(PATIENCE_S, True), (0, False)])
def test_a_stream_of_small_jobs_passes_a_large_one_until_its_patience_is_over(
    patience_s: int, kept: bool
) -> None:
    """They come as fast as they end: never are all nodes free by themselves."""
    large = Arrival(1, 600, NODES, GPUS)
    stream = [Arrival(60 * at, 8 * 60, 1, 1) for at in range(400)]
    jobs = sorted([large, *stream], key=lambda job: job.submit_s)
    waited, stops = waits_s(jobs, Order(patience_us=patience_s * SECOND_US, preemption=False))
    at = jobs.index(large)
    assert (waited[at] <= longest_s(jobs, at, stops)) is kept
