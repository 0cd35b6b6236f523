"""When the ranks of a task have been still for so long that they hang. Pure: clocks and counts are arguments.

A false alarm ends a training that was well, so silence is measured against what this very run has needed. A
run that is still but works (its processes use the CPU: an evaluation, a compilation, an export) is given as
long as torch's own collectives wait by default; one that does nothing at all has five minutes, or ten times
its longest pause. Time in which this process did not run either (a machine that was stopped) is nobody's
silence.

Before its first step, a rank is waited for only where something says that steps come: the job has
checkpoints, or the rank has begun to restore or save. A start that works (it downloads, prepares, compiles)
is no hang, however long it takes; one that does nothing has five minutes where the job has trained before,
else thirty. Where neither is so, the job need not be one that trains: it is never taken for hung.
Standard library only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..proto.beats import TRAINS, Beats

LONGEST_TIMES: Final = 10.0
"""So many times the longest pause between two steps is no silence yet."""
IDLE_SHARE: Final = 0.02
"""Of a core, over a rank's whole tree of processes: what watchdog threads of libraries use by themselves."""
_NEVER: Final = float("inf")
_UNSEEN_S: Final = 3.0
"""A look that comes so much later than the last: the machine, or this process, did not run."""


class Patience(NamedTuple):
    """How long silence may last, in seconds."""

    fixed_s: float = 0.0
    """As the job says; 0: as below. Below 0: there is no watch."""
    idle_s: float = 300.0
    busy_s: float = 1800.0
    """torch's default timeout of collectives on CPUs; on GPUs NCCL's own (10 minutes) comes first."""
    trained: bool = False
    """The job has checkpoints: its attempts make steps, and a start counts from its beginning."""

    @classmethod
    def of(cls, launch: Mapping[str, Any]) -> "Patience":
        return cls(**launch["patience"])


class Stall(NamedTuple):
    """Why it is a hang, in numbers."""

    still_s: float
    limit_s: float
    longest_s: float
    step: int
    """-1: none has been made yet."""
    idle: bool


class Stillness:
    """Of one task. Told of every look; remembers how long nothing has moved."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since_s = 0.0
        """The first look."""
        self._newest_s = 0.0
        self._looked_s = 0.0
        self._unseen_s = 0.0
        self._sample: tuple[float, Mapping[int, float]] | None = None
        self._idle = False
        self.still_s = -1.0
        """Since the last step of any rank, or since the start; -1: no step is waited for."""
        self.begun = False
        """Some rank has made a step."""
        self.stall: Stall | None = None
        """As it stands now; None: it moves, or may yet."""

    def look(self, now_s: float, beats: Sequence[Beats], cpu_s: Callable[[], Mapping[int, float]]) -> None:
        """`beats`: of ranks that live. `cpu_s`: by rank, what its processes have used so far; only asked for
        when silence is long."""
        unseen_s = now_s - self._looked_s if self._looked_s and now_s - self._looked_s > _UNSEEN_S else 0.0
        self._looked_s = now_s
        self._since_s = self._since_s or now_s
        begun = [each for each in beats if each.begun]
        self.begun = bool(begun)
        if self._patience.fixed_s < 0 or not (beats or self._patience.trained):
            self.still_s, self.stall = -1.0, None
            return
        newest_s = min(now_s, max([each.at_s for each in begun or beats], default=self._since_s))
        if newest_s > self._newest_s:
            self._newest_s, self._unseen_s, self._sample, self._idle = newest_s, 0.0, None, False
        else:
            self._unseen_s += unseen_s
        self.still_s = max(0.0, now_s - newest_s - self._unseen_s)
        works = any(each.phase != TRAINS for each in beats)
        if not begun:
            limit_s = self._start_limit_s(now_s, cpu_s, works=works)
        elif works:
            limit_s = max(self._patience.fixed_s, self._patience.busy_s)
        else:
            limit_s = self._limit_s(now_s, begun, cpu_s)
        longest_s = max((each.longest_s for each in begun), default=0.0)
        over = self.still_s >= limit_s
        self.stall = Stall(self.still_s, limit_s, longest_s, _step(begun), self._idle) if over else None

    def _start_limit_s(self, now_s: float, cpu_s: Callable[[], Mapping[int, float]], *, works: bool) -> float:
        """Before the first step. `works`: some rank restores or saves."""
        fixed_s, busy_s = self._patience.fixed_s, max(self._patience.fixed_s, self._patience.busy_s)
        usual_s = self._patience.idle_s if self._patience.trained else busy_s
        idle_s = busy_s if works else fixed_s or usual_s
        if self.still_s >= idle_s / 2:
            self._sample_cpu(now_s, idle_s / 4, cpu_s)
        if self._idle:
            return idle_s
        return busy_s if fixed_s else _NEVER

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


def _step(begun: Sequence[Beats]) -> int:
    """As reported, where it is; -1: none has been made."""
    told = max((each.step for each in begun), default=-1)
    return told if told >= 0 else max((each.steps for each in begun), default=-1)
