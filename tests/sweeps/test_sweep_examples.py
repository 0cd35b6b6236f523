"""The examples of sweeps, as they stand in examples/sweep, on real digits with real torch."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
from paceline.client.sweep_views import Sweep, Trial
from support.cluster import Cluster

EXAMPLES = Path(__file__).parents[2] / "examples" / "sweep"
EPOCHS = 27
SEEDS = (1, 2, 3)
POPULATION_SEEDS = (2, 10)
"""With these the first member to fall behind, the one with the lowest rate, goes on with a rate above the
best one's; which of the later ones fall behind hangs on how they run side by side."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("examples"), agents=2, cpus=2) as made:
        yield made


def done(cluster: Cluster, name: str, *overrides: str) -> tuple[Sweep, list[Trial]]:
    number = cluster.client.submit_sweep(str(EXAMPLES / name), overrides=overrides)
    found = cluster.client.wait_sweep(number)
    assert found.state == "SUCCEEDED", found.why
    return found, list(cluster.client.trials(number))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_asha_beats_random_search_at_the_same_budget(cluster: Cluster) -> None:
    """The budget is epochs. Random search spends it on trials that all run to their end."""
    ahead = []
    for seed in SEEDS:
        found, trials = done(cluster, "asha.yaml", f"sampling_algorithm.seed={seed}")
        assert len(trials) == 30
        assert found.pruned >= 15
        epochs = sum(one.step or 0 for one in trials)
        assert epochs < 30 * EPOCHS / 2, "half of the work was spared"
        # The same points from the same seed, as far as the budget goes.
        affordable = max(1, epochs // EPOCHS)
        full, _ = done(
            cluster,
            "asha.yaml",
            f"sampling_algorithm.seed={seed}",
            f"limits.max_total_trials={affordable}",
            f"limits.max_concurrent_trials={min(4, affordable)}",
            "early_termination=null",
        )
        ahead.append(found.best[0].values[0] - full.best[0].values[0])
    assert fmean(ahead) > 0, ahead


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_population_beats_the_same_trials_without_exploit(cluster: Cluster) -> None:
    """The same members from the same seed, each for as many epochs. The best goes on undisturbed in both: so
    the others have to overtake it."""
    ahead = []
    for seed in POPULATION_SEEDS:
        found, trials = done(cluster, "pbt.yaml", f"sampling_algorithm.seed={seed}")
        assert any(one.fork for one in trials)
        alone, four = done(
            cluster,
            "pbt.yaml",
            f"sampling_algorithm.seed={seed}",
            "sampling_algorithm.perturbation_interval=1000",
            "limits.max_total_trials=4",
        )
        assert [one.params for one in trials[:4]] == [one.params for one in four]
        ahead.append(alone.best[0].values[0] - found.best[0].values[0])
        print(f"seed {seed}: {alone.best[0].values[0]:.4f} alone, {found.best[0].values[0]:.4f} together")
    assert fmean(ahead) > 0, ahead


@pytest.mark.slow
def test_two_objectives(cluster: Cluster) -> None:
    found, trials = done(cluster, "pareto.yaml")
    front = sorted({(one.values[1], one.values[0]) for one in found.best})  # two trials may be equally good
    assert len(front) >= 2
    assert all(small < large for (_, small), (_, large) in pairwise(front))
    assert len(trials) == 24


@pytest.mark.slow
def test_each_trial_is_a_gang_of_two(cluster: Cluster) -> None:
    found, trials = done(cluster, "gang.yaml")
    assert trials[0].params == {"lr": 0.05}
    jobs = [cluster.client.job(one.job or 0) for one in trials]
    assert [len(job.tasks) for job in jobs] == [2] * 4
    assert {task.node for job in jobs for task in job.tasks} == {"local-0", "local-1"}
    assert found.best[0].values[0] > 0.8
