"""A sweep rides on over the death of the scheduler and of its sampler: no trial is lost or told twice, and
what is suggested is what would have been."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from paceline.client.sweep_views import Trial
from support import trial_scripts
from support.cluster import Cluster, wait_until
from support.trial_sweeps import population_of


def document(folder: Path, trials: int, at_once: int) -> dict[str, Any]:
    trial_scripts.write(folder, trial_scripts.PARABOLA)
    return {
        "type": "sweep",
        "trial": {"command": "python trial.py", "code": str(folder), "code_in_place": True},
        "search_space": {"x": {"type": "uniform", "min_value": 0, "max_value": 1}},
        "objective": {"primary_metric": "loss", "goal": "minimize"},
        "sampling_algorithm": {"type": "tpe", "seed": 11, "n_startup_trials": 3},
        "limits": {"max_total_trials": trials, "max_concurrent_trials": at_once},
    }


def ridden(
    cluster: Cluster, document: dict[str, Any], disturb: Callable[[], None], times: int
) -> list[Trial]:
    """The trials of a sweep that was disturbed so often on its way."""
    number = cluster.client.submit_sweep(document)
    seeded = random.Random(5)
    done = 0
    for _ in range(times):
        done += seeded.randint(1, 3)
        wait_until("the next trials", lambda due=done: cluster.client.sweep(number).done >= due)
        disturb()
    assert cluster.client.wait_sweep(number).state == "SUCCEEDED"
    return list(cluster.client.trials(number))


def outcome(trials: list[Trial]) -> list[tuple[int, str, Any, tuple[float, ...]]]:
    return [(one.number, one.state, one.params["x"], one.values) for one in trials]


def sampler_of(cluster: Cluster) -> list[psutil.Process]:
    assert cluster.scheduler is not None
    children = psutil.Process(cluster.scheduler.pid).children()
    return [child for child in children if any("sampler_process" in word for word in child.cmdline())]


@pytest.mark.slow
def test_the_scheduler_dies_again_and_again(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=1, cpus=4) as cluster:
        one_by_one = document(tmp_path, trials=14, at_once=1)

        def kill() -> None:
            cluster.kill_scheduler()
            cluster.start_scheduler()

        undisturbed = ridden(cluster, one_by_one, lambda: None, 0)
        disturbed = ridden(cluster, one_by_one, kill, 4)
        assert outcome(disturbed) == outcome(undisturbed)
        jobs = [cluster.client.job(one.job or 0) for one in disturbed]
        assert [job.attempt for job in jobs] == [1] * 14, "no trial was run again"
        side_by_side = ridden(cluster, document(tmp_path, trials=12, at_once=3), kill, 3)
        assert [(one.number, one.state) for one in side_by_side] == [(n, "COMPLETE") for n in range(12)]
        assert len({one.job for one in side_by_side}) == 12


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_scheduler_dies_amid_a_population(tmp_path: Path) -> None:
    """Each generation goes on from the checkpoint, and with the values, that it would have."""
    with Cluster(tmp_path, agents=1, cpus=5) as cluster:

        def kill() -> None:
            cluster.kill_scheduler()
            cluster.start_scheduler()

        def run(name: str, disturb: Callable[[], None]) -> list[Trial]:
            folder = tmp_path / name
            folder.mkdir()
            number = cluster.client.submit_sweep(population_of(folder))
            for step in (2, 4, 6):
                wait_until("the next generation", (folder / f"forked-{step}").exists)
                disturb()
            found = cluster.client.wait_sweep(number)
            assert (found.state, found.complete, found.pruned) == ("SUCCEEDED", 4, 3), found.why
            return list(cluster.client.trials(number))

        undisturbed, disturbed = run("undisturbed", lambda: None), run("disturbed", kill)
        assert outcome(disturbed) == outcome(undisturbed)
        assert [one.fork for one in disturbed] == [one.fork for one in undisturbed]
        jobs = [cluster.client.job(one.job or 0) for one in disturbed]
        assert [job.attempt for job in jobs] == [1] * 7, "no trial was run again"
        assert len({job.job for job in jobs}) == 7


@pytest.mark.slow
def test_the_sampler_dies(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=1, cpus=4) as cluster:
        plan = document(tmp_path, trials=10, at_once=1)

        def kill() -> None:
            [sampler] = wait_until("the sampler is there", lambda: sampler_of(cluster) or None)
            sampler.kill()

        undisturbed = ridden(cluster, plan, lambda: None, 0)
        assert outcome(ridden(cluster, plan, kill, 3)) == outcome(undisturbed)
        ridden(cluster, plan, lambda: None, 0)
        [spare] = sampler_of(cluster)
        ridden(cluster, plan, lambda: None, 0)
        assert sampler_of(cluster) == [spare], "the next sweep has the process of the one before"
