"""A scheduler whose wall clock can be set while it runs: python -m support.stepping_clock FILE OPTIONS...

FILE holds the seconds by which its wall clock is off; absent: 0. The monotonic clock stays what it is.
"""

import sys
import time
from pathlib import Path

_file = Path(sys.argv[1])
_true_time_ns = time.time_ns


def off_s() -> float:
    try:
        return float(_file.read_text())
    except (FileNotFoundError, ValueError):  # not there, or just being written
        return 0.0


def stepped_time_ns() -> int:
    return _true_time_ns() + round(off_s() * 1e9)


def stepped_time() -> float:
    return stepped_time_ns() / 1e9


time.time_ns, time.time = stepped_time_ns, stepped_time

from paceline.scheduler import main  # noqa: E402 - nobody may have taken hold of the true clock before

if __name__ == "__main__":
    main.command(sys.argv[2:])
