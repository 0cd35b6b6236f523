"""Decisions of the past taken again, from the history alone."""

import pytest
from paceline.scheduler.core.attempt_events import AttemptStarted, StopRequested
from paceline.scheduler.decisions import Decision, decide_again
from paceline.spec.errors import InvalidRequest
from paceline.spec.ids import JobId
from support.paddock import Paddock, shape


def seqs(paddock: Paddock, kind: type, job: int) -> list[int]:
    return [row.seq for row in paddock.store.event_rows if row.kind == kind.__name__ and row.job == job]


def again(paddock: Paddock, seq: int) -> Decision:
    return decide_again(paddock.store.event_rows[:seq], paddock.settings)


def test_a_placement_is_taken_again_with_what_it_saw() -> None:
    paddock = Paddock()
    for name, gpus in (("a", 8), ("b", 4), ("c", 2)):
        paddock.node_joins(name, gpus=gpus, cpus=64)
    first, second = paddock.submit(shape(gpus=2), shape(2, gpus=2))
    paddock.starts(first)
    [seq] = seqs(paddock, AttemptStarted, first)
    found = again(paddock, seq)
    assert found.again and (found.job, found.nodes_fit, found.nodes_in_service) == (first, 3, 3)
    [chosen] = [told for told in found.nodes if told.chosen]
    assert chosen == found.nodes[0] and chosen.name == paddock.nodes_of(first)[0]
    assert chosen.fits == 1 and found.reasons[0].code == "next"
    [seq] = seqs(paddock, AttemptStarted, second)
    assert again(paddock, seq).again and sum(told.chosen for told in again(paddock, seq).nodes) == 2


def test_who_waited_is_shown_as_it_waited() -> None:
    paddock = Paddock()
    paddock.node_joins("a", gpus=1)
    running, waits = paddock.submit(shape(gpus=1), shape(gpus=1))
    paddock.starts(running)
    paddock.pass_time(60)
    paddock.finishes(running)
    [seq] = seqs(paddock, AttemptStarted, waits)
    found = again(paddock, seq)
    assert found.again and found.at_us == paddock.now_us


def test_a_restart_after_a_backoff_is_taken_again() -> None:
    paddock = Paddock()
    paddock.node_joins("a", gpus=1)
    [job] = paddock.submit(shape(gpus=1, retries=3, backoff_s=5))
    for _ in range(3):
        paddock.starts(job)
        paddock.rank_dies(job, 0)
        paddock.pass_time(20)
    starts = seqs(paddock, AttemptStarted, job)
    assert len(starts) == 4 and all(again(paddock, seq).again for seq in starts)


def test_a_stop_that_a_person_asked_for_is_told_as_that() -> None:
    paddock = Paddock()
    paddock.node_joins("a", gpus=1)
    [job] = paddock.submit(shape(gpus=1))
    paddock.starts(job)
    paddock.cancel(job)
    [seq] = seqs(paddock, StopRequested, job)
    found = again(paddock, seq)
    assert found.again and "ann" in found.text and found.nodes == []


def test_another_settings_decision_is_told_apart() -> None:
    """As if the code of that day had chosen otherwise."""
    paddock = Paddock()
    paddock.node_joins("a", gpus=1)
    [job] = paddock.submit(shape(gpus=1))
    [seq] = seqs(paddock, AttemptStarted, job)
    rows = paddock.store.event_rows[:seq]
    rows[-1] = rows[-1]._replace(body=rows[-1].body.replace('"gpu_indices":[0]', '"gpu_indices":[7]'))
    found = decide_again(rows, paddock.settings)
    assert not found.again and "placed" in found.instead


def test_what_is_no_decision_is_refused() -> None:
    paddock = Paddock()
    paddock.node_joins("a", gpus=1)
    paddock.submit(shape(gpus=1))
    with pytest.raises(InvalidRequest, match="event 1 is SchedulerStarted"):
        again(paddock, 1)
    assert JobId(1) in paddock.state.jobs
