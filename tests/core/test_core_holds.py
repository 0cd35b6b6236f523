"""An admin keeps jobs from starting, lets them go, and moves them in line."""

import pytest
from paceline.scheduler.core.timeline import describe
from paceline.spec.errors import NotFound
from paceline.spec.lifecycle import JobState
from support.paddock import Paddock, shape
from support.sim_checks import picture
from support.sim_laws import state_is_sane


@pytest.fixture
def paddock() -> Paddock:
    made = Paddock()
    made.node_joins("n", cpus=1)
    return made


def test_a_held_job_waits_until_it_is_released(paddock: Paddock) -> None:
    [first, second, third] = paddock.submit(shape(), shape(), shape())
    paddock.hold(second, "the data is wrong")
    paddock.hold(second)
    paddock.pass_time(60, step_s=60)
    reason = paddock.why(second).reasons[0]
    assert (reason.code, reason.text) == ("held", "held by ann for 1 min 0 s: the data is wrong")
    paddock.starts(first)
    paddock.finishes(first)
    assert paddock.job(third).placed, "it is passed over"
    for _ in range(2):
        state_is_sane(paddock.state)
        assert picture(paddock.state) == picture(paddock.replayed())
        assert paddock.state.on_hold == {second}
        paddock.scheduler_restarts()
    paddock.node_joins("n")
    paddock.release(second)
    paddock.release(second)
    paddock.starts(third)
    paddock.finishes(third)
    assert paddock.job(second).placed
    told = [describe(event) for event in paddock.history(second)]
    assert told[1:3] == [
        "held by ann until it is released: the data is wrong",
        "released by ann",
    ]
    with pytest.raises(NotFound):
        paddock.hold(first)


def test_one_that_runs_goes_on_and_does_not_start_again(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(retries=3))
    paddock.starts(job)
    paddock.hold(job)
    assert paddock.state_of(job) is JobState.RUNNING
    paddock.rank_dies(job, 0, 1, "boom")
    paddock.pass_time(60, step_s=60)
    assert paddock.state_of(job) is JobState.QUEUED
    assert paddock.why(job).reasons[0].code == "held"
    state_is_sane(paddock.state)
    paddock.release(job)
    assert paddock.job(job).attempt == 2


def test_another_priority_is_another_place_in_line(paddock: Paddock) -> None:
    first, second, third = paddock.submit(shape(), shape(), shape())
    paddock.has_priority(third, 5)
    paddock.has_priority(third, 5)
    paddock.has_priority(first, -5)
    state_is_sane(paddock.state)
    assert picture(paddock.state) == picture(paddock.replayed())
    paddock.starts(first)
    paddock.finishes(first)
    assert paddock.job(third).placed and not paddock.job(second).placed
    assert describe(paddock.history(third)[1]) == "given priority 5 by ann"
    paddock.scheduler_restarts()
    assert paddock.job(third).priority == 5
