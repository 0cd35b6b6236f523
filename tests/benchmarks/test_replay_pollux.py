"""Elastic jobs replayed: a made-up profile whose every number is known."""

from pathlib import Path

import pytest
from paceline.spec.ids import JobId

from benchmarks.elastic_jobs import batch_of, replay
from benchmarks.elastic_replay import add_elastic_rows
from benchmarks.harness import Report
from benchmarks.peers.rounds import tiresias
from benchmarks.pollux import Batch, PolluxJob, Profile, Progress, profiles, sample, workload


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    sample(tmp_path, seed=1)
    return tmp_path


@pytest.fixture
def small(traces: Path) -> Profile:
    return profiles(traces)["small"]


def test_a_profile_says_what_was_measured_and_lies_on_lines_between(small: Profile) -> None:
    assert small.timing((1,), 64).step_s == pytest.approx(0.02 + 0.0005 * 64)
    assert small.timing((1,), 48).step_s == pytest.approx(0.02 + 0.0005 * 48)
    assert small.timing((4, 4), 16).sync_s == pytest.approx(0.04)
    assert small.timing((4,) * 8, 16).sync_s == pytest.approx(0.05), (
        "neither the nodes nor the GPUs were measured"
    )
    assert (small.local_min, small.local_max, small.sizes) == (16, 128, [64, 256, 1024])


def test_a_batch_is_cut_as_the_gpus_allow(small: Profile) -> None:
    assert small.batch(256, 4) == Batch(256, 64, 1)
    assert small.batch(256, 1) == Batch(256, 128, 2)
    assert small.batch(1024, 2) == Batch(1024, 128, 4)


def test_a_larger_batch_makes_less_progress_a_sample(small: Profile) -> None:
    """The square is 1 and the variance 200 in the first epoch, and 800 in the last."""
    assert small.gain(64, 0) == pytest.approx(1.0)
    assert small.gain(256, 0) == pytest.approx(201 / 51)
    assert small.gain(160, 3) == pytest.approx((800 + 1) / (800 * 64 / 160 + 1))


def test_a_job_ends_with_its_last_epoch_whatever_it_was_interrupted_for(small: Profile) -> None:
    batch = small.batch(256, 4)
    whole = Progress(small).left_s((4,), batch)
    parts = Progress(small)
    assert parts.run((4,), batch, whole / 3) == 0.0
    assert parts.left_s((4,), batch) == pytest.approx(whole * 2 / 3)
    assert parts.run((4,), batch, whole) == pytest.approx(whole / 3)
    assert parts.over


def test_the_batch_size_is_kept_or_follows(small: Profile) -> None:
    job = PolluxJob(1, "small-0", 0.0, "small", 4, 256)
    assert batch_of(job, small, 8, follows=False).size == 256
    assert batch_of(job, small, 8, follows=True).size == 512
    assert batch_of(job, small, 64, follows=True).size == 1024, "no larger was measured"


def test_in_rounds_a_job_waits_for_the_next_and_is_charged_for_its_start(
    traces: Path, small: Profile
) -> None:
    job = PolluxJob(1, "small-0", 10.0, "small", 4, 256)
    run_s = Progress(small).left_s((4,), small.batch(256, 4))
    assert tiresias([job], profiles(traces)) == pytest.approx([50 + 30 + run_s])


@pytest.mark.parametrize("follows", [False, True])
def test_each_job_runs_within_its_bounds_to_its_end(traces: Path, follows: bool) -> None:
    jobs, known = workload(traces / "pollux" / "workloads" / "sample.csv"), profiles(traces)
    done = replay(jobs, known, follows=follows)
    assert len(done.jct_s) == len(jobs) and min(done.jct_s) > 30
    course = done.course
    assert sorted(course.ended_us) == [JobId(job.number) for job in jobs]
    assert len(course.starts) == len(course.stops) + len(jobs)
    assert all(1 <= len(start.places) <= 64 for start in course.starts)
    assert max(len(start.places) for start in course.starts) > max(job.gpus for job in jobs), "none has grown"
    assert replay(jobs, known, follows=follows).jct_s == done.jct_s


def test_the_report_tells_what_was_published(traces: Path) -> None:
    path = traces / "pollux" / "workloads" / "sample.csv"
    expected = traces / "pollux" / "expected"
    expected.mkdir()
    mean_s = sum(tiresias(workload(path), profiles(traces))) / len(workload(path))
    (expected / "tiresias-load1.0.json").write_text(f'{{"avgs": {{"sample": {mean_s * 1.5}}}}}')
    report = Report("replay")
    add_elastic_rows(report, traces, [path])
    assert [row.case for row in report.rows][1:] == [
        "sample: elastic, batch size kept",
        "sample: elastic, batch size follows",
    ]
    assert "Tiresias here is -33.3% off (BEYOND 5%)" in report.notes[0]
