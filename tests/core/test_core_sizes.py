"""How many instances elastic gangs get by their measured speeds: the rule, and a story for each decision."""

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.attempt_events import GrowthPlanned
from paceline.scheduler.core.job import Course, Job, Speed
from paceline.scheduler.core.settings import Order, Settings
from paceline.scheduler.core.sizes import fair_sizes
from paceline.scheduler.core.speeds import most_foreseen, step_us, with_speed
from paceline.scheduler.core.timeline import describe
from paceline.spec.ids import JobId, Micros
from paceline.spec.lifecycle import JobState
from support.paddock import Paddock, shape
from support.sim_laws import state_is_sane


def speeds(**step_s: float) -> tuple[Speed, ...]:
    """`speeds(n1=2.0)`: 2 s a step with one instance."""
    return tuple(Speed(int(name[1:]), each * 1e6) for name, each in step_s.items())


def gang(number: int, most: int = 64, **step_s: float) -> Job:
    return Job(
        JobId(number), "train", "ann", 0, Micros(0), shape(1, most=most), Course(speeds=speeds(**step_s))
    )


def paddock_of(*cpus: int, **knobs: bool) -> Paddock:
    paddock = Paddock(Settings(heartbeat_us=10**13, order=Order(**knobs)))  # type: ignore[arg-type]
    for at, count in enumerate(cpus, start=1):
        paddock.node_joins(f"n{at}", cpus=count)
    return paddock


def steps(paddock: Paddock, job: int, count: int, step_s: float) -> None:
    """It makes so many steps of that length, and saves."""
    done = max(0, paddock.job(job).course.step)
    if paddock.job(job).course.first is None:
        paddock.says(job, 0, s.Metrics(0, done, {}))
    paddock.pass_hours(count * step_s / 3600)
    paddock.says(job, 0, s.Metrics(0, done + count, {}))
    paddock.saves(job, done + count)


def sizes(paddock: Paddock, *jobs: int) -> list[int]:
    return [len(paddock.nodes_of(job)) for job in jobs]


# --- the rule


@pytest.mark.parametrize(
    ("known", "instances", "expected_s"),
    [
        ({"n2": 1.0}, 4, 0.5),
        ({"n2": 1.0}, 1, 2.0),
        ({"n1": 1.0, "n2": 0.75}, 4, 0.625),
        ({"n1": 1.0, "n2": 0.75}, 2, 0.75),
        ({"n1": 1.0, "n2": 0.4}, 4, 0.2),
        ({"n1": 1.0, "n2": 1.0}, 4, 1.0),
        ({"n1": 1.1, "n2": 0.65, "n4": 0.35}, 8, 0.2125),
    ],
    ids=["one size", "fewer", "Amdahl", "measured", "faster than linear", "no faster", "three sizes"],
)
def test_a_size_not_seen_is_predicted(known: dict[str, float], instances: int, expected_s: float) -> None:
    assert step_us(speeds(**known), instances) / 1e6 == pytest.approx(expected_s, rel=0.1)


def test_nothing_is_said_beyond_twice_what_was_measured() -> None:
    assert most_foreseen(gang(1)) == 2
    assert most_foreseen(gang(1, n1=1.0, n4=0.3)) == 8
    assert most_foreseen(gang(1, 6, n1=1.0, n4=0.3)) == 6


def test_the_newest_measurement_of_a_size_counts() -> None:
    assert with_speed(speeds(n1=1.0, n4=0.5), 4, 4e5) == speeds(n1=1.0, n4=0.4)


def test_equal_gangs_share_equally_and_the_one_that_scales_gets_more() -> None:
    equal = [gang(number, n1=1.0, n8=0.2) for number in (1, 2)]
    assert fair_sizes(equal, 12) == {1: 6, 2: 6}
    poor = gang(3, n1=1.0, n8=0.8)
    shares = fair_sizes([equal[0], poor], 12)
    assert shares[JobId(1)] > 2 * shares[JobId(3)]


def test_who_does_not_get_faster_leaves_nodes_idle() -> None:
    assert fair_sizes([gang(1, n1=1.0, n2=0.99, n4=0.98)], 8) == {1: 1}


def test_those_for_whose_least_there_is_no_room_get_nothing() -> None:
    assert fair_sizes([gang(1), gang(2), gang(3)], 2) == {1: 1, 2: 1, 3: 0}


@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.1, 5.0), st.integers(2, 12)), min_size=1, max_size=4),
    st.integers(1, 24),
)
def test_no_instance_would_bring_more_elsewhere(gangs: list[tuple[float, float, int]], room: int) -> None:
    """The product of the speeds is the largest: of concave speeds one exchange at a time tells."""
    jobs = [
        gang(number, most, **{f"n{n}": fixed + shared / n for n in range(1, most + 1)})
        for number, (fixed, shared, most) in enumerate(gangs, 1)
    ]
    found = fair_sizes(jobs, room)
    assert sum(found.values()) <= room
    for job in jobs:
        assert 0 <= found[job.number] <= job.demand.instance_count_max
        for other in jobs:
            mine, its = found[job.number], found[other.number]
            if job is not other and its > 1 and 0 < mine < job.demand.instance_count_max:
                won = log(step_us(job.course.speeds, mine) / step_us(job.course.speeds, mine + 1))
                lost = log(step_us(other.course.speeds, its - 1) / step_us(other.course.speeds, its))
                assert won <= lost + 1e-9 or won * mine < 0.05


# --- the stories


def test_what_a_size_brings_is_measured_and_told() -> None:
    paddock = paddock_of(1)
    [job] = paddock.submit(shape(1, most=4))
    paddock.starts(job)
    steps(paddock, job, 10, 2.0)
    paddock.node_joins("n2", cpus=3)
    assert describe(paddock.history(job)[-1]) == (
        "room for 2 instances (has 1, predicted 2.00 times as fast): grows at its next checkpoint"
    )
    steps(paddock, job, 1, 2.0)
    paddock.leaves(job)
    paddock.starts(job)
    assert sizes(paddock, job) == [2], "no more than twice what was measured"
    steps(paddock, job, 10, 1.25)
    assert any("1 -> 2 instances: measured 1.60 times" in describe(event) for event in paddock.history(job))
    reason = paddock.why(job).reasons[-1].text
    assert "measured: 2 s a step with 1, 1.2 s a step with 2" in reason, reason
    assert paddock.job(job).course.speeds == speeds(n1=2.0, n2=1.25)
    paddock.scheduler_restarts()
    assert paddock.job(job).course.speeds == speeds(n1=2.0, n2=1.25)
    assert paddock.replayed().jobs[JobId(job)].course.speeds == speeds(n1=2.0, n2=1.25)


def test_idle_nodes_go_to_the_gang_that_gains_most() -> None:
    paddock = paddock_of(2)
    good, poor = paddock.submit(*[shape(1, most=4)] * 2)
    for job in (good, poor):
        paddock.starts(job)
    paddock.node_joins("n2", cpus=2)
    for job, step_s in ((good, 1.0), (poor, 1.9)):
        steps(paddock, job, 10, 2.0)
        paddock.leaves(job)
        paddock.starts(job)
        steps(paddock, job, 10, step_s)
    assert sizes(paddock, good, poor) == [2, 2]
    paddock.node_joins("n3", cpus=2)
    assert paddock.job(good).course.growth is not None and paddock.job(poor).course.growth is None
    [*_, why] = paddock.why(poor).reasons
    assert "predicted 1.03 times as fast with 4: that is too little, or others gain more" in why.text


def test_one_that_waits_has_its_share_of_those_that_have_more() -> None:
    paddock = paddock_of(2, 2)
    [large] = paddock.submit(shape(4, least=1))
    paddock.starts(large)
    steps(paddock, large, 10, 1.0)
    [late] = paddock.submit(shape(4, least=1))
    stop = paddock.job(large).course.stop
    assert stop is not None and stop.to == 2
    assert stop.why == (
        f"gives 2 of 4 instances to job {late}, which gains more by them: "
        "this one is measured to be 0.50 times as fast with 2"
    )
    assert paddock.state_of(late) is JobState.QUEUED
    paddock.leaves(large)
    assert sizes(paddock, large, late) == [2, 2]
    course = paddock.job(large).course
    assert (course.retries_used, course.free_restarts, course.aim) == (0, 0, 0)
    state_is_sane(paddock.state)


def test_who_has_not_saved_since_it_started_gives_nothing() -> None:
    paddock = paddock_of(2, 2)
    [large] = paddock.submit(shape(4, least=1))
    paddock.starts(large)
    [late] = paddock.submit(shape(4, least=1))
    assert paddock.job(large).course.stop is None and paddock.state_of(late) is JobState.QUEUED
    paddock.saves(large, 1)
    paddock.cancel(paddock.submit(shape(4))[0])
    paddock.pass_hours(0.1)
    assert paddock.job(large).course.stop is not None


def test_nobody_gives_where_nobody_may_be_stopped() -> None:
    paddock = paddock_of(2, 2, preemption=False)
    [large] = paddock.submit(shape(4, least=1))
    paddock.starts(large)
    steps(paddock, large, 10, 1.0)
    [late] = paddock.submit(shape(4, least=1))
    assert paddock.job(large).course.stop is None and paddock.state_of(late) is JobState.QUEUED


def test_gangs_of_other_kinds_give_nothing() -> None:
    paddock = paddock_of(4)
    [large] = paddock.submit(shape(4, least=1))
    paddock.starts(large)
    steps(paddock, large, 10, 1.0)
    paddock.submit(shape(2, least=1, cpus=2))
    assert paddock.job(large).course.stop is None


def near_its_end() -> tuple[Paddock, int]:
    """A gang that could grow, two steps before its end; its start has taken 30 s."""
    paddock = paddock_of(1)
    [job] = paddock.submit(shape(1, most=2))
    paddock.starts(job)
    paddock.pass_hours(30 / 3600)
    paddock.says(job, 0, s.Metrics(0, 0, {"total_steps": 12.0}))
    steps(paddock, job, 10, 2.0)
    paddock.node_joins("n2", cpus=1)
    assert not any(isinstance(event, GrowthPlanned) for event in paddock.history(job))
    return paddock, job


def test_a_growth_must_earn_back_its_restart() -> None:
    paddock, job = near_its_end()
    [*_, why] = paddock.why(job).reasons
    assert "predicted 2.00 times as fast with 2, it would not earn back the restart" in why.text


def test_a_growth_that_did_not_earn_back_its_restart_is_looked_at_again() -> None:
    """Nothing is freed meanwhile, and nobody comes: what has changed is what is known of the run. The look
    comes within twice the 30 s that a restart costs."""
    paddock, job = near_its_end()
    paddock.says(job, 0, s.Metrics(0, 10, {"total_steps": 500.0}))
    paddock.pass_time(60, step_s=1)
    assert any(isinstance(event, GrowthPlanned) for event in paddock.history(job))
