"""Gangs that shrink and grow: how many instances they get, at what moment, and what is said of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.attempt_events import AttemptStarted
from paceline.spec.lifecycle import AttemptOutcome, JobState
from support.paddock import Paddock, shape
from support.sim_laws import state_is_sane


@pytest.fixture
def paddock() -> Paddock:
    return Paddock()


def saves(paddock: Paddock, job: int, step: int) -> None:
    paddock.says(job, 0, s.Published(step, f"step-{step}", "hash"))


def stops(paddock: Paddock, job: int) -> None:
    """All tasks end as they were asked to."""
    for task in paddock.job(job).tasks:
        paddock.says(job, task.task, s.Exited(0, 0), s.Ended((0,), (0,), "stopped"))


def placed(paddock: Paddock, job: int) -> list[str]:
    return [event.size for event in paddock.history(job) if isinstance(event, AttemptStarted)]


def kinds(paddock: Paddock, job: int) -> list[str]:
    return [type(event).__name__ for event in paddock.history(job)]


def shrunk(paddock: Paddock, **more: int) -> int:
    """A gang of two that has lost a node, and runs on the other."""
    for name in ("a", "b"):
        paddock.node_joins(name, cpus=4)
    [job] = paddock.submit(shape(2, least=1, cpus=4, rendezvous=True, **more))
    paddock.starts(job)
    saves(paddock, job, 10)
    paddock.goes_silent("b")
    paddock.pass_time(4)
    assert paddock.nodes_of(job) == ["a"]
    paddock.starts(job)
    return job


@pytest.mark.parametrize(("cpus", "instances"), [(1, None), (2, 2), (3, 3), (4, 4), (5, 5), (6, 5)])
def test_a_gang_takes_what_there_is_room_for(paddock: Paddock, cpus: int, instances: int | None) -> None:
    paddock.node_joins("a", cpus=cpus)
    [job] = paddock.submit(shape(3, least=2, most=5))
    if instances is None:
        assert paddock.why(job).never
        assert "asked 2 to 5 tasks" in paddock.why(job).reasons[0].text
    else:
        assert paddock.nodes_of(job) == ["a"] * instances


def test_more_than_it_asked_for_only_while_nobody_waits(paddock: Paddock) -> None:
    paddock.node_joins("a", cpus=4)
    first, second, third = paddock.submit(shape(cpus=4), shape(1, most=4), shape(cpus=3))
    paddock.starts(first)
    paddock.finishes(first)
    assert (len(paddock.nodes_of(second)), paddock.nodes_of(third)) == (1, ["a"])


def test_a_node_s_loss_costs_its_instances_and_no_retry(paddock: Paddock) -> None:
    job = shrunk(paddock)
    assert placed(paddock, job) == [
        "starts with 2 instances (2 asked, 1 to 2)",
        "goes on with 1 of 2 instances (min 1): b lost",
    ]
    assert paddock.job(job).course.retries_used == 0
    starts = paddock.starts_sent(job)
    assert (starts[-1].job.world_size, starts[-1].job.course.rendezvous_port > 0) == (1, True)
    [_, size] = paddock.why(job).reasons
    assert size.text.startswith("1 instance (2 asked, 1 to 2): there is no room for more instances; a has")
    assert size.fields["could_have"] == 1


def test_a_replacement_that_is_free_is_taken(paddock: Paddock) -> None:
    for name in ("a", "b", "c"):
        paddock.node_joins(name, cpus=4)
    [job] = paddock.submit(shape(2, least=1, cpus=4))
    paddock.starts(job)
    paddock.goes_silent("b")
    paddock.pass_time(4)
    assert paddock.nodes_of(job) == ["a", "c"]


def test_survivors_close_up_where_the_first_is_lost(paddock: Paddock) -> None:
    for name in ("a", "b", "c"):
        paddock.node_joins(name, cpus=4)
    [job] = paddock.submit(shape(3, least=1, cpus=4))
    paddock.starts(job)
    paddock.goes_silent("a")
    paddock.pass_time(4)
    assert paddock.nodes_of(job) == ["b", "c"]


def test_below_its_least_it_waits_for_the_node(paddock: Paddock) -> None:
    for name in ("a", "b", "c"):
        paddock.node_joins(name, cpus=4)
    [job] = paddock.submit(shape(3, least=2, cpus=4))
    paddock.starts(job)
    for name in ("b", "c"):
        paddock.goes_silent(name)
        paddock.pass_time(4)
        if paddock.state_of(job) is JobState.STARTING:
            paddock.starts(job)
    assert paddock.nodes_of(job) == ["a", "c"], "stranded: one is less than two"
    [stranded, *_] = paddock.why(job).reasons
    assert "no other node could take 2 of its tasks: never: all 1 nodes" in stranded.text
    assert (stranded.fields["tasks"], stranded.fields["fit_now"]) == (2, 1)


def test_it_does_not_stop_for_a_node_whose_pool_still_warms_up(paddock: Paddock) -> None:
    job = shrunk(paddock)
    paddock.node_joins("c", cpus=4, warming=True)
    assert "c still imports what its warm pool needs" in paddock.why(job).reasons[-1].text
    saves(paddock, job, 20)
    assert paddock.stops_sent(job)[-1].key.attempt == 1
    paddock.node_joins("c", cpus=4)
    saves(paddock, job, 21)
    assert paddock.stops_sent(job)[-1].key.attempt == 2


def test_it_grows_at_its_next_checkpoint_and_not_before(paddock: Paddock) -> None:
    job = shrunk(paddock)
    paddock.node_joins("c", cpus=4)
    assert "grows to 2 at its next checkpoint (none so far" in paddock.why(job).reasons[-1].text
    paddock.pass_time(60)
    assert (paddock.job(job).attempt, paddock.stops_sent(job)[-1].key.attempt) == (2, 1)
    saves(paddock, job, 20)
    stop = paddock.stops_sent(job)[-1]
    assert (stop.key.attempt, stop.grace_us, stop.why) == (2, 30_000_000, "resized")
    saves(paddock, job, 21)
    stops(paddock, job)
    assert paddock.nodes_of(job) == ["a", "c"] and paddock.job(job).attempt == 3
    assert paddock.starts_sent(job)[-1].job.course.checkpoints[0].step == 21
    assert placed(paddock, job)[-1] == "goes on with 2 instances (2 asked, 1 to 2)"
    course = paddock.job(job).course
    assert (course.retries_used, course.free_restarts, course.growth) == (0, 1, None)
    paddock.starts(job)
    book = paddock.ledger(job)
    assert book.restarting_us > 0 and kinds(paddock, job).count("StopRequested") == 1


@pytest.mark.parametrize(("took_s", "grace_s"), [(1, 30), (60, 245)])
def test_a_gang_that_is_to_grow_has_the_time_that_its_saves_take(
    paddock: Paddock, took_s: int, grace_s: int
) -> None:
    """As in a preemption: also by the very save at which it stops."""
    paddock.node_joins("a", cpus=2)
    [job] = paddock.submit(shape(1, most=2, cpus=2))
    paddock.starts(job)
    paddock.node_joins("b", cpus=2)
    paddock.saves(job, 10, took_us=took_s * 1_000_000)
    [stop] = paddock.stops_sent(job)
    assert (stop.why, stop.grace_us) == ("resized", grace_s * 1_000_000)


def test_ranks_that_can_stay_up_go_on_in_the_larger_gang(paddock: Paddock) -> None:
    job = shrunk(paddock)
    lost_us = paddock.ledger(job).lost_us
    paddock.node_joins("c", cpus=4)
    saves(paddock, job, 20)
    keep_us = paddock.state.settings.reform_us
    assert paddock.stops_sent(job)[-1].keep_us == keep_us
    paddock.pass_time(2)
    paddock.says(job, 0, s.Waiting(1))
    assert (paddock.nodes_of(job), paddock.job(job).attempt) == (["a", "c"], 3)
    stop = paddock.stops_sent(job)[-1]
    assert (stop.key.attempt, stop.grace_us, stop.keep_us) == (2, 0, keep_us)
    paddock.starts(job)
    paddock.says(job, 0, s.Reformed((1,), 2, 24, 250_000))
    assert paddock.ledger(job).lost_us == lost_us, "what they did after the checkpoint is theirs still"


def test_no_rank_of_an_exclusive_gang_stays_up_to_grow(paddock: Paddock) -> None:
    paddock.node_joins("a", cpus=2)
    [job] = paddock.submit(shape(1, most=2, cpus=2, exclusive=True))
    paddock.starts(job)
    paddock.node_joins("b", cpus=2)
    saves(paddock, job, 10)
    stop = paddock.stops_sent(job)[-1]
    assert (stop.why, stop.keep_us) == ("resized", 0)


def test_ranks_that_wait_to_grow_when_the_job_is_cancelled_are_killed(paddock: Paddock) -> None:
    job = shrunk(paddock)
    paddock.node_joins("c", cpus=4)
    saves(paddock, job, 20)
    paddock.cancel(job)
    paddock.says(job, 0, s.Waiting(1))
    assert paddock.state_of(job) is JobState.CANCELLED
    stop = paddock.stops_sent(job)[-1]
    assert (stop.grace_us, stop.keep_us) == (0, 0)


def test_what_was_done_after_the_checkpoint_is_lost_where_the_script_does_not_save(paddock: Paddock) -> None:
    job = shrunk(paddock)
    lost_us = paddock.ledger(job).lost_us
    paddock.node_joins("c", cpus=4)
    saves(paddock, job, 20)
    paddock.pass_time(2)
    stops(paddock, job)
    assert paddock.ledger(job).lost_us - lost_us == 2_000_000


def test_who_waits_is_not_passed_over(paddock: Paddock) -> None:
    job = shrunk(paddock)
    paddock.node_joins("c", cpus=4)
    paddock.submit(shape(2, cpus=4))
    saves(paddock, job, 20)
    assert kinds(paddock, job)[-2:] == ["CheckpointAccepted", "GrowthDropped"]
    assert paddock.why(job).reasons[-1].text.endswith("what is free goes to job 2 first, which waits")
    paddock.cancel(2)
    assert kinds(paddock, job)[-1] == "GrowthPlanned", "nobody waits any more"


def test_room_that_is_gone_is_not_grown_into(paddock: Paddock) -> None:
    job = shrunk(paddock)
    paddock.node_joins("c", cpus=4)
    paddock.submit(shape(cpus=1))
    saves(paddock, job, 20)
    assert paddock.job(job).course.stop is None
    assert kinds(paddock, job)[-1] == "GrowthDropped"


def test_a_second_gang_waits_until_the_first_has_grown(paddock: Paddock) -> None:
    paddock.node_joins("a", cpus=2)
    one, two = paddock.submit(*[shape(1, most=2)] * 2)
    for job in (one, two):
        paddock.starts(job)
    assert [len(paddock.nodes_of(job)) for job in (one, two)] == [1, 1]
    paddock.node_joins("b", cpus=2)
    saves(paddock, one, 1)
    saves(paddock, two, 1)
    assert [paddock.job(job).course.stop is not None for job in (one, two)] == [True, False]
    stops(paddock, one)
    paddock.starts(one)
    assert (len(paddock.nodes_of(one)), paddock.job(two).course.stop) == (2, None)
    saves(paddock, two, 2)
    assert paddock.job(two).course.stop is not None


def test_room_for_one_more_is_for_one_of_two(paddock: Paddock) -> None:
    paddock.node_joins("a", cpus=2)
    one, two = paddock.submit(*[shape(1, most=2)] * 2)
    for job in (one, two):
        paddock.starts(job)
        saves(paddock, job, 1)
    paddock.node_joins("b", cpus=1)
    assert ["GrowthPlanned" in kinds(paddock, job) for job in (one, two)] == [True, False]


def test_a_cancel_counts_more_than_a_stop_to_grow(paddock: Paddock) -> None:
    job = shrunk(paddock)
    paddock.node_joins("c", cpus=4)
    saves(paddock, job, 20)
    paddock.cancel(job)
    stop = paddock.job(job).course.stop
    assert stop is not None and (stop.outcome, stop.why) == (AttemptOutcome.CANCELLED, "")
    stops(paddock, job)
    assert paddock.state_of(job) is JobState.CANCELLED


def test_a_run_that_ends_while_it_is_stopped_has_ended_well(paddock: Paddock) -> None:
    job = shrunk(paddock)
    paddock.node_joins("c", cpus=4)
    saves(paddock, job, 20)
    paddock.finishes(job)
    assert paddock.state_of(job) is JobState.SUCCEEDED


def test_a_silent_part_is_not_asked_to_stop(paddock: Paddock) -> None:
    for name in ("a", "b"):
        paddock.node_joins(name, cpus=4)
    [job] = paddock.submit(shape(3, least=2, cpus=4))
    paddock.starts(job)
    paddock.node_joins("c", cpus=4)
    paddock.stream_breaks("b")
    saves(paddock, job, 10)
    assert paddock.job(job).course.stop is None and paddock.job(job).course.growth is not None


@given(
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 3),
    st.lists(st.sampled_from(["join", "lose", "save", "stop", "start", "other", "done"]), max_size=25),
)
def test_a_gang_stays_within_its_bounds_and_grows_once_for_a_checkpoint(
    count: int, fewer: int, more: int, moves: list[str]
) -> None:
    paddock = Paddock()
    least, most = max(1, count - fewer), count + more
    [job] = paddock.submit(shape(count, least=least, most=most, cpus=2))
    others: list[int] = []
    for at, move in enumerate(moves):
        found = paddock.job(job)
        if move == "join":
            paddock.node_joins(f"n{at}", cpus=2 + at % 3)
        elif move == "lose" and paddock.sessions:
            paddock.goes_silent(min(paddock.sessions))
            paddock.pass_time(4, step_s=1)
        elif move == "start" and found.state is JobState.STARTING:
            paddock.starts(job)
        elif move == "save" and found.state is JobState.RUNNING:
            saves(paddock, job, at)
        elif move == "stop" and found.course.stop is not None:
            stops(paddock, job)
        elif move == "other":
            others += paddock.submit(shape(cpus=2))
        elif move == "done" and others:
            paddock.cancel(others.pop(), grace_s=0)
        now = paddock.job(job)
        assert not now.placed or least <= len(now.tasks) <= most
        state_is_sane(paddock.state)
    told = kinds(paddock, job)
    grown = told.count("StopRequested")
    assert grown <= told.count("CheckpointAccepted") and grown <= told.count("GrowthPlanned")
    assert sum(ledger_parts(paddock, job)) == paddock.ledger(job).wall_us


def ledger_parts(paddock: Paddock, job: int) -> list[int]:
    book = paddock.ledger(job)
    return [
        book.queued_us,
        book.starting_us,
        book.productive_us,
        book.checkpoint_us,
        book.lost_us,
        book.restarting_us,
        book.hung_us,
    ]
