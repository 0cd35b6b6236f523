"""What those ask for together that have waited long, whatever came, left and was asked before."""

from hypothesis import given
from hypothesis import strategies as st
from paceline.scheduler.core.waits import Share, Waits
from paceline.spec.ids import JobId

moves = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 6), st.integers(-5, 5)),
        st.tuples(st.just("drop"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("counts"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("ask"), st.integers(-6, 6), st.just(0)),
    ),
    max_size=60,
)


@given(moves)
def test_what_is_asked_for_is_the_plain_sum(moves: list[tuple[str, int, int]]) -> None:
    waits, shares = Waits(), (Share(1000), Share(10))
    there: dict[int, tuple[int, Share]] = {}
    for what, which, value in moves:
        if what == "add" and which not in there:
            there[which] = (value, shares[which % 2])
            waits.add([(value, JobId(which))], shares[which % 2])
        elif what == "drop":
            there.pop(which, None)
            waits.drop(JobId(which))
        elif what == "counts":
            waits.set_counts(shares[which], counts=bool(value))
        plain = sum(share.milli for since, share in there.values() if share.counts and since <= which)
        assert waits.asked_milli(which) == plain


def test_many_at_once_are_as_one_by_one_and_what_left_takes_no_room() -> None:
    waits, share = Waits(), Share(5)
    for round_ in range(50):
        waits.add(((at, JobId(at)) for at in range(100)), share)
        assert waits.asked_milli(49) == 50 * 5
        for at in range(100):
            waits.drop(JobId(at))
        assert waits.asked_milli(200) == 0, round_
    assert not waits.standing and len(waits.coming) <= 64
