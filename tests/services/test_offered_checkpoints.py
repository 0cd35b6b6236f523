"""What a start says of checkpoints: where they are uploaded, and none that has no good copy."""

from pathlib import Path

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.services.starts import start_message
from paceline.spec.job import parse_job
from support.paddock import Paddock, shape


def test_a_checkpoint_without_a_good_copy_is_not_offered() -> None:
    paddock = Paddock()
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(1, retries=3))
    paddock.starts(job)
    published = [s.Published(step, f"c{step}", "h") for step in (10, 20, 30)]
    paddock.says(job, 0, *published, s.Uploaded(30, "c30", "s3://b/c30"))
    paddock.says(job, 0, *(s.Damaged(step, f"c{step}", "storage", "x: missing") for step in (20, 30)))
    paddock.rank_dies(job, 0)
    spec, _ = parse_job("command: x\ncheckpoint: {storage: s3://bucket/runs/}", "job.yaml")
    start = start_message(paddock.starts_sent(job)[-1], spec, Path("/storage"), {}, cluster="mine")
    assert [(one.step, one.uploaded) for one in start.checkpoints] == [(30, True), (10, False)]
    assert start.checkpoint_url == f"s3://bucket/runs/mine/{job}"
    assert start.scrub_s == 86_400


def test_nothing_is_uploaded_unless_a_place_is_named() -> None:
    paddock = Paddock()
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(1))
    spec, _ = parse_job("command: x\ncheckpoint: {scrub_interval: off}", "job.yaml")
    start = start_message(paddock.starts_sent(job)[-1], spec, Path("/storage"), {}, cluster="mine")
    assert (start.checkpoint_url, start.scrub_s) == ("", 0)


@pytest.mark.parametrize(
    ("nodes", "written", "wanted"), [(2, "", True), (2, "peer_memory: off", False), (1, "", False)]
)
def test_a_gang_on_several_nodes_may_use_its_peers_memory(nodes: int, written: str, wanted: bool) -> None:
    """Two tasks on one node have no peer."""
    paddock = Paddock()
    for node in range(nodes):
        paddock.node_joins(f"n{node}", cpus=2 // nodes)
    [job] = paddock.submit(shape(2, cpus=1))
    spec, _ = parse_job(f"command: x\ncheckpoint: {{{written}}}", "job.yaml")
    start = start_message(paddock.starts_sent(job)[-1], spec, Path("/storage"), {}, cluster="mine")
    assert start.peer_memory is wanted
