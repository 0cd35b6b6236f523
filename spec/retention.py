"""Which checkpoints a job wants to keep, and why: one pure choice, for whoever deletes and whoever lists."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol


class Saved(Protocol):
    """A checkpoint, as far as the choice looks at it."""

    @property
    def step(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True)
class Retention:
    """What to keep: the last N, the best N by a metric ("-loss": less is better), and for ever the first at
    or after each multiple of `keep_every` steps (0: none). `keep_last` 0: all."""

    keep_last: int = 0
    keep_best: int = 0
    best_metric: str = ""
    keep_every: int = 0


def reasons_to_keep(saved: Sequence[Saved], policy: Retention) -> list[str]:
    """For each of `saved` (oldest first), why it stays: "last 2", "best by loss", "every 500"; empty: it may
    go."""
    if policy.keep_last <= 0:
        return ["all are kept" for _ in saved]
    best = _best(saved, policy)
    name = policy.best_metric.removeprefix("-")
    told = []
    for at, one in enumerate(saved):
        whys = [f"last {policy.keep_last}"] if at >= len(saved) - policy.keep_last else []
        whys += [f"best {policy.keep_best} by {name}"] if at in best else []
        before = saved[at - 1].step if at else 0
        whys += [f"every {policy.keep_every}"] if _is_milestone(one.step, before, policy) else []
        told.append(", ".join(whys))
    return told


def _is_milestone(step: int, before: int, policy: Retention) -> bool:
    """The first in its span of `keep_every` steps stays, and so it is the first there whenever it is asked.
    `before`: the step of the one before it."""
    every = policy.keep_every
    return every > 0 and step // every > before // every


def _best(saved: Sequence[Saved], policy: Retention) -> set[int]:
    name = policy.best_metric.removeprefix("-")
    if policy.keep_best <= 0 or not name:
        return set()
    sign = -1.0 if policy.best_metric.startswith("-") else 1.0
    rated = [at for at, one in enumerate(saved) if math.isfinite(one.metrics.get(name, math.nan))]
    rated.sort(key=lambda at: sign * saved[at].metrics[name], reverse=True)
    return set(rated[: policy.keep_best])


KEEP_ALL: Final = Retention()
RECORD_MAX: Final = 4096
"""Of a job's checkpoints so many are on record, the newest; before those lie only such as stay for ever."""
