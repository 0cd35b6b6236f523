"""Copies of checkpoints: uploads are noted, and damage is told with what is still good."""

from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.copies import is_good
from paceline.scheduler.core.timeline import describe
from paceline.spec.ids import JobId
from support.paddock import Paddock, shape


def running(paddock: Paddock) -> JobId:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(1, retries=3))
    paddock.starts(job)
    paddock.says(job, 0, s.Published(10, "c10", "h"), s.Published(20, "c20", "h"))
    return job


def texts(paddock: Paddock) -> list[str]:
    return [describe(event, {}) for event in paddock.history()]


def test_an_upload_is_on_record_and_a_failed_one_is_only_told() -> None:
    paddock = Paddock()
    job = running(paddock)
    paddock.says(job, 0, s.Uploaded(10, "c10", "s3://b/c10", 2_000_000))
    paddock.says(job, 0, s.Uploaded(20, "c20", "s3://b/c20", 0, "no bucket"))
    assert [(one.path, one.url) for one in paddock.job(job).course.checkpoints] == [
        ("c20", ""),
        ("c10", "s3://b/c10"),
    ]
    assert "checkpoint of step 10 uploaded to s3://b/c10 in 2 s" in texts(paddock)
    assert "checkpoint of step 20 could not be uploaded to s3://b/c20: no bucket" in texts(paddock)


def test_damage_is_told_with_what_is_still_good() -> None:
    paddock = Paddock()
    job = running(paddock)
    paddock.says(job, 0, s.Damaged(20, "c20", "storage", "__0_1.distcp: hash differs"))
    newest, before = paddock.job(job).course.checkpoints
    assert (is_good(newest), is_good(before)) == (False, True)
    told = "checkpoint of step 20 is damaged in storage: __0_1.distcp: hash differs"
    assert f"{told}; step 10 is the newest good one" in texts(paddock)
    paddock.says(job, 0, s.Damaged(10, "c10", "storage", ".metadata: missing"))
    assert "checkpoint of step 10 is damaged in storage: .metadata: missing; no checkpoint is good" in texts(
        paddock
    )


def test_one_good_copy_is_enough() -> None:
    paddock = Paddock()
    job = running(paddock)
    paddock.says(job, 0, s.Uploaded(20, "c20", "s3://b/c20"), s.Damaged(20, "c20", "storage", "x: missing"))
    assert is_good(paddock.job(job).course.checkpoints[0])
    paddock.says(job, 0, s.Damaged(20, "c20", "upload", "x: missing"))
    assert not is_good(paddock.job(job).course.checkpoints[0])


def test_damage_of_what_is_not_on_record_changes_nothing() -> None:
    paddock = Paddock()
    job = running(paddock)
    before = paddock.job(job).course.checkpoints
    paddock.says(job, 0, s.Damaged(5, "c5", "storage", "x: missing"))
    assert paddock.job(job).course.checkpoints == before


def test_a_stale_attempt_can_spoil_nothing() -> None:
    paddock = Paddock()
    job = running(paddock)
    paddock.rank_dies(job, 0)
    paddock.starts(job)
    paddock.says(job, 0, s.Damaged(20, "c20", "storage", "x: missing"), attempt=1)
    assert all(is_good(one) for one in paddock.job(job).course.checkpoints)


def test_all_of_it_survives_the_scheduler() -> None:
    paddock = Paddock()
    job = running(paddock)
    paddock.says(job, 0, s.Uploaded(20, "c20", "s3://b/c20"), s.Damaged(20, "c20", "storage", "x: missing"))
    before = paddock.job(job).course.checkpoints
    paddock.scheduler_restarts()
    assert paddock.job(job).course.checkpoints == before
    assert dict(before[0].damaged) == {"storage": "x: missing"}
