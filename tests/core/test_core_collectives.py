"""Who is waited for, by what torch's flight recorder says of each rank."""

import pytest
from paceline.scheduler.core.collectives import judge
from paceline.scheduler.core.hang import GroupLook, RankLook

REDUCE, GATHER = "nccl:all_reduce", "nccl:all_gather"


def rank(number: int, *groups: GroupLook) -> RankLook:
    return RankLook(number, groups=groups)


def waits(last: int, open_: int, what: str = REDUCE, group: str = "0") -> GroupLook:
    return GroupLook(group, last, what, open_, what)


def done(last: int, what: str = REDUCE, group: str = "0") -> GroupLook:
    return GroupLook(group, last, what)


def told(*looks: RankLook) -> dict[int, str]:
    late, why = judge(looks)
    return {look.rank: why(look) for look in late}


def test_whoever_has_not_begun_what_the_others_wait_in_is_named() -> None:
    """On a GPU, those may have begun more meanwhile."""
    assert told(rank(0, waits(45, 41)), rank(1, done(40)), rank(2, waits(41, 41))) == {
        1: "did not begin nccl:all_reduce, no. 41 of the default group, in which others wait"
        " (its own last: no. 40)"
    }


def test_of_a_chain_the_one_that_waits_for_nobody() -> None:
    """Rank 0 waits for 1 in one group, 1 for 2 in another."""
    chain = [
        rank(0, waits(7, 7, group="1")),
        rank(1, done(6, group="1"), waits(9, 9, group="2")),
        rank(2, done(8, group="2")),
    ]
    assert list(told(*chain)) == [2]


def test_ranks_that_wait_for_each_other_are_all_named() -> None:
    """In two groups, each entered in another order."""
    crossed = [
        rank(0, waits(5, 5, group="1"), done(4, group="2")),
        rank(1, done(4, group="1"), waits(5, 5, group="2")),
    ]
    assert list(told(*crossed)) == [0, 1]


def test_where_the_last_of_a_chain_says_nothing_it_is_not_the_one_before() -> None:
    assert not told(rank(0, waits(7, 7)), rank(1, done(6), waits(9, 9, group="2")), rank(2))


@pytest.mark.parametrize(
    ("operations", "named"),
    [((REDUCE, GATHER, REDUCE), [1]), ((REDUCE, GATHER), [0, 1]), ((REDUCE, REDUCE), [])],
)
def test_another_operation_under_the_same_number_is_named(operations: list[str], named: list[int]) -> None:
    found = told(*(rank(number, waits(8, 8, what)) for number, what in enumerate(operations)))
    assert list(found) == named
    if named == [1]:
        assert found[1] == f"began {GATHER} as no. 8 of the default group, the others {REDUCE}"


def test_nobody_is_behind_where_all_are_through_or_nothing_is_known() -> None:
    assert not told(rank(0, done(8)), rank(1, done(8)))
    assert not told(rank(0), rank(1, waits(8, 8)))
    assert not told()
