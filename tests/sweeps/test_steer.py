"""What a sweep does next, in single moments."""

from typing import Any

import pytest
from paceline.scheduler.sweeps.steer import (
    Cancel,
    End,
    Limits,
    Standing,
    Start,
    next_crew_move,
    next_move,
)
from paceline.scheduler.sweeps.study import SweepState

LIMITS = Limits(trials=4, concurrent=2, firm=1, failed=3, until_us=None)


def stands(**changes: Any) -> Standing:
    plain: dict[str, Any] = {
        "state": SweepState.RUNNING,
        "ends_as": None,
        "why": "",
        "made": 0,
        "waiting": (),
        "running": (),
        "queued": 0,
        "firm": 0,
        "firm_queued": 0,
        "complete": 0,
        "failed_in_row": 0,
        "first_failure": "",
        "exhausted": False,
        "now_us": 0,
    }
    return Standing(**{**plain, **changes})


@pytest.mark.parametrize(
    "changes, expected",
    [
        pytest.param({}, Start(0, idle=False), id="the first"),
        pytest.param({"made": 1, "running": (7,)}, Start(1, idle=False), id="as many as may run at once"),
        pytest.param({"made": 2, "running": (7, 8)}, None, id="no more"),
        pytest.param(
            {"made": 1, "running": (7,), "queued": 1, "firm_queued": 1},
            None,
            id="one waits in line: it goes first",
        ),
        pytest.param({"made": 3, "waiting": (2,)}, Start(2, idle=False), id="what was enqueued goes first"),
        pytest.param({"made": 4, "running": (7,)}, None, id="the last one runs"),
        pytest.param({"made": 4, "complete": 4}, End(SweepState.SUCCEEDED), id="all are over"),
        pytest.param(
            {"made": 2, "complete": 2, "exhausted": True}, End(SweepState.SUCCEEDED), id="no points left"
        ),
        pytest.param({"state": SweepState.PAUSED}, None, id="paused"),
        pytest.param(
            {"made": 5, "waiting": (4,), "complete": 4},
            Start(4, idle=False),
            id="enqueued beyond the number of trials",
        ),
    ],
)
def test_next_move(changes: dict[str, Any], expected: object) -> None:
    assert next_move(LIMITS, stands(**changes)) == expected


@pytest.mark.parametrize(
    "changes, busy, expected",
    [
        pytest.param({}, 0, Start(5, idle=False), id="the first"),
        pytest.param({"made": 1, "running": (7,)}, 1, Start(5, idle=False), id="as many as may run at once"),
        pytest.param({"running": (7, 8)}, 0, None, id="no more"),
        pytest.param(
            {"running": (7,), "queued": 1, "firm": 1, "firm_queued": 1},
            0,
            None,
            id="one waits in line: it goes first",
        ),
        pytest.param({"made": 3, "running": (7,)}, 0, None, id="the last trial is for the one that is idle"),
        pytest.param(
            {"made": 3, "running": (7,)}, 1, Start(5, idle=False), id="the last trial is for another"
        ),
        pytest.param({"made": 4, "running": (7,)}, 1, None, id="the last trial runs"),
        pytest.param({"made": 4, "complete": 4, "running": (7,)}, 0, None, id="the last one is leaving"),
        pytest.param({"made": 4, "complete": 4}, 0, End(SweepState.SUCCEEDED), id="all are over"),
        pytest.param({"state": SweepState.PAUSED}, 0, None, id="paused"),
        pytest.param(
            {"made": 1, "running": (7,), "firm": 1},
            1,
            Start(5, idle=True),
            id="beyond the least: what is idle",
        ),
        pytest.param(
            {"made": 5, "waiting": (4,)}, 0, Start(5, idle=False), id="enqueued beyond the number of trials"
        ),
    ],
)
def test_next_crew_move(changes: dict[str, Any], busy: int, expected: object) -> None:
    assert next_crew_move(LIMITS, stands(**changes), busy, 5) == expected


def test_it_gives_up_when_trials_fail_in_a_row() -> None:
    move = next_move(LIMITS, stands(made=3, failed_in_row=3, first_failure="no module named torch"))
    assert isinstance(move, End) and move.to is SweepState.STOPPING and move.ends_as is SweepState.FAILED
    assert move.why == "3 trials in a row failed, the first of them because: no module named torch"
    assert next_move(LIMITS, stands(made=3, failed_in_row=2)) == Start(3, idle=False)


def test_all_over_and_none_complete_is_a_failure() -> None:
    move = next_move(LIMITS, stands(made=4, failed_in_row=1, first_failure="exit code 1"))
    assert move == End(SweepState.FAILED, "no trial came to its end: exit code 1")


def test_time_is_over() -> None:
    limits = Limits(trials=4, concurrent=2, firm=2, failed=3, until_us=100)
    assert next_move(limits, stands(now_us=99)) == Start(0, idle=False)
    found = next_move(limits, stands(now_us=100, complete=1, made=2, running=(7,)))
    assert found == End(SweepState.STOPPING, "limits.timeout is over", SweepState.SUCCEEDED)
    found = next_move(limits, stands(now_us=100))
    assert isinstance(found, End) and found.ends_as is SweepState.FAILED


def test_stopping_waits_for_those_that_run_and_keeps_its_reason() -> None:
    stopping = {"state": SweepState.STOPPING, "ends_as": SweepState.CANCELLED, "why": "stopped by eve"}
    assert next_move(LIMITS, stands(made=2, running=(7, 8), **stopping)) == Cancel((7, 8))
    assert next_move(LIMITS, stands(made=2, **stopping)) == End(SweepState.CANCELLED, "stopped by eve")


def test_many_that_run_let_more_wait_in_line() -> None:
    limits = Limits(trials=1000, concurrent=100, firm=1, failed=3, until_us=None)
    running = tuple(range(40))
    assert next_move(limits, stands(made=40, running=running, queued=7, firm=40)) == Start(40, idle=True)
    assert next_move(limits, stands(made=40, running=running, queued=9, firm=40)) is None


def test_beyond_the_least_trials_take_what_is_idle() -> None:
    limits = Limits(trials=9, concurrent=4, firm=2, failed=3, until_us=None)
    runs = {"made": 3, "running": (7, 8, 9)}
    assert next_move(limits, stands(firm=2, **runs)) == Start(3, idle=True)
    assert next_move(limits, stands(firm=2, queued=1, **runs)) is None
    assert next_move(limits, stands(firm=1, queued=1, **runs)) == Start(3, idle=False), (
        "one of the least ended"
    )
    assert next_move(limits, stands(firm=1, queued=2, firm_queued=1, **runs)) is None
