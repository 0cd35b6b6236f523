"""Limits, guarantees and fair order: one short story per rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.scheduler.core.cluster_policy import (
    Amount,
    ClusterPolicy,
    QueuePolicy,
    UserAmount,
    tree_of,
)
from paceline.scheduler.core.effects import StopTask
from paceline.scheduler.core.fair import Levels
from paceline.scheduler.core.quota import Reclaim
from paceline.spec.ids import Micros
from paceline.spec.lifecycle import JobState
from support.paddock import Paddock, shape


@pytest.fixture
def paddock() -> Paddock:
    made = Paddock()
    made.node_joins("n", gpus=32, cpus=320)
    return made


def order(paddock: Paddock, *leaves: str) -> list[str]:
    levels = Levels(paddock.state, Micros(paddock.now_us))
    return sorted(leaves, key=lambda leaf: levels.of(leaf, "", 0))


def ends(paddock: Paddock, job: int) -> None:
    paddock.starts(job)
    paddock.finishes(job)


# Limits


def test_a_queue_at_its_limit_is_passed_over_and_says_who_holds_it(paddock: Paddock) -> None:
    paddock.policy_becomes(ClusterPolicy({"a": QueuePolicy(), "a/b": QueuePolicy(max=Amount(16_000))}))
    first, second, third = paddock.submit(*(shape(gpus=gpus, queue="a/b") for gpus in (4, 8, 6)))
    assert [paddock.job(job).placed for job in (first, second, third)] == [True, True, False]
    assert paddock.why(third).reasons[0].text == (
        f"queue a/b has 12 of at most 16 GPUs, asked 6 GPUs; job {second} holds 8, job {first} holds 4"
    )
    [small, elsewhere] = paddock.submit(shape(gpus=4, queue="a/b"), shape(gpus=6, queue="a"))
    assert paddock.job(small).placed and paddock.job(elsewhere).placed
    ends(paddock, second)
    assert paddock.job(third).placed


def test_a_user_at_their_limit_leaves_the_others_theirs(paddock: Paddock) -> None:
    paddock.policy_becomes(
        ClusterPolicy(
            {
                "": QueuePolicy(max_per_user=UserAmount(jobs=2)),
                "a": QueuePolicy(max_per_user=UserAmount(8_000)),
            }
        )
    )
    first, second = paddock.submit(shape(gpus=6, queue="a"), shape(gpus=4, queue="a"))
    [other] = paddock.submit(shape(gpus=6, queue="a"), user="bob")
    assert [paddock.job(job).placed for job in (first, second, other)] == [True, False, True]
    assert paddock.why(second).reasons[0].text == (
        f"user ann in queue a has 6 of at most 8 GPUs, asked 4 GPUs; job {first} holds 6"
    )
    third, fourth = paddock.submit(shape(), shape())
    assert paddock.job(third).placed
    assert paddock.why(fourth).reasons[0].text == (
        f"user ann has 2 of at most 2 jobs, asked 1 job; jobs {first} and {third} run"
    )


def test_what_can_never_be_within_a_limit_says_never(paddock: Paddock) -> None:
    paddock.policy_becomes(ClusterPolicy({"a": QueuePolicy(max=Amount(cpu_milli=8_000))}))
    [job] = paddock.submit(shape(3, cpus=3, queue="a"))
    said = paddock.why(job)
    assert said.never and said.reasons[0].text == "never: queue a may have at most 8 cpus, asked 9 cpus"
    paddock.policy_becomes(ClusterPolicy({"a": QueuePolicy(max=Amount(cpu_milli=9_000))}))
    assert paddock.job(job).placed, "the knob was turned while it waited"


def test_an_elastic_gang_is_as_large_as_its_limits_let_it(paddock: Paddock) -> None:
    paddock.policy_becomes(ClusterPolicy({"a": QueuePolicy(max=Amount(6_000))}))
    [job] = paddock.submit(shape(4, gpus=2, least=1, most=8, queue="a"))
    assert len(paddock.job(job).tasks) == 3
    paddock.starts(job)
    paddock.pass_time(1)
    assert paddock.job(job).course.growth is None
    paddock.policy_becomes(ClusterPolicy({"a": QueuePolicy(max=Amount(16_000))}))
    growth = paddock.job(job).course.growth
    assert growth is not None and growth.to == 8


# Order


def test_lines_take_turns_as_their_jobs_start(paddock: Paddock) -> None:
    """Who came first does not matter, nor how many each has sent."""
    paddock.policy_becomes(ClusterPolicy({"a": QueuePolicy(2.0), "b": QueuePolicy()}))
    [blocker] = paddock.submit(shape(gpus=32, queue="b"), user="eve")
    many = paddock.submit(*[shape(gpus=4, queue="b")] * 10)
    few = paddock.submit(*[shape(gpus=4, queue="a")] * 8)
    ends(paddock, blocker)
    started = [job for job in (*few, *many) if paddock.job(job).placed]
    assert started == few[:5] + many[:3], "a has twice the weight"


def test_priority_orders_a_queue_and_no_other(paddock: Paddock) -> None:
    paddock.policy_becomes(ClusterPolicy({"a": QueuePolicy(), "b": QueuePolicy()}))
    [blocker] = paddock.submit(shape(gpus=32, queue="a"), user="eve")
    [mine] = paddock.submit(shape(gpus=32, queue="a"))
    [urgent] = paddock.submit(shape(gpus=32, queue="a"), user="bob", priority=9)
    [other] = paddock.submit(shape(gpus=32, queue="b"))
    order = []
    for job in (blocker, other, urgent):
        paddock.pass_time(300, step_s=100)
        ends(paddock, job)
        order += [one for one in (mine, urgent, other) if one not in order and paddock.job(one).placed]
    assert order == [other, urgent, mine]


def test_a_restart_goes_first_whatever_its_queue(paddock: Paddock) -> None:
    paddock.policy_becomes(ClusterPolicy({"a": QueuePolicy(), "b": QueuePolicy(100.0)}))
    [job] = paddock.submit(shape(gpus=32, queue="a", retries=1))
    [other] = paddock.submit(shape(gpus=32, queue="b"))
    paddock.starts(job)
    paddock.rank_dies(job, 0, 1, "boom")
    assert paddock.job(job).placed and paddock.job(job).attempt == 2 and not paddock.job(other).placed


def test_without_queues_users_stand_in_one_line(paddock: Paddock) -> None:
    [blocker] = paddock.submit(shape(gpus=32), user="eve")
    first, second = paddock.submit(shape(gpus=32), shape(gpus=32))
    [other] = paddock.submit(shape(gpus=32), user="bob")
    ends(paddock, blocker)
    assert [paddock.job(job).placed for job in (first, second, other)] == [True, False, False]
    assert "waits behind 1 job" in paddock.why(other).reasons[0].text
    paddock.policy_becomes(ClusterPolicy({"a": QueuePolicy()}))
    paddock.pass_time(300, step_s=100)
    ends(paddock, first)
    assert paddock.job(other).placed, "queues make lines for users, too"


def test_who_has_used_the_least_for_their_weight_goes_first(paddock: Paddock) -> None:
    paddock.policy_becomes(
        ClusterPolicy({"a": QueuePolicy(2.0), "b": QueuePolicy(), "c": QueuePolicy(), "a/x": QueuePolicy()})
    )
    assert order(paddock, "b/u", "a/u") == ["b/u", "a/u"], "equals stay as they came"
    for queue, gpus in (("a", 4), ("b", 3), ("c", 1)):
        paddock.submit(shape(gpus=gpus, queue=queue))
    assert order(paddock, "a/u", "b/u", "c/u") == ["c/u", "a/u", "b/u"], "charged as soon as they start"
    paddock.pass_time(3600, step_s=600)
    assert order(paddock, "a/u", "b/u", "c/u") == ["c/u", "a/u", "b/u"]
    assert order(paddock, "a/ann", "a/u", "b/u") == ["a/u", "a/ann", "b/u"], "all of a before all of b"


def test_a_part_of_the_tree_moves_nobody_in_another(paddock: Paddock) -> None:
    """Fair Tree's promise: what b's users do among themselves does not matter to a's."""
    paddock.policy_becomes(ClusterPolicy({"a": QueuePolicy(), "b": QueuePolicy()}))
    paddock.submit(shape(gpus=2, queue="a"))
    paddock.submit(shape(gpus=1, queue="b"), user="bob")
    paddock.submit(shape(gpus=1, queue="a"), user="bob")
    leaves = ("a/ann", "a/bob", "b/bob", "b/eve")
    assert order(paddock, *leaves) == ["b/eve", "b/bob", "a/bob", "a/ann"]


def test_who_is_below_their_guarantee_goes_before_all_others(paddock: Paddock) -> None:
    paddock.policy_becomes(
        ClusterPolicy({"a": QueuePolicy(guaranteed=Amount(8_000)), "b": QueuePolicy(weight=100.0)})
    )
    paddock.submit(shape(gpus=7, queue="a"))
    assert order(paddock, "b/u", "a/u") == ["a/u", "b/u"]
    paddock.submit(shape(gpus=1, queue="a"))
    assert order(paddock, "b/u", "a/u") == ["b/u", "a/u"]


# Reclaim


GUARANTEED = ClusterPolicy(
    {
        "a": QueuePolicy(guaranteed=Amount(16_000)),
        "b": QueuePolicy(guaranteed=Amount(8_000)),
        "b/x": QueuePolicy(guaranteed=Amount(4_000)),
        "b/y": QueuePolicy(),
        "c": QueuePolicy(),
    }
)


def test_a_guarantee_is_taken_back_from_those_who_borrow(paddock: Paddock) -> None:
    paddock.policy_becomes(GUARANTEED)
    b1, b2, y, c = paddock.submit(
        *(shape(gpus=gpus, queue=queue) for queue, gpus in (("b", 8), ("b", 8), ("b/y", 4), ("c", 12)))
    )
    [own] = paddock.submit(shape(2, gpus=8, queue="a"))
    claim = Reclaim(paddock.state, paddock.job(own))
    assert claim.entitled == "a"
    assert claim.may_take(paddock.job(c)), "c is guaranteed nothing"
    assert claim.may_take(paddock.job(b1))
    claim.take(paddock.job(b1))
    assert claim.may_take(paddock.job(b2)), "b has 12 of its 8"
    claim.take(paddock.job(y))
    assert not claim.may_take(paddock.job(b2)), "b has its 8 and no more"


def test_nobody_claims_beyond_their_guarantee(paddock: Paddock) -> None:
    paddock.policy_becomes(GUARANTEED)
    c, _ = paddock.submit(shape(gpus=20, queue="c"), shape(gpus=12, queue="a"))
    [own] = paddock.submit(shape(gpus=8, queue="a"))
    claim = Reclaim(paddock.state, paddock.job(own))
    assert claim.entitled == "" and not claim.may_take(paddock.job(c))


def test_a_guarantee_counts_where_the_ways_part(paddock: Paddock) -> None:
    paddock.policy_becomes(GUARANTEED)
    y, c = paddock.submit(shape(gpus=8, queue="b/y"), shape(gpus=24, queue="c"))
    [x] = paddock.submit(shape(gpus=4, queue="b/x"))
    claim = Reclaim(paddock.state, paddock.job(x))
    assert claim.entitled == "b/x", "b itself has all of its guarantee already"
    assert claim.may_take(paddock.job(y)), "its sister borrows within b"
    assert claim.may_take(paddock.job(c)), "x's own guarantee holds against everybody"
    [other] = paddock.submit(shape(gpus=1, queue="b/y"))
    assert not Reclaim(paddock.state, paddock.job(other)).may_take(paddock.job(c))


def test_a_queue_has_its_guarantee_when_it_asks(paddock: Paddock) -> None:
    paddock.policy_becomes(GUARANTEED)
    borrower = paddock.submit(*[shape(gpus=8, queue="c")] * 4)
    for job in borrower:
        paddock.starts(job)
    paddock.pass_time(700, step_s=100)
    [own, more] = paddock.submit(shape(2, gpus=8, queue="a"), shape(gpus=8, queue="a"))
    left = {stop.key.job for stop in paddock.sent if isinstance(stop, StopTask)}
    assert len(left) == 2 and left < set(borrower), "two leave, for what is guaranteed; none for more"
    stops = [paddock.job(job).course.stop for job in sorted(left)]
    assert {stop.why for stop in stops if stop is not None} == {
        f"queue a has 16 GPUs guaranteed, and job {own} claims them"
    }
    assert "job 1, job 2 save and leave" in paddock.why(own).reasons[0].text
    assert not paddock.job(more).placed
    for job in left:
        paddock.task_ends(job, 0, -15)
    assert paddock.job(own).placed and not paddock.job(more).placed
    assert all(paddock.state_of(job) is JobState.QUEUED for job in left), "they wait, and go on later"


def test_guarantees_are_not_claimed_twice() -> None:
    """Two jobs at once, each within the guarantee alone: only one is."""
    paddock = Paddock()
    for name in "wxyz":
        paddock.node_joins(name, gpus=8, cpus=64)
    paddock.policy_becomes(GUARANTEED)
    borrower = paddock.submit(*[shape(gpus=8, queue="c")] * 4)
    for job in borrower:
        paddock.starts(job)
    paddock.pass_time(700, step_s=100)
    paddock.submit(shape(2, gpus=6, queue="a"), shape(2, gpus=6, queue="a"))
    paddock.submit(shape(gpus=8, queue="b"))
    left = {stop.key.job for stop in paddock.sent if isinstance(stop, StopTask)}
    assert len(left) == 3, "12 for the one of a take two, 8 for b a third"


amounts = st.none() | st.integers(0, 64_000)


@given(st.dictionaries(st.sampled_from(["", "a", "a/b", "a/b/c", "a/d", "e"]), amounts))
def test_what_is_kept_covers_those_below(guaranteed: dict[str, int | None]) -> None:
    policy = ClusterPolicy({path: QueuePolicy(guaranteed=Amount(gpus)) for path, gpus in guaranteed.items()})
    kept = tree_of(policy).guaranteed
    assert kept.keys() == guaranteed.keys()
    for path, amount in kept.items():
        below = [kept[one].gpu_milli or 0 for one in kept if one and one.rpartition("/")[0] == path]
        assert amount.gpu_milli == max(guaranteed[path] or 0, sum(below))
