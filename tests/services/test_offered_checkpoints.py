"""What a start says of checkpoints: where they are uploaded, and none that has no good copy."""

from pathlib import Path

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.rates import PRIOR_US
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


def test_a_start_says_what_saves_cost_and_how_often_the_gang_fails() -> None:
    """By these its ranks choose how often they save."""
    paddock = Paddock()
    for node in ("n1", "n2"):
        paddock.node_joins(node, cpus=1)
    [job] = paddock.submit(shape(2, retries=3))
    paddock.starts(job)
    costs_us = {10: (250_000, 2_000_000), 20: (500_000, 4_500_000)}
    for step, (stall_us, persist_us) in costs_us.items():
        published = s.Published(step, f"c{step}", "h", stall_us=stall_us, persist_us=persist_us)
        paddock.says(job, 0, published)
    paddock.rank_dies(job, 0)
    paddock.pass_time(2)
    spec, _ = parse_job("command: x", "job.yaml")
    first, second = (
        start_message(effect, spec, Path("/storage"), {}, cluster="mine")
        for effect in (paddock.starts_sent(job)[0], paddock.starts_sent(job)[-1])
    )
    costs = [(one.step, one.stall_s, one.persist_s) for one in second.checkpoints]
    assert costs == [(20, 0.5, 4.5), (10, 0.25, 2.0)]
    assert (first.mtbf_s, list(first.checkpoints)) == (PRIOR_US / 1e6 / 2, [])
    assert second.mtbf_s == pytest.approx(PRIOR_US / 1e6 / 2 / 2, rel=1e-5), "of two nodes, after a fault"


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
