"""The ledger as a bar and as a line: its cells add up to the bar, and no part that is there vanishes."""

from hypothesis import given
from hypothesis import strategies as st
from paceline.client.cli.timeline import cells, entry_lines, goodput_line, seconds
from paceline.client.views import Ledger, Timeline, TimelineEntry
from paceline.spec.ids import Attempt, Micros

parts = st.lists(st.integers(0, 10**12), min_size=7, max_size=7)


def ledger_of(values: list[int]) -> Ledger:
    return Ledger(sum(values), *values)


@given(parts, st.integers(7, 200))
def test_the_cells_add_up_and_every_part_has_one(values: list[int], width: int) -> None:
    ledger = ledger_of(values)
    drawn = cells(ledger, width)
    assert [name for name, _ in drawn] == [name for name, us in ledger.parts if us]
    assert all(count >= 1 for _, count in drawn)
    assert sum(count for _, count in drawn) == (width if any(values) else 0)


@given(parts)
def test_a_larger_part_never_has_fewer_cells(values: list[int]) -> None:
    ledger = ledger_of(values)
    drawn = dict(cells(ledger, 60))
    ordered = sorted((us, drawn[name]) for name, us in ledger.parts if us)
    assert [count for _, count in ordered] == sorted(count for _, count in ordered)


@given(parts)
def test_the_parts_add_up_to_the_wall_time(values: list[int]) -> None:
    ledger = ledger_of(values)
    assert sum(us for _, us in ledger.parts) == ledger.wall_us
    assert 0 <= ledger.goodput <= 1


def test_the_line_names_what_there_is() -> None:
    ledger = ledger_of([1_000_000, 500_000, 8_000_000, 0, 1_500_000, 0, 0])
    assert goodput_line(ledger) == (
        "goodput 80% of 10.0 s: queued 1.00 s, starting 0.50 s, productive 8.00 s, lost 1.50 s"
    )


def story(kinds: str) -> Timeline:
    """A timeline with one entry a letter, a millisecond apart."""
    entries = [
        TimelineEntry(seq, Micros(seq * 1000), Attempt(1), kind, f"{kind}{seq}", "{}")
        for seq, kind in enumerate(kinds)
    ]
    return Timeline(None, tuple(entries), ledger_of([0] * 7))  # type: ignore[arg-type]


@given(st.text(alphabet="abc", max_size=60))
def test_folding_leaves_out_only_what_it_counts(kinds: str) -> None:
    lines = list(entry_lines(story(kinds)))
    left_out = sum(int(line.split()[1]) for line in lines if "more of this kind" in line)
    shown = [line for line in lines if "more of this kind" not in line]
    assert len(shown) + left_out == len(kinds)
    assert len(list(entry_lines(story(kinds), 1000))) == len(kinds)


def test_a_long_row_of_one_kind_is_folded() -> None:
    lines = list(entry_lines(story("a" + "c" * 30 + "b")))
    assert [line.split()[-1] for line in lines] == ["a0", "c1", "them)", "c30", "b31"]
    assert "... 28 more" in lines[2]


def test_times_since_the_submit() -> None:
    assert seconds(12_345_678) == "+12.346"
    assert seconds(3_723_450_000) == "+1:02:03.45"
