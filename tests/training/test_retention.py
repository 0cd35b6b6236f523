"""The choice of what may go, over all kinds of histories."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from paceline.spec.retention import Retention
from paceline.training.retention import Kept, choose_removals

METRICS = st.sampled_from([float("nan"), float("inf"), 0.1, 0.2, 0.3])


@st.composite
def histories(draw: st.DrawFn) -> list[Kept]:
    """Earlier attempts' first, then this attempt's with growing seq."""
    earlier, own = draw(st.integers(0, 5)), draw(st.integers(0, 8))
    kept = []
    for number in range(earlier + own):
        seq = 10 * (number - earlier + 1) if number >= earlier else None
        metrics = draw(st.one_of(st.just({}), METRICS.map(lambda value: {"loss": value})))
        good = draw(st.booleans()) if seq is None else True
        kept.append(Kept(number, Path(str(number)), metrics, seq, good))
    return kept


@given(
    kept=histories(),
    keep_last=st.integers(0, 4),
    keep_best=st.integers(0, 3),
    best_metric=st.sampled_from(["", "loss", "-loss"]),
    acked_seq=st.integers(0, 90),
)
def test_what_goes_is_wanted_by_nobody(
    kept: list[Kept], keep_last: int, keep_best: int, best_metric: str, acked_seq: int
) -> None:
    gone = choose_removals(kept, Retention(keep_last, keep_best, best_metric), acked_seq)
    stays = [one for one in kept if one not in gone]
    acked = [one.seq for one in kept if one.seq is not None and one.seq <= acked_seq]
    newest_acked = max(acked, default=None)

    if newest_acked is None or keep_last == 0:
        assert gone == [], "nothing of this attempt is accepted yet, or all are to be kept"
        return
    assert any(one.seq == newest_acked for one in stays), "the newest accepted one stays"
    assert all(one in stays for one in kept if one.seq is not None and one.seq > acked_seq)
    good = [one for one in kept if one.good and one.accepted(acked_seq)]
    assert all(one in stays for one in good[-keep_last:])
    bound = keep_last + (keep_best if best_metric else 0)
    assert len([one for one in stays if one.accepted(acked_seq)]) <= bound


def test_the_best_is_more_or_less_as_the_sign_says() -> None:
    losses = enumerate([3.0, 1.0, 2.0, 2.5])
    kept = [Kept(step, Path(str(step)), {"loss": loss}, seq=step) for step, loss in losses]
    least = choose_removals(kept, Retention(1, 1, "-loss"), acked_seq=9)
    most = choose_removals(kept, Retention(1, 1, "loss"), acked_seq=9)
    assert [one.step for one in least] == [0, 2]
    assert [one.step for one in most] == [1, 2]
