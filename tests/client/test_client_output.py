"""What reaches the screen: nothing that acts on a terminal, tables that fit, sizes and times for a person."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.client.cli import output as out
from paceline.client.cli.jobs import JOBS_COLUMNS
from paceline.client.cli.nodes import COLUMNS as NODES_COLUMNS
from rich.console import Console

BAD = "evil\x1b]0;owned\x07\x1b[2J\u202egnp.exe\nnext\tline\x9b31m\u200b"


def terminal_lines(table: out.Table, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the table looks like on a terminal of this width, colours taken away."""
    screen = io.StringIO()
    made = Console(
        file=screen,
        width=width,
        force_terminal=True,
        color_system=None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    monkeypatch.setattr(out, "console", lambda: made)
    monkeypatch.setattr(out, "is_terminal", lambda stream=None: True)
    out.show_table(table)
    return screen.getvalue().splitlines()


@given(st.text())
def test_clean_leaves_nothing_that_acts(text: str) -> None:
    cleaned = out.clean(text)
    assert cleaned.isprintable()
    assert not [char for char in cleaned if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")]


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"])))
def test_clean_leaves_what_is_printable_as_it_is(text: str) -> None:
    if text.isprintable():
        assert out.clean(text) == text


def test_clean_shows_what_it_takes_away() -> None:
    assert out.clean("a\nb\x1b[1m\u202e") == "a\\nb\\x1b[1m\\u202e"


ROWS = [
    (
        "812",
        BAD,
        "RUNNING",
        "3",
        "2x8",
        "123456",
        "3m 05s",
        "ada",
        "org/vision",
        "needs 2 more H100 in one rack; r3 has 6 of 8 free",
    ),
    (
        "7",
        "x" * 64,
        "FAILED",
        "1",
        "1x1",
        "-",
        "0.21 s",
        "a-user-with-a-long-name",
        "",
        "exit code 1: " + "y" * 300,
    ),
    ("6", "日本語の名前" * 8, "QUEUED", "-", "128x8", "-", "5d 03h", "eve", "", ""),
]


@pytest.mark.parametrize("width", [80, 200])
def test_the_jobs_table_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = terminal_lines(out.Table(JOBS_COLUMNS, ROWS), width, monkeypatch)
    assert len(lines) == 1 + len(ROWS)  # nothing wraps
    assert max(map(_cells, lines)) <= width
    text = "\n".join(lines)
    for word in ("812", "RUNNING", "FAILED", "QUEUED", "name", "state"):
        assert word in text
    assert "\x1b]" not in text and "\u202e" not in text
    assert ("reason" in lines[0]) == (width == 200)


@pytest.mark.parametrize("width", [80, 200])
def test_the_nodes_table_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    row = (
        "node-with-quite-a-long-name-17.rack3.example",
        "connected",
        "127.5 of 128",
        "1019 GiB of 1.0 TiB",
        "6 of 8",
        "NVIDIA H100 80GB HBM3",
        "12",
        "block=b1 rack=r3, tainted spot",
        "none: torch cannot be imported here: " + "z" * 100,
        "podman 4.3.1",
        "10.20.30.140",
        "now",
        "GPU 3: 2 uncorrected ECC errors, last XID 79",
    )
    lines = terminal_lines(out.Table(NODES_COLUMNS, [row]), width, monkeypatch)
    assert len(lines) == 2
    assert max(map(_cells, lines)) <= width
    assert "connected" in lines[1] and "6 of 8" in lines[1]


def test_without_a_terminal_tables_are_whole_and_aligned() -> None:
    header, *rows = out.plain_lines(out.Table(JOBS_COLUMNS, ROWS))
    assert "y" * 300 in rows[1]
    at = header.index("state")
    assert rows[0][at:].startswith("RUNNING") and rows[1][at:].startswith("FAILED")
    assert all(row.isprintable() for row in rows)


def _cells(line: str) -> int:
    from rich.cells import cell_len

    return cell_len(line)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        (1048000, "1023 KiB"),
        (5 << 50, "5.0 PiB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert out.human_bytes(count) == text


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0.00 s"),
        (210_000, "0.21 s"),
        (12_340_000, "12.3 s"),
        (185_000_000, "3m 05s"),
        (7_620_000_000, "2h 07m"),
        (442_800_000_000, "5d 03h"),
        (-1_000_000, "-1.00 s"),
    ],
)
def test_human_time(us: int, text: str) -> None:
    assert out.human_time(us) == text
