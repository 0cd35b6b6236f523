"""How long the ranks' steps take, and what they spend them on, seen from outside at no cost to them.

The time of a step is that between two beats: the median over a window. What a step is made of comes from
samples of what the rank's main thread waits for: nothing (it computes), another thread (in a collective on
CPUs: its peers), or the system (data: files, pipes, sockets, sleep). A main thread that waits for computing
threads of its own process seems to wait for peers: then all ranks do. Of ranks with GPUs, whose main thread
waits in the driver whatever happens, and where /proc may not be read, only the data's part is known: what the
rank itself has waited for torch's data loaders. Standard library only.
"""

import os
import statistics
from collections.abc import Sequence
from typing import Any, Final

from ..proto.beats import TRAINS, Beats
from . import kernel

SAMPLES: Final = 40
"""In a window."""
_STEPS_MIN: Final = 5
_FUTEX: Final = {"x86_64": ("202", "449"), "aarch64": ("98", "449")}.get(os.uname().machine, ())


class _Window:
    """Of one rank."""

    def __init__(self) -> None:
        self.first: Beats | None = None
        self.last: Beats | None = None
        self.step_s: list[float] = []
        self.samples = {"compute": 0, "peers": 0, "data": 0}

    def add(self, beats: Beats, kind: str) -> None:
        before, self.last = self.last, beats
        self.first = self.first or beats
        if kind:
            self.samples[kind] += 1
        made = _count(beats) - _count(before) if before is not None else 0
        if before is not None and made > 0:
            self.step_s.append((beats.at_s - before.at_s) / made)


class Paces:
    """Of a task's ranks. `sample` when it is `due_s`."""

    def __init__(self, window_s: float, *, with_gpus: bool) -> None:
        self._every_s = window_s / SAMPLES
        self._measurable = bool(_FUTEX) and not with_gpus
        self._windows: dict[int, _Window] = {}
        self._taken = 0
        self.due_s = float("inf")

    def begin(self, now_s: float) -> None:
        """Ranks make steps now."""
        if self.due_s == float("inf"):
            self.due_s = now_s + self._every_s

    def sample(self, now_s: float, ranks: Sequence[tuple[int, Beats]]) -> dict[str, Any] | None:
        """`ranks`: those that live, with their global ranks. The fields of a `paced` entry at a window's end,
        when there is something to tell."""
        self.due_s = now_s + self._every_s
        for rank, beats in ranks:
            if beats.begun and beats.phase == TRAINS:
                self._windows.setdefault(rank, _Window()).add(beats, self._kind(beats.pid))
        self._taken += 1
        if self._taken < SAMPLES:
            return None
        told = [_told(rank, window) for rank, window in sorted(self._windows.items())]
        found = [each for each in told if each["steps"] >= _STEPS_MIN]
        self._windows, self._taken = {}, 0
        return {"ranks": found} if found else None

    def _kind(self, pid: int) -> str:
        """Empty: it cannot be seen."""
        waits = kernel.waits_in(pid) if self._measurable else ""
        if not waits:
            return ""
        if waits == "running":
            return "compute"
        return "peers" if waits in _FUTEX else "data"


def _count(beats: Beats) -> int:
    return beats.steps or beats.reports


def _told(rank: int, window: _Window) -> dict[str, Any]:
    assert window.first is not None and window.last is not None
    return {
        "rank": rank,
        "steps": _count(window.last) - _count(window.first),
        "step_s": round(statistics.median(window.step_s), 6) if window.step_s else 0.0,
        **_shares(window.samples, window.first, window.last),
    }


def _shares(samples: dict[str, int], first: Beats, last: Beats) -> dict[str, float]:
    seen, between_s = sum(samples.values()), last.at_s - first.at_s
    if seen:
        return {f"{kind}_share": round(count / seen, 3) for kind, count in samples.items()}
    fetching_s = last.fetching_s - first.fetching_s
    if fetching_s <= 0 or between_s <= 0:
        return {}
    return {"data_share": round(min(1.0, fetching_s / between_s), 3)}
