"""Metrics that rank 0 prints, found by the job's patterns in its log.

The rank writes into its file as always: it is read here afterwards, so that output is never held up. Bounds:
a line counts up to its first thousand characters; a look takes so much time, and the next one goes on from
there; of what is further behind, the oldest is passed over. A pattern that a single line keeps busy too long
is given up. Standard library only; `re` is imported where there are patterns.
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Final

EVERY_S: Final = 0.1
_LINE_BYTES_MAX: Final = 1_000
_BEHIND_BYTES_MAX: Final = 256 * 1024
_LOOK_S: Final = 0.02
"""Of processor time in one look; the last one may take ten times as much."""
_LINE_S: Final = 0.25
_STEPS_MAX: Final = 10
"""Told of one look: with EVERY_S, as many a second as a script may report."""


class _TookTooLong(BaseException):
    pass


class Printed:
    """Of one rank, whose log this is."""

    def __init__(self, log: str, patterns: Mapping[str, str]) -> None:
        import re

        self._log = log
        self._fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        self._patterns = {name: re.compile(text) for name, text in patterns.items()}
        self._counts = dict.fromkeys(patterns, 0)
        self._offset = self._size = 0
        """Where the first line begins that was not looked at; how long the log was then, -1: not all was
        looked at."""
        self._at = ""
        self.ended = False
        """The rank is over: what it has written is all."""
        self.due_at = 0.0

    def look(self) -> list[tuple[int, dict[str, float]]]:
        """Steps and their values since the last look, as far as time goes."""
        self.due_at = time.monotonic() + EVERY_S if self._patterns else float("inf")
        size = os.fstat(self._fd).st_size
        if not self._patterns or (size == self._size and not self.ended):
            return []
        self._size = size
        found: dict[int, dict[str, float]] = {}
        while not self._search_all(size, found) and self._patterns and self.ended:
            pass  # with the patterns that are left, from the next line on
        return _newest(found)

    def close(self) -> None:
        os.close(self._fd)

    def _search_all(self, size: int, found: dict[int, dict[str, float]]) -> bool:
        """Under a timer of this process's own processor time, which `re` heeds while it searches. False: a
        pattern was given up on the way."""
        signal.signal(signal.SIGVTALRM, _too_long)
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, _LINE_S)
            try:
                self._search_lines(size, found)
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except _TookTooLong:
            self._give_up()
            return False
        finally:
            signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
        return True

    def _search_lines(self, size: int, found: dict[int, dict[str, float]]) -> None:
        for line in self._lines(size):
            text = line[:_LINE_BYTES_MAX].decode("utf-8", "replace")
            for name, pattern in self._patterns.items():
                self._at = name
                if match := pattern.search(text):
                    self._take(name, match.groupdict(), found)

    def _lines(self, size: int) -> Iterator[bytes]:
        """Whole ones, until the time is over; at the rank's end also what has no end."""
        until_s = time.process_time() + _LOOK_S * (10 if self.ended else 1)
        behind = size - self._offset > _BEHIND_BYTES_MAX
        if behind:
            self._offset = size - _BEHIND_BYTES_MAX
        data = os.pread(self._fd, size - self._offset, self._offset)
        *lines, rest = data.replace(b"\r", b"\n").split(b"\n")
        if behind and lines:
            self._offset += len(lines.pop(0)) + 1
        for line in lines:
            self._offset += len(line) + 1
            yield line
            if time.process_time() > until_s:
                self._size = -1
                return
        if self.ended:
            self._offset += len(rest)
            yield rest

    def _take(self, name: str, groups: Mapping[str, str | None], found: dict[int, dict[str, float]]) -> None:
        try:
            value = float(groups["value"] or "")
            step = int(groups.get("step") or self._counts[name] + 1)
        except ValueError:  # a line that only looks like one
            return
        if not 0 <= step < 2**63:
            return
        self._counts[name] += 1
        found[step] = {**found.pop(step, {}), name: value}

    def _give_up(self) -> None:
        self._size = -1
        del self._patterns[self._at]
        text = (
            f"paceline: the pattern of {self._at!r} takes too long on a line, more than {_LINE_S:g} s: it is"
            " not used any more\n"
        )
        fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _too_long(number: int, frame: object) -> None:
    raise _TookTooLong


def _newest(found: Mapping[int, dict[str, float]]) -> list[tuple[int, dict[str, float]]]:
    """The last steps, and of each metric the last value however old."""
    kept: list[tuple[int, dict[str, float]]] = []
    seen: set[str] = set()
    for step in reversed(list(found)):
        values = found[step]
        if len(kept) < _STEPS_MAX or values.keys() - seen:
            kept.append((step, values))
            seen |= values.keys()
    return kept[::-1]
