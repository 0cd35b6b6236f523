"""What is known of a gang that may hang: which node noticed, what each found since, how stacks are read."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ...spec.ids import Micros

if TYPE_CHECKING:
    from .progress_events import RanksInspected

_FRAME_CHARS_MAX: Final = 300
_COLLECTIVE: Final = re.compile(
    r"/torch/distributed/|/torch/nn/parallel/distributed\.py:|/deepspeed/comm/|^_engine_run_backward \("
)
"""A frame of a rank that waits for its peers: the engine, too, which ends with the gradients' exchange."""
_PLUMBING: Final = re.compile(
    r"/site-packages/|/lib/python3\.\d+/|\(<frozen |/paceline/(training|agent|proto)/"
)


@dataclass(frozen=True, slots=True)
class GroupLook:
    """How far a rank is in the collectives of one process group, by torch's flight recorder: all ranks of the
    group count them alike, from 1."""

    group: str
    """torch's name: "0" is the default group."""
    last: int
    """The last that the rank has begun."""
    last_name: str = ""
    waiting: int = 0
    """The first that has not ended; 0: none."""
    waiting_name: str = ""


@dataclass(frozen=True, slots=True)
class RankLook:
    """Where one rank was when its node looked."""

    rank: int
    steps: int = 0
    """Of its optimizers."""
    reports: int = 0
    step: int = -1
    """As it last reported."""
    still_us: int = 0
    state: str = ""
    how: str = ""
    stack: str = ""
    """Of its main thread, innermost first, lines `function (file:line)`; empty: it could not be had."""
    trace: str = ""
    """File of torch's flight recorder."""
    groups: tuple[GroupLook, ...] = ()
    """As that says."""


@dataclass(frozen=True, slots=True)
class TaskLook:
    """What one node found. Of the stacks only the frames that count: all of them are in the history."""

    task: int
    begun: bool
    """Some rank there has made a step."""
    stalled: bool
    """Still for too long, by that node's own measure."""
    ranks: tuple[RankLook, ...] = ()


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A node has said that its ranks are still; all nodes of the gang are asked, and have a deadline."""

    at_us: Micros
    task: int
    since_us: Micros
    """The last step there."""
    limit_us: int
    step: int
    """-1: none has been made there."""
    looks: tuple[TaskLook, ...] = ()

    def look_of(self, task: int) -> TaskLook | None:
        return next((look for look in self.looks if look.task == task), None)


def step_of(look: RankLook) -> int:
    """As the script counts, where it says so."""
    return look.step if look.step >= 0 else look.steps


def silence_text(step: int, still: str, idle: str = "") -> str:
    """`no step for 40 s after step 12`, `no step yet for 31 min`."""
    return f"no step{idle} for {still} after step {step}" if step >= 0 else f"no step yet{idle} for {still}"


def with_look(suspicion: Suspicion | None, event: "RanksInspected") -> Suspicion | None:
    """The suspicion with what that node found."""
    if suspicion is None:
        return None
    task = event.task.task
    look = TaskLook(task, event.begun, event.stalled, tuple(map(_in_short, event.ranks)))
    others = tuple(one for one in suspicion.looks if one.task != task)
    return replace(suspicion, looks=(*others, look))


def waits_for_peers(look: RankLook) -> bool:
    """Its stack says that it is in a collective."""
    return any(_COLLECTIVE.search(line) for line in look.stack.splitlines())


def place_of(look: RankLook) -> str:
    """`is in load (/code/train.py:41)`: the innermost frame of the job's own code, and what that waits in."""
    lines = look.stack.splitlines()
    if not lines:
        return f"is {look.state or 'not to be seen'} (no stack)"
    own = _own_frame(lines) or lines[0]
    within = "" if own == lines[0] else f", in {lines[0].partition(' (')[0]}"
    return f"is in {own}{within}"


def _own_frame(lines: list[str]) -> str:
    return next((line for line in lines if not _PLUMBING.search(line)), "")


def _in_short(look: RankLook) -> RankLook:
    lines = look.stack.splitlines()
    waits = next((line for line in lines if _COLLECTIVE.search(line)), "")
    kept = [line[:_FRAME_CHARS_MAX] for line in dict.fromkeys((*lines[:1], waits, _own_frame(lines))) if line]
    return replace(look, stack="\n".join(kept))
