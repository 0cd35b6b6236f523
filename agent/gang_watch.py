"""A task's ranks as their heartbeats show them: whether they move, where they are when they do not.

The shim asks on its clock; what is to be told goes into the journal. Whether the gang hangs is not said here:
other nodes have a part in that, and the scheduler hears them all. Standard library only.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any, Final

from ..proto.beats import NAME, RANKS_MAX, TRAINS, Beats, read_beats
from . import kernel
from .paces import Paces
from .ranks import Worker
from .stacks import Capture
from .stillness import Patience, Stall, Stillness

POLL_S: Final = 0.05
"""Between two looks at stacks that are under way."""
_TEXT_CHARS_MAX: Final = 24 * 1024
"""Of all stacks in one entry, which must fit into what the journal reserves for a full disk."""
_GANG_CHARS_MAX: Final = 256 * 1024
"""Of all stacks of a gang, over its nodes."""
_STACK_CHARS: Final = (200, 2000)


class GangWatch:
    """Of one task. `look` about once a second; `inspect` when the scheduler asks."""

    def __init__(self, folder: str, launch: dict[str, Any], shim_pid: int) -> None:
        self._folder = folder
        self._launch = launch
        self._shim_pid = shim_pid
        self._stillness = Stillness(Patience.of(launch))
        gpus = launch["environment"].get("CUDA_VISIBLE_DEVICES", "")
        self._paces = Paces(launch["pace_window_s"], with_gpus=bool(gpus))
        self._fd = -1
        self._told_s = 0.0
        """How long it had been still when that was told last."""
        self._capture: Capture | None = None

    def look(self, workers: Sequence[Worker]) -> dict[str, Any] | None:
        """The fields of a `stalled` entry, when there is something to tell: at the limit, then each time the
        silence has doubled."""
        stall = self._judge(workers)
        if self._stillness.begun:
            self._paces.begin(time.monotonic())
        if stall is None:
            if self._stillness.still_s < self._told_s:
                self._told_s = 0.0
            return None
        if self._told_s and stall.still_s < 2 * self._told_s:
            return None
        self._told_s = stall.still_s
        return {
            "still_s": round(stall.still_s, 3),
            "limit_s": round(stall.limit_s, 3),
            "longest_s": round(stall.longest_s, 3),
            "step": stall.step,
            "idle": stall.idle,
        }

    @property
    def sample_at(self) -> float:
        """When `sample` is due; never before the first step."""
        return self._paces.due_s

    def sample(self, workers: Sequence[Worker]) -> dict[str, Any] | None:
        """The fields of a `paced` entry, at the end of a window."""
        ranks = {worker.local_rank: worker.rank for worker in workers if worker.lives}
        living = [worker for worker in workers if worker.lives]
        seen = [(ranks[each.slot], each) for each in self._beats(living) if each.slot in ranks]
        return self._paces.sample(time.monotonic(), seen)

    @property
    def inspecting(self) -> bool:
        return self._capture is not None

    def inspect(self, workers: Sequence[Worker], why: str) -> None:
        """Begin to take their stacks; `inspected` has them soon."""
        if self._capture is None:
            now = time.monotonic()
            self._capture = Capture(self._launch, now, why)
            self._capture.begin(workers, self._beats(workers), self._shim_pid, now)

    def on_exit(self, pid: int, exit_code: int) -> bool:
        """A child of the shim has ended. True: it was only looking at stacks."""
        return self._capture is not None and self._capture.on_exit(pid, exit_code, time.monotonic())

    def inspected(self, workers: Sequence[Worker]) -> dict[str, Any] | None:
        """The fields of an `inspected` entry, once all has come or time is over."""
        if self._capture is None or not self._capture.poll(time.monotonic()):
            return None
        chars_max = min(
            _TEXT_CHARS_MAX // max(1, len(workers)),
            max(_STACK_CHARS[0], min(_STACK_CHARS[1], _GANG_CHARS_MAX // self._launch["world_size"])),
        )
        found = self._capture.finish(chars_max)
        self._capture = None
        stall = self._judge(workers)
        by_slot = {each.slot: each for each in self._beats(workers)}
        now = time.monotonic()
        first_rank = workers[0].rank
        for each in found:
            beats = by_slot.get(each["rank"] - first_rank)
            if beats is not None and beats.begun:
                each |= {"steps": beats.steps, "reports": beats.reports, "step": beats.step}
                each["still_s"] = round(max(0.0, now - beats.at_s), 3)
        return {
            "begun": self._stillness.begun,
            "stalled": stall is not None,
            "ranks": found,
        }

    def close(self) -> None:
        if self._capture is not None:
            self._capture.finish(0)
            self._capture = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _judge(self, workers: Sequence[Worker]) -> Stall | None:
        living = [worker for worker in workers if worker.lives]
        beats = _as_they_may_go_on(self._beats(living))
        self._stillness.look(time.monotonic(), beats, lambda: _cpu_s(living))
        return self._stillness.stall

    def _beats(self, workers: Sequence[Worker]) -> list[Beats]:
        """Of these ranks."""
        if self._fd < 0:
            with contextlib.suppress(OSError):  # no rank has made a step yet
                self._fd = os.open(f"{self._folder}/{NAME}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        if self._fd < 0:
            return []
        slots = {worker.local_rank for worker in workers}
        if slots and len(self._launch["ranks"]) == 1:  # a launcher of the job's own may have ranks below it
            slots = set(range(RANKS_MAX))
        return [each for each in read_beats(self._fd) if each.slot in slots]


def _as_they_may_go_on(beats: list[Beats]) -> list[Beats]:
    """A save or a restore has the patience that work needs; a rank that is stopped does not work at it, and
    its peers, all of whom are in it, cannot end it."""
    works = any(each.phase != TRAINS for each in beats)
    if works and any(kernel.state(each.pid) == kernel.STOPPED for each in beats):
        return [each._replace(phase=TRAINS) for each in beats]
    return beats


def _cpu_s(workers: Sequence[Worker]) -> dict[int, float]:
    """What each rank and all below it have used, also those that were there and are reaped."""
    return {worker.rank: sum(map(kernel.cpu_s, worker.processes())) for worker in workers}
