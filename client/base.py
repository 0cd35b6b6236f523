"""What both clients share: where to call, how patient to be, what is said when a wait is over."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..proto import channels
from ..spec.errors import PacelineError
from . import settings
from .patience import Patience

if TYPE_CHECKING:
    from . import views

PATIENCE_S = 15.0
STREAM_PATIENCE_S = 600.0

OnAway = Callable[[PacelineError, float], None]
"""Told of each failed try and the seconds until the next."""


DRAIN_LOOK_S: Final = 1.0
"""Between two looks at nodes that drain: a save takes seconds, and a look costs these nodes alone."""
HOLDERS_SHOWN: Final = 20


class WaitTimedOut(PacelineError, TimeoutError):
    """What was waited for has not happened yet; it goes on."""

    code = "wait-timed-out"
    retryable = True


class Base:
    """Where a client calls, and how patient it is."""

    def __init__(
        self,
        scheduler: str | None = None,
        *,
        state: str | Path | None = None,
        token: str | None = None,
        ca_file: str | Path | None = None,
        insecure: bool = False,
        patience_s: float = PATIENCE_S,
        stream_patience_s: float = STREAM_PATIENCE_S,
        on_away: OnAway | None = None,
        config: settings.Settings | None = None,
    ) -> None:
        """Find the scheduler: `scheduler` (HOST:PORT), else $PACELINE_SCHEDULER, else the state folder's.

        Connects with the first call. Raises Unavailable when no scheduler is known, InvalidRequest when
        the address, the token or the certificate cannot be used.
        """
        given = config or settings.load(
            scheduler=scheduler, state=state, token=token, ca_file=ca_file, insecure=insecure
        )
        self.settings = given.with_found_scheduler()
        self._patience_s = patience_s
        self._stream_patience_s = stream_patience_s
        self._on_away = on_away
        self._target = channels.target(
            self.settings.address,
            self.settings.read_token(),
            ca_file=self.settings.ca_file,
            insecure=self.settings.insecure,
        )

    def _pause_s(self, patience: Patience, error: PacelineError) -> float:
        """Seconds to wait before the next try; raises `error` when there is none."""
        wait_s = patience.on_failure(time.monotonic(), random.random()) if error.retryable else None
        if wait_s is None:
            raise error
        if self._on_away is not None:
            self._on_away(error, wait_s)
        return wait_s


def timed_out(job: "views.Job", timeout_s: float | None) -> WaitTimedOut:
    return WaitTimedOut(
        f"job {job.job} is still {job.state} after {timeout_s:g} s",
        hint=f"it goes on; `pace why {job.job}` says what it is waiting for",
        job=job.job,
    )


def not_drained(done: "views.Cordoned", timeout_s: float | None) -> WaitTimedOut:
    tasks = "1 task is" if done.tasks_left == 1 else f"{done.tasks_left} tasks are"
    jobs = ", ".join(f"job {job}" for job in done.held_by[:HOLDERS_SHOWN])
    more = f" and {len(done.held_by) - HOLDERS_SHOWN} more" if len(done.held_by) > HOLDERS_SHOWN else ""
    return WaitTimedOut(
        f"{tasks} left there after {timeout_s:g} s: of {jobs}{more}",
        hint="they go on leaving: `pace why JOB` says how long they have; a `--deadline` makes that shorter",
        tasks_left=done.tasks_left,
    )


def not_yet(job: int, timeout_s: float | None) -> WaitTimedOut:
    return WaitTimedOut(
        f"job {job} has not saved within {timeout_s:g} s; the request stands",
        hint="a script answers where it calls `run.should_save(step)`, or with its own next save",
        job=job,
    )
