"""When the ranks of a task have been still for so long that they hang. Pure: clocks and counts are arguments.

A false alarm ends a training that was well, so silence counts from the first step on only, and is measured
against what this very run has needed. A run that is still but works (its processes use the CPU: an
evaluation, a compilation, an export) is given as long as torch's own collectives wait by default; one that
does nothing at all has five minutes, or ten times its longest pause. Time in which this process did not run
either (a machine that was stopped) is nobody's silence. Standard library only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..proto.beats import TRAINS, Beats

LONGEST_TIMES: Final = 10.0
"""So many times the longest pause between two steps is no silence yet."""
IDLE_SHARE: Final = 0.02
"""Of a core, over a rank's whole tree of processes: what watchdog threads of libraries use by themselves."""
_UNSEEN_S: Final = 3.0
"""A look that comes so much later than the last: the machine, or this process, did not run."""


class Patience(NamedTuple):
    """How long silence may last, in seconds."""

    fixed_s: float = 0.0
    """As the job says; 0: as below. Below 0: there is no watch."""
    idle_s: float = 300.0
    busy_s: float = 1800.0
    """torch's default timeout of collectives on CPUs; on GPUs NCCL's own (10 minutes) comes first."""

    @classmethod
    def of(cls, launch: Mapping[str, Any]) -> "Patience":
        return cls(**launch["patience"])


class Stall(NamedTuple):
    """Why it is a hang, in numbers."""

    still_s: float
    limit_s: float
    longest_s: float
    step: int
    idle: bool


class Stillness:
    """Of one task. Told of every look; remembers how long nothing has moved."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._newest_s = 0.0
        self._looked_s = 0.0
        self._unseen_s = 0.0
        self._sample: tuple[float, Mapping[int, float]] | None = None
        self._idle = False
        self.still_s = -1.0
        """Since the last step of any rank; -1: none has made one yet."""
        self.stall: Stall | None = None
        """As it stands now; None: it moves, or may yet."""

    def look(self, now_s: float, beats: Sequence[Beats], cpu_s: Callable[[], Mapping[int, float]]) -> None:
        """`beats`: of ranks that live. `cpu_s`: by rank, what its processes have used so far; only asked for
        when silence is long."""
        unseen_s = now_s - self._looked_s if self._looked_s and now_s - self._looked_s > _UNSEEN_S else 0.0
        self._looked_s = now_s
        begun = [each for each in beats if each.begun]
        if not begun or self._patience.fixed_s < 0:
            self.still_s, self.stall = -1.0, None
            return
        newest_s = min(now_s, max(each.at_s for each in begun))
        if newest_s > self._newest_s:
            self._newest_s, self._unseen_s, self._sample, self._idle = newest_s, 0.0, None, False
        else:
            self._unseen_s += unseen_s
        self.still_s = max(0.0, now_s - newest_s - self._unseen_s)
        if any(each.phase != TRAINS for each in beats):
            limit_s = max(self._patience.fixed_s, self._patience.busy_s)
        else:
            limit_s = self._limit_s(now_s, begun, cpu_s)
        longest_s = max(each.longest_s for each in begun)
        told = max(each.step for each in begun)
        step = told if told >= 0 else max(each.steps for each in begun)
        over = self.still_s >= limit_s
        self.stall = Stall(self.still_s, limit_s, longest_s, step, self._idle) if over else None

    def _limit_s(
        self, now_s: float, begun: Sequence[Beats], cpu_s: Callable[[], Mapping[int, float]]
    ) -> float:
        if self._patience.fixed_s:
            return self._patience.fixed_s
        needed_s = LONGEST_TIMES * max(each.longest_s for each in begun)
        idle_s, busy_s = max(self._patience.idle_s, needed_s), max(self._patience.busy_s, needed_s)
        if self.still_s >= idle_s / 2:
            self._sample_cpu(now_s, idle_s / 4, cpu_s)
        return idle_s if self._idle else busy_s

    def _sample_cpu(self, now_s: float, window_s: float, cpu_s: Callable[[], Mapping[int, float]]) -> None:
        if self._sample is not None and now_s - self._sample[0] < window_s:
            return
        used_s = cpu_s()
        if self._sample is not None:
            since_s, before_s = self._sample
            most_s = max((used - before_s.get(rank, 0.0) for rank, used in used_s.items()), default=0.0)
            self._idle = most_s < IDLE_SHARE * (now_s - since_s)
        self._sample = (now_s, used_s)
