"""What is left of a run: by its own pace, by experience, by how long it has lasted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.job import NEVER, Course, Job
from paceline.scheduler.core.pace import RankPace
from paceline.scheduler.core.predict import (
    LEVELS,
    RUNS_MIN,
    UNKNOWN_US,
    Basis,
    Prediction,
    basis_text,
    by_runs,
    level_of,
    predict,
)
from paceline.scheduler.core.rates import FaultRate
from paceline.scheduler.core.runs import ALL_RUNS_MAX, NAME_RUNS_MAX, NAMES_MAX, Runs
from paceline.spec.ids import JobId, Micros
from paceline.spec.lifecycle import JobState
from paceline.spec.progress import TOTAL_STEPS
from support.paddock import Paddock, shape

MINUTE = 60_000_000
HOUR = 60 * MINUTE


def ended(ran_us: int, user: str = "ann", name: str = "train", tasks: int = 1) -> Job:
    course = Course(state=JobState.SUCCEEDED, rate=FaultRate(0, ran_us * tasks))
    return Job(JobId(1), name, user, 0, NEVER, shape(tasks), course)


def learnt(*jobs: Job) -> Runs:
    runs = Runs()
    for job in jobs:
        runs.learn(job)
    return runs


def waiting(user: str = "ann", name: str = "train") -> Job:
    return Job(JobId(9), name, user, 0, NEVER, shape())


def ends_after(paddock: Paddock, minutes: float) -> int:
    [job] = paddock.submit(shape())
    paddock.starts(job)
    paddock.pass_time(minutes * 60, step_s=10)
    paddock.finishes(job)
    return job


def test_a_job_is_judged_by_earlier_runs_of_its_name() -> None:
    paddock = Paddock()
    paddock.node_joins("n1")
    for minutes in (1, 2, 3, 4, 5):
        ends_after(paddock, minutes)
    [job] = paddock.submit(shape())
    found = predict(paddock.state, paddock.job(job), Micros(paddock.now_us))
    assert (found.basis, found.runs) == (Basis.NAME, 5)
    assert found.median_us == 3 * MINUTE
    assert found.p10_us < found.median_us < found.p90_us <= 5 * MINUTE
    assert basis_text(found, paddock.job(job)) == "judged by 5 earlier runs of ann's train"


def test_one_that_has_lasted_is_judged_by_those_that_lasted_longer() -> None:
    runs = learnt(*(ended(minutes * MINUTE) for minutes in (1, 1, 1, 60, 70, 80, 90, 100)))
    assert by_runs(runs, waiting(), 0).median_us == 70 * MINUTE
    found = by_runs(runs, waiting(), 10 * MINUTE)
    assert (found.median_us, found.runs) == (70 * MINUTE, 5)


def test_runs_that_are_alike_say_more_than_wider_circles() -> None:
    others = [ended(hours * HOUR, user="bob", name="x") for hours in range(1, 41)]
    alike = [ended(30 * MINUTE + second * 1_000_000) for second in range(8)]
    sharp = by_runs(learnt(*others, *alike), waiting(), 0)
    assert 30 * MINUTE <= sharp.p10_us <= sharp.median_us <= 31 * MINUTE
    scattered = [ended(minutes * MINUTE) for minutes in (1, 2, 4, 30, 120, 600)]
    wide = by_runs(learnt(*others, *scattered), waiting(), 0)
    assert wide.basis is Basis.NAME and wide.p90_us > 10 * HOUR


def test_the_next_wider_circle_is_asked_where_few_lasted_longer() -> None:
    mine = [ended(MINUTE, name="train") for _ in range(RUNS_MIN)]
    others = [ended(HOUR, name="eval") for _ in range(RUNS_MIN)]
    strangers = [ended(9 * HOUR, user="bob", name="x") for _ in range(RUNS_MIN)]
    runs = learnt(*mine, *others, *strangers)
    assert by_runs(runs, waiting(), 0).basis is Basis.NAME
    user = by_runs(runs, waiting(), 2 * MINUTE)
    assert (user.basis, user.median_us) == (Basis.USER, HOUR - 2 * MINUTE)
    everyone = by_runs(runs, waiting(), 2 * HOUR)
    assert (everyone.basis, everyone.median_us) == (Basis.ALL, 7 * HOUR)
    nobody = by_runs(runs, waiting(), 10 * HOUR)
    assert (nobody.basis, nobody.median_us) == (Basis.NOTHING, 10 * HOUR)
    assert by_runs(runs, waiting(user="eve"), 0).basis is Basis.ALL
    assert by_runs(Runs(), waiting(), 0).median_us == UNKNOWN_US


def test_a_gang_that_ran_with_less_counts_by_what_it_did() -> None:
    runs = learnt(*[ended(HOUR, tasks=4) for _ in range(RUNS_MIN)])
    assert list(runs.all) == [HOUR] * RUNS_MIN


def running(paddock: Paddock, **facts: object) -> int:
    [job] = paddock.submit(shape(1, **facts))  # type: ignore[arg-type]
    paddock.starts(job)
    return job


def test_a_run_that_tells_its_progress_is_judged_by_its_pace() -> None:
    paddock = Paddock()
    paddock.node_joins("n1")
    job = running(paddock)
    paddock.pass_time(100)
    paddock.says(job, 0, s.Metrics(0, 50, {TOTAL_STEPS: 200}))
    found = predict(paddock.state, paddock.job(job), Micros(paddock.now_us))
    assert (found.basis, found.median_us) == (Basis.PROGRESS, 300_000_000)
    assert basis_text(found, paddock.job(job)) == "judged by its pace, at step 50 of 200"
    paddock.says(job, 0, s.Paced((RankPace(0, 1_000_000),)))
    assert predict(paddock.state, paddock.job(job), Micros(paddock.now_us)).median_us == 150_000_000


def test_what_an_earlier_attempt_did_is_not_the_pace_of_this_one() -> None:
    paddock = Paddock()
    paddock.node_joins("n1")
    job = running(paddock, retries=1)
    paddock.pass_time(10)
    paddock.says(job, 0, s.Metrics(0, 100, {TOTAL_STEPS: 300}), s.Published(100, "100", "hash"))
    paddock.rank_dies(job, 0)
    paddock.starts(job)
    paddock.pass_time(100)
    paddock.says(job, 0, s.Metrics(0, 200, {}))
    assert predict(paddock.state, paddock.job(job), Micros(paddock.now_us)).median_us == 100_000_000


def test_nobody_is_expected_beyond_his_limit() -> None:
    paddock = Paddock()
    paddock.node_joins("n1")
    job = running(paddock, timeout_s=100)
    paddock.pass_time(40)
    found = predict(paddock.state, paddock.job(job), Micros(paddock.now_us))
    assert found.median_us == found.p90_us == 60_000_000


durations = st.lists(st.integers(1, 10 * HOUR), min_size=RUNS_MIN, max_size=NAME_RUNS_MAX)


@given(durations, st.integers(0, 20 * HOUR), st.floats(0, 1), st.floats(0, 1))
def test_levels_never_descend(lasted: list[int], ran_us: int, one: float, other: float) -> None:
    found = by_runs(learnt(*map(ended, lasted)), waiting(), ran_us)
    assert list(found.left_us) == sorted(found.left_us) and found.left_us[0] >= 0
    low, high = sorted((one, other))
    assert found.left_us[0] <= found.at(low) <= found.at(high) <= found.left_us[-1]
    assert all(found.at(level) == left for level, left in zip(LEVELS, found.left_us, strict=True))


@given(st.data(), durations, st.integers(0, 20 * HOUR))
def test_the_order_of_what_was_learnt_does_not_matter(
    data: st.DataObject, lasted: list[int], ran_us: int
) -> None:
    other = data.draw(st.permutations(lasted))
    assert by_runs(learnt(*map(ended, lasted)), waiting(), ran_us) == by_runs(
        learnt(*map(ended, other)), waiting(), ran_us
    )


def test_experience_is_bounded() -> None:
    runs = Runs()
    for number in range(NAMES_MAX + 10):
        runs.learn(ended(number + 1, user="ann", name=f"n{number}"))
    assert len(runs.names) == NAMES_MAX and ("ann", "n0") not in runs.names
    assert len(runs.all) == ALL_RUNS_MAX and runs.all[-1] == NAMES_MAX + 10
    copied = runs.copy()
    runs.learn(replace(ended(5), name="new"))
    assert ("ann", "new") not in copied.names


def test_levels_of_draws_are_even_and_repeatable() -> None:
    levels = [level_of(7, draw, job) for draw in range(1, 21) for job in range(100)]
    assert levels == [level_of(7, draw, job) for draw in range(1, 21) for job in range(100)]
    assert all(0 <= level < 1 for level in levels)
    for tenth in range(10):
        assert 140 < sum(tenth / 10 <= level < (tenth + 1) / 10 for level in levels) < 260
    assert level_of(7, 0, 3) == 0.5
    assert level_of(1, 1, 3) != level_of(2, 1, 3) != level_of(2, 2, 3)


@pytest.mark.parametrize("basis", list(Basis))
def test_every_basis_has_words(basis: Basis) -> None:
    assert basis_text(Prediction((1,) * 7, basis, 1), waiting())
