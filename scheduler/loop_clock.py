"""The scheduler's clock: microseconds since the epoch that never run backwards.

The wall clock is read once; from then on the monotonic clock counts. The loop adds what it takes to be never
before what was stored.
"""

import time
from collections.abc import Callable

Clock = Callable[[], int]


def steady_clock(
    wall_ns: Callable[[], int] = time.time_ns, beat_ns: Callable[[], int] = time.monotonic_ns
) -> Clock:
    """A clock that starts at the wall's time and goes at the monotonic clock's pace."""
    offset_ns = wall_ns() - beat_ns()
    return lambda: (beat_ns() + offset_ns) // 1000
