"""sweep: what a trial costs.

`no-op trials by function`: one worker calls a function that asks its trial for two floats and a choice and
returns at once; beside it the same function under `study.optimize` in one process, with Optuna's storage in
memory, which keeps nothing. Ours has in the store, on disk, what was told. The time is that between the
starts of two trials: nothing of the worker's start, with its imports, is in it; a note has that of the whole
sweep.

The other cases are in sweep_trials.py.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna

from .cluster import Cluster
from .cluster import version as our_version
from .harness import Options, Report, Row, alternate, options
from .sweep_trials import SECOND_AT_ONCE, one_second, short_training
from .work import noop_objective

TRIALS = 1_000
QUICK_TRIALS = 20
SAMPLERS: dict[str, Callable[[int], Any]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
}
MEMORY = "Optuna in memory"


def main(argv: Sequence[str] | None = None) -> None:
    given = options("sweep", "What a trial of a sweep costs.", argv)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    report = Report("sweep", versions={"paceline": our_version(), "optuna": optuna.__version__})
    with (
        tempfile.TemporaryDirectory(prefix="bench-sweep-") as name,
        Cluster(Path(name), agents=1) as cluster,
    ):
        for sampler in SAMPLERS:
            no_op(report, given, cluster, sampler)
    with (
        tempfile.TemporaryDirectory(prefix="bench-sweep-") as name,
        Cluster(Path(name), agents=1, slots=SECOND_AT_ONCE) as cluster,
    ):
        one_second(report, given, cluster)
        short_training(report, given, cluster)
    report.finish(given)


def no_op(report: Report, given: Options, cluster: Cluster, sampler: str) -> None:
    trials = QUICK_TRIALS if given.quick else TRIALS
    ours = NoOp(cluster, trials, sampler)
    a_trial, theirs = alternate(given.pairs, ours, lambda: in_memory(trials, sampler))
    case = f"{trials:,} no-op trials by function, one worker, {sampler}"
    report.rows.append(Row(case, "a trial", "ms", a_trial, MEMORY, theirs))
    above = a_trial.median - theirs.median
    report.notes.append(f"{case}: {above:.2f} ms a trial above {MEMORY}")
    report.notes.append(f"{case}: from submit to end {', '.join(f'{one:.1f}' for one in ours.whole_s)} s")


class NoOp:
    """Milliseconds from the start of one trial to that of the next."""

    def __init__(self, cluster: Cluster, trials: int, sampler: str) -> None:
        self._cluster = cluster
        self._trials = trials
        self._sampler = sampler
        self._seed = 0
        self.whole_s: list[float] = []
        """From submit to end."""

    def __call__(self) -> float:
        self._seed += 1
        began = time.perf_counter()
        number = self._cluster.client.submit_sweep(
            {
                "type": "sweep",
                "trial": {
                    "objective": f"{Path(noop_objective.__file__).name}:objective",
                    "code": str(Path(noop_objective.__file__).parent),
                },
                "objective": {"goal": "minimize"},
                "sampling_algorithm": {"type": self._sampler, "seed": self._seed},
                "limits": {"max_total_trials": self._trials, "max_concurrent_trials": 1},
            }
        )
        found = self._cluster.client.wait_sweep(number)
        self.whole_s.append(time.perf_counter() - began)
        if found.complete != self._trials:
            raise RuntimeError(f"sweep {number} is {found.state}: {found.why} {found.first_failure}")
        starts = [trial.started_us or 0 for trial in self._cluster.client.trials(number)]
        return (starts[-1] - starts[0]) / (len(starts) - 1) / 1e3


def in_memory(trials: int, sampler: str) -> float:
    """The same, of Optuna in this process."""
    study = optuna.create_study(sampler=SAMPLERS[sampler](1))
    began = time.perf_counter()
    study.optimize(noop_objective.objective, n_trials=trials)
    return (time.perf_counter() - began) / trials * 1e3


if __name__ == "__main__":
    main(sys.argv[1:])
