"""How often a run saves: what the job file says, and the interval that loses least."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.spec.errors import PacelineError
from paceline.spec.every import (
    AUTO_MAX_S,
    AUTO_MIN_S,
    Every,
    best_interval,
    daly_s,
    parse_every,
    parse_seconds,
)
from paceline.spec.job import parse_job


@pytest.mark.parametrize(
    ("text", "every", "canonical"),
    [
        ("100 steps", Every(steps=100), "100 steps"),
        ("1step", Every(steps=1), "1 step"),
        ("60 s", Every(seconds=60), "60 s"),
        ("1.5  Min", Every(seconds=90), "90 s"),
        ("2h", Every(seconds=7200), "7200 s"),
        ("AUTO", Every(), "auto"),
    ],
)
def test_it_is_a_number_with_its_unit(text: str, every: Every, canonical: str) -> None:
    assert parse_every(text) == every
    assert every.text == canonical and parse_every(canonical) == every


@pytest.mark.parametrize("text", ["", "100", "0 s", "-1 s", "1.5 steps", "soon", "1e3 s", 60, None])
def test_what_is_none_is_refused_with_examples(text: object) -> None:
    with pytest.raises(ValueError, match="100 steps"):
        parse_every(text)


def test_a_time_alone_has_no_steps() -> None:
    assert [parse_seconds(text) for text in ("90 s", "10min", "2 h")] == [90, 600, 7200]
    for text in ("100 steps", "auto", "10", "0 s", "soon"):
        with pytest.raises(ValueError, match="10 min"):
            parse_seconds(text)


def test_the_job_file_names_the_key() -> None:
    spec, _ = parse_job("command: x\ncheckpoint: {every: 10 min, keep_every: 500}", "job.yaml")
    assert spec.checkpoint.every == "600 s" and spec.checkpoint.retention.keep_every == 500
    with pytest.raises(PacelineError, match=r"every.*100 steps"):
        parse_job("command: x\ncheckpoint: {every: 10}", "job.yaml")


def wasted(interval_s: float, stall_s: float, mtbf_s: float) -> float:
    """Daly's model, eq. 20: the expected wall time of one second of work, with no cost of the restart
    itself."""
    return mtbf_s * math.expm1((interval_s + stall_s) / mtbf_s) / interval_s


@given(st.floats(1e-3, 100), st.floats(1e3, 1e7))
def test_no_other_interval_is_much_better(stall_s: float, mtbf_s: float) -> None:
    best = daly_s(stall_s, mtbf_s)
    least = min(wasted(best * factor, stall_s, mtbf_s) for factor in (0.25, 0.5, 0.8, 0.95, 1.05, 1.25, 2, 4))
    assert wasted(best, stall_s, mtbf_s) <= least * 1.001


@given(st.floats(0, 100), st.floats(0, 1e4), st.floats(0, 1e9))
def test_it_keeps_to_its_bounds_and_says_its_numbers(stall_s: float, persist_s: float, mtbf_s: float) -> None:
    found = best_interval(stall_s, persist_s, mtbf_s)
    assert max(AUTO_MIN_S, 2 * persist_s) <= found.seconds <= max(AUTO_MAX_S, 2 * persist_s)
    assert all(word in found.why for word in ("auto", "stall", "MTBF"))


def test_the_numbers_are_said() -> None:
    found = best_interval(0.05, 1.2, 12 * 3600)
    assert found.why == "every 65.7 s (auto: stall 0.05 s, on disk after 1.2 s, MTBF 12 h)"
    assert best_interval(0.001, 20, 3600).why.endswith("bounded from 2.68 s)")
