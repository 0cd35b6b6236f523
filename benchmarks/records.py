"""Reads what work/train.py wrote down: when steps were done, and whether an interrupted run was the same
run.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TRAIN = Path(__file__).parent / "work" / "train.py"
TRAIN_LOOP = TRAIN.with_name("train_loop.py")


@dataclass(frozen=True, slots=True)
class Step:
    """One rank's step, as one process did it."""

    at: float
    """Seconds since the epoch, at its end."""
    rank: int
    step: int
    loss: float
    samples: tuple[int, ...]
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
                yield Step(told["at"], told["rank"], told["step"], told["loss"], samples, file.stem)


def starts(folder: Path) -> list[dict[str, int]]:
    """The first line of each process: rank, world, pid, start."""
    found = [(file, _whole_lines(file)) for file in sorted(folder.glob("*.jsonl"))]
    return [json.loads(lines[0]) for _, lines in found if lines]


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


def repeated(folder: Path) -> list[str]:
    """Steps that a rank has done more than once, which the step loop never does."""
    counts = Counter((step.rank, step.step) for step in steps(folder))
    return [
        f"rank {rank} step {step}: done {times} times" for (rank, step), times in counts.items() if times > 1
    ]


def processes(folder: Path) -> frozenset[str]:
    return frozenset(file.stem for file in folder.glob("*.jsonl"))


def effective(folder: Path) -> list[Step]:
    """The run that counts: of each rank and step the last one done."""
    last = {(step.rank, step.step): step for step in steps(folder)}
    return [last[key] for key in sorted(last)]


def differences(folder: Path, whole: Path) -> list[str]:
    """In what the run differs from the uninterrupted one: missing or other steps, samples, losses. Empty: in
    nothing.
    """
    ours, theirs = _by_key(effective(folder)), _by_key(effective(whole))
    found = [
        f"rank {rank} step {step}: only in one run" for rank, step in sorted(ours.keys() ^ theirs.keys())
    ]
    same: list[tuple[str, Callable[[Step], object]]] = [
        ("samples", lambda s: s.samples),
        ("loss", lambda s: s.loss),
    ]
    for key in sorted(ours.keys() & theirs.keys()):
        for what, of in same:
            if of(ours[key]) != of(theirs[key]):
                found.append(
                    f"rank {key[0]} step {key[1]}: {what} {of(ours[key])}, expected {of(theirs[key])}"
                )
    return found


def _by_key(found: list[Step]) -> dict[tuple[int, int], Step]:
    return {(step.rank, step.step): step for step in found}
