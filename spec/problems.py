"""What is wrong with a document: every problem at once, each with its place and the nearest valid key.

Text that came from outside is shown only through `shown`, so that no message can carry control,
ANSI or bidi characters to a terminal.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from .errors import InvalidRequest

PROBLEMS_MAX = 50
"""Further ones are not looked at, so that a document cannot buy work with its faults."""
_VALID_MAX = 200

Path = tuple[str | int, ...]
"""Where in a document: keys and list positions from the root."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_$-]+\Z")
_SHOWN_CHARS_MAX = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `line` and `column` count from 1; 0 where there is no file."""

    source: str
    line: int
    column: int
    key: str
    """Dotted path, such as `resources.instance_count`; empty for the document itself."""
    text: str
    """What is wrong, in one line; mostly `expected ...; found ...`."""
    nearest: str = ""
    """The nearest valid key or value, if one is near."""

    @property
    def expected(self) -> str:
        """What should have stood there, where the text says so."""
        before, word, after = self.text.partition("expected ")
        return after.partition("; found ")[0] if word and (not before or before.endswith("; ")) else ""

    @property
    def found(self) -> str:
        """What stood there instead, where the text says so."""
        return self.text.partition("; found ")[2]

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}:{self.column}: " if self.line else f"{self.source}: "
        key = f"{self.key}: " if self.key else ""
        guess = f"; did you mean '{self.nearest}'?" if self.nearest else ""
        return f"{place}{key}{self.text}{guess}"


class InvalidDocument(InvalidRequest):
    """A document that cannot be taken as it is; `problems` holds all that is wrong with it."""

    code = "invalid-document"

    def __init__(self, problems: Sequence[Problem], *, hint: str = "") -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:PROBLEMS_MAX]]
        if len(self.problems) >= PROBLEMS_MAX:
            lines.append("... and perhaps more")
        super().__init__("\n".join(lines), hint=hint, problems=len(self.problems))


def nearest(word: object, valid: Iterable[str]) -> str:
    """The valid word most like `word`, or an empty string when none is near."""
    if not isinstance(word, str):
        return ""
    by_lower = {name.lower(): name for name in islice(valid, _VALID_MAX)}
    close = difflib.get_close_matches(word.lower()[:64], by_lower, n=1, cutoff=0.65)
    return by_lower[close[0]] if close else ""


def shown(value: object) -> str:
    """A value for a message: quoted, escaped and short; only text has quotes."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            short = value if len(value) <= _SHOWN_CHARS_MAX else value[:_SHOWN_CHARS_MAX] + "..."
            return f"'{escaped(short)}'"
        case int() | float():
            return repr(value) if isinstance(value, float) or abs(value) < 10**40 else "a huge number"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return f"a mapping of {len(value)}"
    return type(value).__name__


def escaped(text: str) -> str:
    """`text` with every unprintable character (control, ANSI, bidi, line break) as an escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def dotted(path: Path) -> str:
    """`("resources", "gpus", 0)` as `resources.gpus[0]`; odd keys are quoted and escaped."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        word = part if _PLAIN_KEY.match(part) else f"'{escaped(part[:_SHOWN_CHARS_MAX])}'"
        text += f".{word}" if text else word
    return text
