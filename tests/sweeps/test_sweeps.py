"""Sweeps for real: a scheduler, agents, sampler processes and trials as jobs."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from paceline.client.sweep_views import Trial
from paceline.spec.errors import Conflict, InvalidRequest
from support import trial_scripts
from support.cluster import Cluster, wait_until
from support.trial_sweeps import ended, sweep_of, trials_of


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("sweeps"), agents=1, cpus=4) as made:
        yield made


def xs(trials: list[Trial]) -> list[float]:
    return [one.params["x"] for one in trials]


def test_a_sweep_from_a_file_to_its_best_trial(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep_of(tmp_path, trial_scripts.PARABOLA)))
    done = cluster.pace("submit", str(tmp_path / "sweep.yaml"), "-o", "json")
    assert done.returncode == 0, done.stderr
    number = json.loads(done.stdout)["sweeps"][0]["sweep"]
    found = ended(cluster, number)
    assert (found.state, found.complete, found.failed, found.running) == ("SUCCEEDED", 6, 0, 0)
    trials = trials_of(cluster, number)
    assert [one.number for one in trials] == list(range(6))
    assert all(one.values == (pytest.approx((one.params["x"] - 0.3) ** 2 + 1 / 3),) for one in trials)
    best = min(trials, key=lambda one: one.values)
    assert found.best[0].number == best.number
    assert [one.step for one in trials] == [3] * 6
    jobs = [cluster.client.job(one.job or 0) for one in trials]
    assert [job.name for job in jobs] == [f"parabola-{number}" for number in range(6)]
    shown = cluster.pace("sweep", "trials", str(number)).stdout
    assert shown.count("COMPLETE") == 6


def test_the_same_seed_gives_the_same_trials(cluster: Cluster, tmp_path: Path) -> None:
    one_by_one = {"max_total_trials": 12, "max_concurrent_trials": 1}
    tpe = {"type": "tpe", "seed": 3, "n_startup_trials": 4}
    document = sweep_of(tmp_path, trial_scripts.PARABOLA, limits=one_by_one, sampling_algorithm=tpe)
    numbers = [cluster.client.submit_sweep(document) for _ in range(2)]
    first, second = (xs(trials_of(cluster, ended(cluster, number).sweep)) for number in numbers)
    assert first == second


def test_enqueued_points_go_first(cluster: Cluster, tmp_path: Path) -> None:
    document = sweep_of(tmp_path, trial_scripts.PARABOLA, 3, enqueue=[{"x": 0.25}, {"x": 0.75}])
    number = cluster.client.submit_sweep(document)
    ended(cluster, number)
    assert xs(trials_of(cluster, number))[:2] == [0.25, 0.75]
    with pytest.raises(InvalidRequest, match=r"point 0: y: the search space has no such name"):
        cluster.client.enqueue(number, {"y": 1.0})


def test_extend_and_enqueue_one_that_is_over(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.client.submit_sweep(sweep_of(tmp_path, trial_scripts.PARABOLA, 2))
    ended(cluster, number)
    with pytest.raises(Conflict, match="is over"):
        cluster.client.resume_sweep(number)
    cluster.client.enqueue(number, {"x": 0.5})
    cluster.client.extend_sweep(number, 2)
    found = ended(cluster, number)
    assert found.complete == 4
    assert xs(trials_of(cluster, number))[2] == 0.5


def test_points_and_trials_are_added_to_one_that_runs(cluster: Cluster, tmp_path: Path) -> None:
    """While trials run the next suggestion is ready: its number is then the new point's."""
    number = cluster.client.submit_sweep(sweep_of(tmp_path, trial_scripts.HELD, 4))
    wait_until("two run", lambda: cluster.client.sweep(number).running == 2)
    assert cluster.client.enqueue(number, {"x": 0.125}, {"x": 0.375}) == (2, 3)
    cluster.client.extend_sweep(number, 2)
    (tmp_path / "gate").touch()
    found = ended(cluster, number)
    assert (found.state, found.complete, found.trials_max) == ("SUCCEEDED", 6, 6)
    given = xs(trials_of(cluster, number))
    assert given[2:4] == [0.125, 0.375]
    assert len(set(given)) == 6


def test_one_that_failed_is_mended_and_extended(cluster: Cluster, tmp_path: Path) -> None:
    limits = {"max_total_trials": 4, "max_concurrent_trials": 1, "max_failed_trials": 2}
    number = cluster.client.submit_sweep(sweep_of(tmp_path, trial_scripts.SILENT, limits=limits))
    assert (ended(cluster, number).state, cluster.client.sweep(number).failed) == ("FAILED", 2)
    trial_scripts.write(tmp_path, trial_scripts.PARABOLA)
    cluster.client.extend_sweep(number, 1)
    found = ended(cluster, number)
    assert (found.state, found.failed, found.complete) == ("SUCCEEDED", 2, 3)


def test_several_objectives_and_a_constraint(cluster: Cluster, tmp_path: Path) -> None:
    document = sweep_of(
        tmp_path,
        trial_scripts.TWO_GOALS,
        4,
        objective=[
            {"primary_metric": "accuracy", "goal": "maximize"},
            {"primary_metric": "latency", "goal": "minimize"},
        ],
        constraints=["size"],
        enqueue=[{"x": 0.2}, {"x": 0.4}, {"x": 0.9}, {"x": 0.1}],
    )
    found = ended(cluster, cluster.client.submit_sweep(document))
    assert {one.params["x"] for one in found.best} == {0.4, 0.2, 0.1}, "0.9 is not feasible"
    assert [one.feasible for one in trials_of(cluster, found.sweep)] == [True, True, False, True]


@pytest.mark.parametrize(
    "script, why",
    [
        (trial_scripts.SILENT, "loss was never reported by rank 0; it reported other"),
        (trial_scripts.NOT_A_NUMBER, "the last value of loss is NaN"),
        ("raise ValueError('no such layer')", "rank 0"),
    ],
)
def test_trials_that_fail_stop_the_sweep(cluster: Cluster, tmp_path: Path, script: str, why: str) -> None:
    limits = {"max_total_trials": 50, "max_concurrent_trials": 1, "max_failed_trials": 2}
    number = cluster.client.submit_sweep(sweep_of(tmp_path, script, limits=limits))
    found = ended(cluster, number)
    assert found.state == "FAILED"
    assert found.failed == 2
    assert found.why.startswith("2 trials in a row failed, the first of them because: ")
    assert why in found.why and why in found.first_failure
    assert cluster.pace("sweep", "show", str(number)).returncode == 1


def test_one_that_is_to_end_early_frees_its_place_at_once(cluster: Cluster, tmp_path: Path) -> None:
    document = sweep_of(
        tmp_path,
        trial_scripts.HELD,
        3,
        enqueue=[{"x": 0.1}, {"x": 0.9}, {"x": 0.8}],
        early_termination={"type": "threshold", "upper": 0.5},
    )
    number = cluster.client.submit_sweep(document)
    wait_until("two are pruned", lambda: cluster.client.sweep(number).pruned == 2)
    trials = trials_of(cluster, number)
    assert [one.state for one in trials] == ["RUNNING", "PRUNED", "PRUNED"]
    assert trials[1].why == "threshold at step 1, with 0.9"
    assert trials[1].values == (0.9,)
    ended_so = cluster.client.job(trials[1].job or 0).reason
    assert ended_so is not None
    assert ended_so.text.endswith(f"by sweep {number}: threshold at step 1, with 0.9"), ended_so.text
    (tmp_path / "gate").touch()
    assert ended(cluster, number).complete == 1


def test_one_that_is_preempted_goes_on_from_its_own_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.client.submit_sweep(sweep_of(tmp_path, trial_scripts.PREEMPTED, 2))
    wait_until("both have reported", lambda: [one.step for one in trials_of(cluster, number)] == [1, 1])
    before = trials_of(cluster, number)
    for one in before:
        cluster.client.preempt(one.job or 0)
    assert ended(cluster, number).complete == 2
    after = trials_of(cluster, number)
    assert [(one.number, one.job, one.params) for one in after] == [
        (one.number, one.job, one.params) for one in before
    ]
    assert [one.values for one in after] == [(pytest.approx(10 * one.params["x"]),) for one in before]
    assert [cluster.client.job(one.job or 0).attempt for one in after] == [2, 2]


def test_pause_resume_stop(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.client.submit_sweep(sweep_of(tmp_path, trial_scripts.HELD, 20))
    wait_until("two run", lambda: cluster.client.sweep(number).running == 2)
    assert cluster.client.pause_sweep(number).state == "PAUSED"
    (tmp_path / "gate").touch()
    wait_until("both are over", lambda: cluster.client.sweep(number).complete >= 2)
    (tmp_path / "gate").unlink()
    paused = cluster.client.sweep(number)
    assert (paused.state, paused.done, paused.running) == ("PAUSED", 2, 0)
    assert cluster.client.resume_sweep(number).state == "RUNNING"
    wait_until("two more run", lambda: cluster.client.sweep(number).running == 2)
    cluster.client.stop_sweep(number)
    found = ended(cluster, number)
    assert found.state == "CANCELLED"
    assert found.why.startswith("stopped by ")
    assert found.running == found.queued == 0


def test_beyond_the_least_trials_only_take_what_is_idle(cluster: Cluster, tmp_path: Path) -> None:
    limits = {"max_total_trials": 20, "min_concurrent_trials": 1}
    document = sweep_of(tmp_path, trial_scripts.HELD, limits=limits, priority=5)
    document["trial"]["resources"] = {"cpus": 2}
    number = cluster.client.submit_sweep(document)
    wait_until("two run, one waits", lambda: _counts(cluster, number) == (2, 1))
    jobs = [cluster.client.job(one.job or 0) for one in trials_of(cluster, number)]
    assert [job.priority for job in jobs] == [5, 4, 4], "any job of priority 5 goes before the last two"
    cluster.client.stop_sweep(number)
    assert ended(cluster, number).state == "CANCELLED"


def _counts(cluster: Cluster, number: int) -> tuple[int, int]:
    found = cluster.client.sweep(number)
    return found.running, found.queued


def test_every_point_of_a_grid_once(cluster: Cluster, tmp_path: Path) -> None:
    choices = {"x": [0.0, 0.5, 1.0], "y": ["a", "b"]}
    space = {name: {"type": "choice", "values": values} for name, values in choices.items()}
    document = sweep_of(tmp_path, trial_scripts.PARABOLA, search_space=space, sampling_algorithm="grid")
    del document["limits"]["max_total_trials"]
    found = ended(cluster, cluster.client.submit_sweep(document))
    given = [(one.params["x"], one.params["y"]) for one in trials_of(cluster, found.sweep)]
    assert sorted(given) == [(x, y) for x in (0.0, 0.5, 1.0) for y in ("a", "b")]


def test_a_table_and_a_plot(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.client.submit_sweep(sweep_of(tmp_path, trial_scripts.PARABOLA, 3))
    ended(cluster, number)
    done = cluster.pace("sweep", "export", str(number), str(tmp_path / "trials.csv"))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "trials.csv").open() as file:
        rows: list[Mapping[str, str]] = list(csv.DictReader(file))
    assert [float(row["params.x"]) for row in rows] == xs(trials_of(cluster, number))
    done = cluster.pace("sweep", "plot", str(number), str(tmp_path / "history.png"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "history.png").stat().st_size > 1000
    done = cluster.pace("sweep", "plot", str(number), str(tmp_path / "history.gif"))
    assert done.returncode == 2
    assert "expected a file that ends in .png" in done.stderr
