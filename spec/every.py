"""How often a run saves: every N steps, every S seconds, or `auto`, the interval that loses the least.

`auto` is Young's first approximation (J. W. Young, CACM 17(9), 1974) with Daly's correction (J. T. Daly, FGCS
22(3), 2006, eq. 37): for a save that stalls training for d and a mean time M between failures,
sqrt(2 d M) (1 + sqrt(d / 2M) / 3 + d / 18M) - d, for d < 2M; else M. Saves run in the background here, so
only the stall is paid at each; but one that comes before the last is on disk would wait, so the interval is
never below twice the time that takes.
"""

import math
import re
from dataclasses import dataclass
from typing import Final

AUTO: Final = "auto"
AUTO_MIN_S: Final = 5.0
AUTO_MAX_S: Final = 1800.0
FIRST_S: Final = 30.0
"""Before anything was measured: the first save measures."""
_NUMBER: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*(steps?|s|sec|seconds?|min|minutes?|h|hours?)")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Every:
    """One of the three: `steps` > 0, `seconds` > 0, or neither: auto."""

    steps: int = 0
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """As `parse_every` reads it."""
        if self.steps:
            return f"{self.steps} step{'s' if self.steps != 1 else ''}"
        return f"{self.seconds:g} s" if self.seconds else AUTO


def parse_every(text: object) -> Every:
    """Raises ValueError, saying what was expected."""
    word = " ".join(text.split()).lower() if isinstance(text, str) else ""
    if word == AUTO:
        return Every()
    match = _NUMBER.fullmatch(word)
    number = float(match[1]) if match else 0.0
    if match is None or number <= 0:
        raise ValueError(
            "expected a number with its unit, such as `100 steps`, `60 s` or `10 min`, or `auto`"
        )
    if match[2].startswith("step"):
        if number != int(number):
            raise ValueError("expected whole steps, such as `100 steps`")
        return Every(steps=int(number))
    return Every(seconds=number * _UNITS[match[2][0]])


def parse_seconds(text: str) -> float:
    """`90 s`, `10 min`, `2 h`. Raises ValueError, saying what was expected."""
    try:
        every = parse_every(text)
    except ValueError:
        every = Every()
    if not every.seconds:
        raise ValueError("expected a time with its unit, such as `90 s`, `10 min` or `2 h`")
    return every.seconds


@dataclass(frozen=True, slots=True)
class Interval:
    """`why` holds the numbers that it follows from."""

    seconds: float
    why: str


def best_interval(stall_s: float, persist_s: float, mtbf_s: float) -> Interval:
    """For saves that cost so much, of a gang that fails once in `mtbf_s` (0: not known, taken for a day)."""
    mtbf_s = mtbf_s if mtbf_s > 0 else 86_400.0
    stall_s = max(stall_s, 1e-4)
    wanted_s = daly_s(stall_s, mtbf_s)
    low_s = max(AUTO_MIN_S, 2 * persist_s)
    seconds = min(max(wanted_s, low_s), max(AUTO_MAX_S, low_s))
    bound = "" if seconds == wanted_s else f", bounded from {wanted_s:.3g} s"
    costs = f"stall {stall_s:.3g} s, on disk after {persist_s:.3g} s, MTBF {_long(mtbf_s)}"
    return Interval(seconds, f"every {seconds:.3g} s (auto: {costs}{bound})")


def daly_s(stall_s: float, mtbf_s: float) -> float:
    """The interval between two saves that makes the run shortest."""
    if stall_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = stall_s / (2 * mtbf_s)
    return math.sqrt(2 * stall_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_s


def _long(seconds: float) -> str:
    hours = seconds / 3600
    return f"{seconds:.3g} s" if hours < 0.1 else f"{hours:.3g} h" if hours < 48 else f"{hours / 24:.3g} d"
