"""Cases of the benchmark `sweep` whose trials are scripts, each a job and a process of its own.

`one second`: trials that sleep, four at a time; how much longer than the sleeping alone it takes. `short
training`: a small net for real, two at a time, beside Ray Tune with the same function.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from .cluster import Cluster
from .harness import Options, Report, Row, Sample, alternate, quantile
from .peers import ray_train

WORK = Path(__file__).parent / "work"
SECOND_TRIALS = 200
SECOND_AT_ONCE = 4
SHORT_TRIALS = 200
SHORT_AT_ONCE = 2
RAY_TRIALS = 30
"""In each of its runs: it starts about one a second."""
RAY_TUNE = "Ray Tune"


class Scripts:
    """Seconds from the submit of a sweep to its end."""

    def __init__(self, cluster: Cluster, script: str, trials: int, at_once: int) -> None:
        self._cluster, self._script = cluster, script
        self._trials, self._at_once = trials, at_once
        self._seed = 0
        self.fills_ms: list[float] = []
        """From the end of a trial to the start of the one that takes its place."""

    def __call__(self) -> float:
        self._seed += 1
        began = time.perf_counter()
        number = self._cluster.client.submit_sweep(
            {
                "type": "sweep",
                "trial": {"command": f"python {self._script}", "code": str(WORK)},
                "search_space": {"lr": {"type": "float", "low": 0.0001, "high": 0.1, "log": True}},
                "objective": {"primary_metric": "loss", "goal": "minimize"},
                "sampling_algorithm": {"type": "tpe", "seed": self._seed},
                "limits": {"max_total_trials": self._trials, "max_concurrent_trials": self._at_once},
            }
        )
        found = self._cluster.client.wait_sweep(number)
        took_s = time.perf_counter() - began
        if found.complete != self._trials:
            raise RuntimeError(f"sweep {number} is {found.state}: {found.why} {found.first_failure}")
        trials = list(self._cluster.client.trials(number))
        starts = sorted(trial.started_us or 0 for trial in trials)[self._at_once :]
        ends = sorted(trial.ended_us or 0 for trial in trials)
        self.fills_ms += [(start - end) / 1e3 for start, end in zip(starts, ends, strict=False)]
        return took_s


def one_second(report: Report, given: Options, cluster: Cluster) -> None:
    trials = 8 if given.quick else SECOND_TRIALS
    ours = Scripts(cluster, "one_second.py", trials, SECOND_AT_ONCE)
    ideal_s = trials / SECOND_AT_ONCE
    [taken] = alternate(given.pairs, ours)
    case = f"{trials} trials of one second, {SECOND_AT_ONCE} at once"
    report.rows.append(Row(case, "all", "s", taken, floor_name="their seconds", floor=Sample((ideal_s,))))
    report.notes.append(f"{case}: {(taken.median / ideal_s - 1) * 100:.1f} % more than {ideal_s:g} s")
    p50, p99 = median(ours.fills_ms), quantile(ours.fills_ms, 0.99)
    report.notes.append(f"{case}: a place is filled in {p50:.1f} ms (p50), {p99:.1f} ms (p99)")


def short_training(report: Report, given: Options, cluster: Cluster) -> None:
    trials = 8 if given.quick else SHORT_TRIALS
    ours = Scripts(cluster, "short_training.py", trials, SHORT_AT_ONCE)
    case = f"{trials} short trainings, {SHORT_AT_ONCE} at once"

    def rate() -> float:
        return trials / ours()

    if why := "Ray Tune: not with --quick" if given.quick else ray_train.missing():
        report.left_out(why)
        [taken] = alternate(given.pairs, rate)
        report.rows.append(Row(case, "trials", "1/s", taken))
        return
    report.versions["ray"] = ray_train.version()
    with ray_train.start(cluster.state.parent, cpus=SHORT_AT_ONCE) as ray:
        by_ray: Callable[[], float] = report.patient(
            RAY_TUNE, lambda: RAY_TRIALS / float(ray.ask("tune", trials=RAY_TRIALS, at_once=SHORT_AT_ONCE))
        )
        taken, theirs = alternate(given.pairs, rate, by_ray)
    report.rows.append(Row(case, "trials", "1/s", taken, RAY_TUNE, theirs))
