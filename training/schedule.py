"""When a run saves: by the job file's `checkpoint.every` or the script's, on request, and before it is
stopped.

`should_save` answers the same at all ranks at the same call: steps are the same everywhere, and for the rest
(rank 0's clock, the notice, a request) the ranks agree where they agree on stopping. The save that follows
carries what it was made for, so that the timeline can say it.
"""

import time
from collections.abc import Callable

from ..spec.every import AUTO, FIRST_S, Every, Interval, best_interval, parse_every
from .orders import Purpose
from .stop import StopAgreement, StopNotice

Cost = tuple[float, float]
"""What a save stalls, and what it then takes to be on disk; seconds."""


class SaveSchedule:
    """`every`: the job file's; None: the script's counts. `cost_s` says what saves of this run have cost,
    None before the first; then `before`, of an attempt before, counts."""

    def __init__(
        self,
        agreement: StopAgreement,
        notice: StopNotice,
        cost_s: Callable[[], Cost | None],
        *,
        first_rank: bool,
        every: Every | None = None,
        mtbf_s: float = 0.0,
        before: Cost | None = None,
    ) -> None:
        self._agreement = agreement
        self._notice = notice
        self._cost_s = cost_s
        self._first_rank = first_rank
        self._every = every
        self._mtbf_s = mtbf_s
        self._before = before
        self._since_s = time.monotonic()
        self._last_step: int | None = None
        self._told_to_leave = False
        self._answered = 0
        self._purpose = Purpose()

    def should_save(self, step: int, every: str) -> bool:
        """See Run.should_save. Raises ValueError for an `every` that is none."""
        rule = self._every or parse_every(every)
        interval = self._interval(rule)
        by_time = interval is not None and time.monotonic() - self._since_s >= interval.seconds
        agreed = self._agreement.look(by_time)
        crossed = self._crosses(rule, step)
        request = self._agreement.save_request
        if self._agreement.stop and not self._told_to_leave:
            self._told_to_leave = True
            self._purpose = Purpose("before the end that was asked for", request, must=True)
        elif request > self._answered:
            self._purpose = Purpose("asked for", request, must=True)
        elif crossed:
            self._purpose = Purpose(f"every {rule.text}")
        elif agreed:
            self._purpose = Purpose(interval.why if interval is not None else "")
        else:
            return False
        self._answered = max(self._answered, request)
        return True

    def begin_save(self) -> Purpose:
        """A save begins: what it is made for. One that the script makes by itself answers a request, too."""
        purpose, self._purpose = self._purpose, Purpose()
        self._since_s = time.monotonic()
        request = self._notice.save_request() if self._first_rank else 0
        if request > self._answered:
            self._answered = request
            return Purpose(purpose.why or "asked for", request, purpose.must)
        return purpose

    def _crosses(self, rule: Every, step: int) -> bool:
        """A multiple of N lies between the last call's step and this one's."""
        last = max(step - 1, 0) if self._last_step is None else self._last_step
        self._last_step = step
        return rule.steps > 0 and step > last and step // rule.steps != last // rule.steps

    def _interval(self, rule: Every) -> Interval | None:
        """By rank 0's clock; None: not by time, or not this rank's to say."""
        if rule.steps or not self._first_rank:
            return None
        if rule.seconds:
            return Interval(rule.seconds, f"every {rule.text}")
        cost = self._cost_s() or self._before
        if cost is None:
            return Interval(FIRST_S, f"after {FIRST_S:g} s (auto: the first one shows what a save costs)")
        return best_interval(*cost, self._mtbf_s)


__all__ = ["AUTO", "SaveSchedule"]
