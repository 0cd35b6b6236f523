"""Bytes of ranks -> stdout: as they came for one rank, as prefixed whole lines for several.

Into a pipe or a file the bytes pass unchanged. On a terminal, only colours, line erasing and cursor moves
within the picture pass; every other escape sequence or control character is shown, not obeyed, because a
job's output may not set titles, the clipboard or the terminal's mode.
"""

import codecs
import re
import sys
from collections.abc import Callable
from typing import IO

from .. import views
from . import output as out

LINE_BYTES_MAX = 256 << 10
"""A longer line of one of several ranks is broken: other ranks must come through."""
LIVE_LINE_BYTES_MAX = 8 << 10
"""On a terminal; of a line that is redrawn with carriage returns the last picture is shown."""

RANK_COLOURS = (
    "cyan",
    "magenta",
    "yellow",
    "green",
    "blue",
    "bright_cyan",
    "bright_magenta",
    "bright_yellow",
)

_SAFE = r"\x1b\[[0-9;:]*[mKABCDG]"
_UNSAFE = r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
_EITHER = re.compile(f"({_SAFE})|({_UNSAFE})")
_UNFINISHED = re.compile(r"\x1b(\[[0-9;:]{0,64})?\Z")


class TerminalFilter:
    """A stream of bytes made safe for a terminal; sequences cut between chunks are put together."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """The next part as text that may be written to the terminal."""
        text = self._held + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(text)
        self._held = text[unfinished.start() :] if unfinished else ""
        return _made_safe(text[: unfinished.start()] if unfinished else text)

    def finish(self) -> str:
        """What is still held back."""
        held, self._held = self._held + self._decoder.decode(b"", final=True), ""
        return _made_safe(held)


def _made_safe(text: str) -> str:
    return _EITHER.sub(lambda match: match[1] or ascii(match[2])[1:-1], text)


class Plain:
    """One rank: its bytes as they came."""

    def __init__(self, stdout: IO[bytes] | None = None) -> None:
        self._out = stdout or sys.stdout.buffer
        self._filter = TerminalFilter() if out.is_terminal() else None

    def write(self, chunk: views.LogChunk) -> None:
        _tell_dropped(chunk)
        self._put(self._filter.feed(chunk.data).encode() if self._filter else chunk.data)

    def finish(self) -> None:
        if self._filter:
            self._put(self._filter.finish().encode() + b"\x1b[0m")

    def _put(self, data: bytes) -> None:
        self._out.write(data)
        self._out.flush()


class Merged:
    """Several ranks: whole lines, each with its rank before it."""

    def __init__(self, stdout: IO[bytes] | None = None) -> None:
        self._out = stdout or sys.stdout.buffer
        self._live = out.is_terminal()
        self._held: dict[int, bytes] = {}
        self._attempts: dict[int, int] = {}

    def write(self, chunk: views.LogChunk) -> None:
        _tell_dropped(chunk)
        rank = chunk.rank
        if self._attempts.setdefault(rank, chunk.attempt) != chunk.attempt:
            self._attempts[rank] = chunk.attempt
            self._flush(rank)
        *lines, rest = (self._held.pop(rank, b"") + chunk.data).split(b"\n")
        made = b"".join(self._line(rank, line) for line in lines)
        if len(rest) > (LIVE_LINE_BYTES_MAX if self._live else LINE_BYTES_MAX):
            made += self._line(rank, rest)
            rest = b""
        if rest:
            self._held[rank] = rest
        if made:
            self._out.write(made)
            self._out.flush()

    def finish(self) -> None:
        for rank in sorted(self._held):
            self._flush(rank)

    def _flush(self, rank: int) -> None:
        if held := self._held.pop(rank, b""):
            self._out.write(self._line(rank, held))
            self._out.flush()

    def _line(self, rank: int, line: bytes) -> bytes:
        prefix = f"[r{rank}]"
        if not self._live:
            return prefix.encode() + b" " + line + b"\n"
        # Of a line drawn over itself (a progress bar) the last picture is what a person would see.
        picture = line.rstrip(b"\r").rpartition(b"\r")[2]
        filter_ = TerminalFilter()
        text = filter_.feed(picture) + filter_.finish()
        colour = RANK_COLOURS[rank % len(RANK_COLOURS)]
        return f"{out.styled(prefix, colour)} {text}\x1b[0m\n".encode()


Writer = Plain | Merged


def writer_for(job: views.Job, rank: int) -> Writer:
    """Prefixes only where there is more than one rank to tell apart."""
    return Plain() if rank >= 0 or job.world_size <= 1 else Merged()


def _tell_dropped(chunk: views.LogChunk, say: Callable[[str], None] = out.hint) -> None:
    if chunk.dropped_bytes:
        say(f"[r{chunk.rank}] {chunk.dropped_bytes} bytes before this are gone: the log's bound")
