"""Ranks' bytes on stdout: whole into pipes, harmless on terminals, however they were cut into chunks."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.client.cli import output, stream
from paceline.client.views import LogChunk
from paceline.spec.ids import Attempt, JobId

SAFE = re.compile(r"\x1b\[[0-9;:]*[mKABCDG]")
pieces = st.lists(
    st.sampled_from(
        [
            b"\x1b",
            b"[",
            b"31m",
            b"\x1b[0m",
            b"\x1b]52;c;aGk=\x07",
            b"\x1b[2J",
            b"\x9b",
            "\u202e".encode(),
            b"\n",
            b"\r",
        ]
    )
    | st.binary(max_size=8),
    max_size=30,
)


def chunk(rank: int, data: bytes, *, offset: int = 0, attempt: int = 1, dropped: int = 0) -> LogChunk:
    return LogChunk(JobId(1), Attempt(attempt), rank, offset, data, dropped)


def filtered(parts: list[bytes]) -> str:
    made = stream.TerminalFilter()
    return "".join([made.feed(part) for part in parts]) + made.finish()


@given(pieces)
def test_on_a_terminal_nothing_acts_but_colours_and_drawing(parts: list[bytes]) -> None:
    rest = SAFE.sub("", filtered(parts))
    assert not re.search(r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", rest)


@given(pieces)
def test_how_the_bytes_were_cut_makes_no_difference(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    assert filtered(parts) == filtered([whole]) == filtered([whole[i : i + 1] for i in range(len(whole))])


def test_colours_pass_and_the_clipboard_does_not() -> None:
    assert filtered([b"\x1b[1;32mok\x1b[0m \x1b]52;c;aGk=\x07"]) == "\x1b[1;32mok\x1b[0m \\x1b]52;c;aGk=\\x07"


def test_one_rank_passes_unchanged_into_a_pipe() -> None:
    written = io.BytesIO()
    writer = stream.Plain(written)
    data = bytes(range(256)) * 3
    writer.write(chunk(0, data[:100]))
    writer.write(chunk(0, data[100:]))
    writer.finish()
    assert written.getvalue() == data


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.binary(max_size=20).map(lambda b: b.replace(b"[", b"\n"))),
        max_size=40,
    )
)
def test_several_ranks_keep_their_lines_whole(writes: list[tuple[int, bytes]]) -> None:
    written = io.BytesIO()
    writer = stream.Merged(written)
    for rank, data in writes:
        writer.write(chunk(rank, data))
    writer.finish()
    for rank in range(3):
        prefix = f"[r{rank}] ".encode()
        sent = b"".join(data for of, data in writes if of == rank)
        lines = [line[len(prefix) :] for line in written.getvalue().split(b"\n") if line.startswith(prefix)]
        assert b"\n".join(lines) == sent.removesuffix(b"\n")


def test_a_line_without_end_does_not_hold_up_memory_or_others() -> None:
    written = io.BytesIO()
    writer = stream.Merged(written)
    for _ in range(40):
        writer.write(chunk(0, b"x" * 10_000))
        writer.write(chunk(1, b"here\n"))
    assert written.getvalue().count(b"[r1] here\n") == 40
    assert b"[r0] x" in written.getvalue()
    writer.finish()
    assert written.getvalue().count(b"x") == 400_000


def test_a_new_attempt_starts_on_a_new_line() -> None:
    written = io.BytesIO()
    writer = stream.Merged(written)
    writer.write(chunk(0, b"step 1", attempt=1))
    writer.write(chunk(0, b"step 1\n", attempt=2))
    assert written.getvalue() == b"[r0] step 1\n[r0] step 1\n"


def test_on_a_terminal_a_progress_bar_shows_its_last_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda stream=None: True)
    written = io.BytesIO()
    writer = stream.Merged(written)
    writer.write(chunk(1, b"10%\r20%\r100%\r\n"))
    text = written.getvalue().decode()
    assert "100%" in text and "20%" not in text


def test_bytes_that_are_gone_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    writer = stream.Plain(io.BytesIO())
    writer.write(chunk(2, b"rest", offset=1000, dropped=1000))
    assert "[r2] 1000 bytes before this are gone" in capsys.readouterr().err
