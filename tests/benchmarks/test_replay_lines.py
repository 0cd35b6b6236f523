"""The peers of the replay benchmark on lines so short that each answer can be seen: two nodes of 8 GPUs."""

from collections import Counter

import pytest
from paceline.scheduler.trace import Arrival, Replay

from benchmarks.peers.lines import POLICIES, replay
from benchmarks.philly import TraceJob, sample_jobs
from benchmarks.replay import ours

WIDE = TraceJob(2, 1.0, 10.0, 2, 8)
"""Wants both nodes."""


def one(number: int, submit_s: float, duration_s: float, gpus: int = 8) -> TraceJob:
    return TraceJob(number, submit_s, duration_s, 1, gpus)


@pytest.mark.parametrize(
    ("policy", "waits_s"),
    [
        ("FIFO", [0, 99, 107, 107]),
        ("FIFO + skip", [0, 107, 0, 5]),
        ("EASY, true durations", [0, 99, 0, 107]),
        ("shortest first, true durations", [0, 107, 0, 5]),
    ],
)
def test_who_may_pass_the_first_in_line(policy: str, waits_s: list[float]) -> None:
    """While the first job has a node, the second waits for both. The third would be over in time; the fourth
    would not, and hold up the second.
    """
    line = [one(1, 0.0, 100.0), WIDE, one(3, 3.0, 5.0), one(4, 3.0, 100.0)]
    assert replay(line, 2, POLICIES[policy]) == pytest.approx(waits_s)


def test_a_job_goes_where_the_least_room_is_left() -> None:
    """Else the whole node that the third wants would be broken."""
    line = [one(1, 0.0, 50.0, 6), one(2, 1.0, 50.0, 2), one(3, 2.0, 50.0)]
    assert replay(line, 2, POLICIES["FIFO"]) == [0, 0, 0]


def test_the_engine_starts_each_job_once_and_ends_with_an_empty_cluster() -> None:
    jobs = sample_jobs(200, 4, seed=3)
    waits_s, stopped = ours(jobs, 4)
    assert len(waits_s) == len(jobs)
    assert min(waits_s) >= -0.001
    assert stopped > 0, "at this load long jobs make way for new ones"
    arrivals = [Arrival(job.submit_s, job.duration_s, job.tasks, job.gpus) for job in jobs]
    replayed = Replay(arrivals, 4, 8)
    while replayed.advance():
        assert 0 <= replayed.rehearsal.course.gpu_milli <= 32_000
    assert replayed.over and replayed.rehearsal.course.gpu_milli == 0
    starts = Counter(start.job for start in replayed.rehearsal.course.starts)
    stops = Counter(stop.job for stop in replayed.rehearsal.course.stops)
    assert all(starts[number] == stops[number] + 1 for number in range(1, len(jobs) + 1))
    assert sample_jobs(200, 4, seed=3) == jobs
