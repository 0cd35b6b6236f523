"""Reads what work/train.py wrote down: when steps were done, and whether an interrupted run was the same
run.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import isclose
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parent / "work" / "train.py"
TRAIN_LOOP = TRAIN.with_name("train_loop.py")
PARTS = ("detect", "fork", "init", "load", "step")
"""Of a restart, in their order: the news of the death, all ranks in the script, their process group, the
model with its checkpoint, the next step.
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One rank's step, as one process did it."""

    at: float
    """Seconds since the epoch, at its end."""
    rank: int
    world: int
    """How many ranks there were."""
    step: int
    loss: float
    """The mean over all ranks."""
    samples: tuple[int, ...]
    """This rank's."""
    process: str
    """Of which file: one per start of a rank."""


def steps(folder: Path) -> list[Step]:
    """All steps of all processes, in the order of their ends."""
    return sorted(_steps(folder), key=lambda step: step.at)


def _steps(folder: Path) -> Iterator[Step]:
    for file in folder.glob("*.jsonl"):
        for line in _whole_lines(file):
            told = json.loads(line)
            if told["kind"] == "step":
                samples = tuple(told["samples"])
                place = told["rank"], told["world"], told["step"]
                yield Step(told["at"], *place, told["loss"], samples, file.stem)


def starts(folder: Path, besides: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """The first line of each process not in `besides`: rank, world, pid, start, and when it was how far."""
    files = [file for file in sorted(folder.glob("*.jsonl")) if file.stem not in besides]
    return [json.loads(lines[0]) for file in files if (lines := _whole_lines(file))]


def _whole_lines(file: Path) -> list[str]:
    return file.read_text().split("\n")[:-1]


def first_step_at(folder: Path, *, world: int) -> float | None:
    """When the first step was done by all ranks; None: not yet."""
    done = [step.at for step in steps(folder) if step.step == 0]
    return max(done) if len(done) >= world else None


def next_step_at(folder: Path, since: float, known: frozenset[str]) -> float | None:
    """When a process started after the fault (not in `known`) first finished a step; None: not yet."""
    done = [step.at for step in steps(folder) if step.process not in known and step.at > since]
    return min(done) if done else None


def parts(
    folder: Path, *, killed: float, detected: float, stepped: float, known: frozenset[str]
) -> dict[str, float]:
    """The seconds from a fault to the next step, by PARTS. The last of the new processes ends each."""
    new = starts(folder, known)
    reached = [max(start[moment] for start in new) for moment in ("entered_at", "grouped_at", "loaded_at")]
    moments = [killed, detected, *reached, stepped]
    return {part: until - since for part, (since, until) in zip(PARTS, pairwise(moments), strict=True)}


@dataclass(frozen=True, slots=True)
class Growth:
    """What a gang that got larger has lost of its training."""

    stood_at: float
    """When the last step with fewer ranks was done."""
    went_on_at: float
    """When all ranks had done the first step with more of them."""
    first: int
    """That step."""
    again: int
    """Steps of the smaller gang that were done once more."""


def growth(folder: Path, world: int) -> Growth | None:
    """None: it has not made a step of `world` ranks yet."""
    done = steps(folder)
    small, large = ([s for s in done if (s.world == world) is more] for more in (False, True))
    first = min((step.step for step in large), default=-1)
    ended = {step.rank: step.at for step in reversed(large) if step.step == first}
    if len(ended) < world:
        return None
    again = len({step.step for step in small if step.step >= first})
    return Growth(max(step.at for step in small), max(ended.values()), first, again)


def repeated(folder: Path) -> list[str]:
    """Steps that a rank has done more than once, which the step loop never does."""
    counts = Counter((step.rank, step.step) for step in steps(folder))
    return [
        f"rank {rank} step {step}: done {times} times" for (rank, step), times in counts.items() if times > 1
    ]


def processes(folder: Path) -> frozenset[str]:
    return frozenset(file.stem for file in folder.glob("*.jsonl"))


def effective(folder: Path) -> dict[int, list[Step]]:
    """The run that counts: each step as it was done last, by rank."""
    last = {(step.step, step.rank): step for step in steps(folder)}
    found: dict[int, list[Step]] = {}
    for number, rank in sorted(last):
        found.setdefault(number, []).append(last[number, rank])
    return found


def differences(folder: Path, whole: Path, *, rel_tol: float = 0.0, until: int = sys.maxsize) -> list[str]:
    """In what the run differs from the uninterrupted one before step `until`: missing or other steps,
    samples, losses (beyond `rel_tol`). Empty: in nothing.
    """
    ours, theirs = (
        {number: ranks for number, ranks in effective(run).items() if number < until}
        for run in (folder, whole)
    )
    found = [f"step {number}: only in one run" for number in sorted(ours.keys() ^ theirs.keys())]
    for number in sorted(ours.keys() & theirs.keys()):
        found += _differences(ours[number], theirs[number], rel_tol)
    return found


def _differences(ours: list[Step], theirs: list[Step], rel_tol: float) -> Iterator[str]:
    """Ranks have neighbouring parts of the batch, so together they are the same with any number of them."""
    number, loss = theirs[0].step, theirs[0].loss
    if (samples := _samples(ours)) != (expected := _samples(theirs)):
        yield f"step {number}: samples {samples}, expected {expected}"
    for step in ours:
        if not isclose(step.loss, loss, rel_tol=rel_tol):
            yield f"rank {step.rank} step {number}: loss {step.loss}, expected {loss}"


def _samples(ranks: list[Step]) -> list[int]:
    return [sample for step in ranks for sample in step.samples]
