"""How long to go on asking a scheduler that is away, and how far apart: pure, shared by both clients.

Waits grow from 50 ms to 2 s, each shortened at random by up to half, so that clients which lost the same
scheduler do not come back in step.
"""

FIRST_S = 0.05
MOST_S = 2.0


class Patience:
    """Counts failures in a row. `now_s` is monotonic; `luck` is random in [0, 1)."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._first_failure_s: float | None = None
        self._failures = 0

    def on_failure(self, now_s: float, luck: float) -> float | None:
        """Seconds to wait before the next try; None when patience has run out."""
        if self._first_failure_s is None:
            self._first_failure_s = now_s
        left_s = self._first_failure_s + self._limit_s - now_s
        if left_s <= 0:
            return None
        wait_s = min(MOST_S, FIRST_S * 2.0 ** min(self._failures, 10)) * (1 - luck / 2)
        self._failures += 1
        return min(wait_s, left_s)

    def on_success(self) -> None:
        """The scheduler is back."""
        self._first_failure_s = None
        self._failures = 0
