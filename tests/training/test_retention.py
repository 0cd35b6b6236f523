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


POLICIES = st.builds(
    Retention,
    keep_last=st.integers(0, 4),
    keep_best=st.integers(0, 3),
    best_metric=st.sampled_from(["", "loss", "-loss"]),
    keep_every=st.integers(0, 4),
)


@given(kept=histories(), policy=POLICIES, acked_seq=st.integers(0, 90))
def test_what_goes_is_wanted_by_nobody(kept: list[Kept], policy: Retention, acked_seq: int) -> None:
    keep_last, keep_every = policy.keep_last, policy.keep_every
    gone = choose_removals(kept, policy, acked_seq)
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
    spans = {one.step // keep_every for one in good} - {0} if keep_every else set()
    for span in spans:
        assert next(one for one in good if one.step // keep_every == span) in stays, "the first in its span"
    bound = keep_last + (policy.keep_best if policy.best_metric else 0) + len(spans)
    assert len([one for one in stays if one.accepted(acked_seq)]) <= bound


def test_the_best_is_more_or_less_as_the_sign_says() -> None:
    losses = enumerate([3.0, 1.0, 2.0, 2.5])
    kept = [Kept(step, Path(str(step)), {"loss": loss}, seq=step) for step, loss in losses]
    least = choose_removals(kept, Retention(1, 1, "-loss"), acked_seq=9)
    most = choose_removals(kept, Retention(1, 1, "loss"), acked_seq=9)
    assert [one.step for one in least] == [0, 2]
    assert [one.step for one in most] == [1, 2]


@given(
    gaps=st.lists(st.integers(1, 250), min_size=1, max_size=40),
    keep_last=st.integers(1, 3),
    keep_every=st.sampled_from([1, 7, 100]),
)
def test_the_first_after_each_multiple_stays_for_ever_whatever_the_steps(
    gaps: list[int], keep_last: int, keep_every: int
) -> None:
    """As saves by time or `auto` have them: the choice is made anew after each, from what is left."""
    left: list[Kept] = []
    steps: list[int] = []
    for seq, gap in enumerate(gaps, 1):
        steps.append((steps[-1] if steps else 0) + gap)
        left.append(Kept(steps[-1], Path(str(steps[-1])), seq=seq))
        gone = choose_removals(left, Retention(keep_last, keep_every=keep_every), acked_seq=seq)
        left = [one for one in left if one not in gone]
    first = {step // keep_every: step for step in reversed(steps)}
    milestones = {step for span, step in first.items() if span}
    assert {one.step for one in left} == milestones | set(steps[-keep_last:])
