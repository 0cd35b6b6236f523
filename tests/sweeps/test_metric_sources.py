"""Objectives of scripts which know nothing of Paceline: what they log with MLflow, what they print."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import trial_scripts
from support.cluster import Cluster
from support.trial_sweeps import ended, sweep_of, trials_of


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("sources"), agents=1, cpus=4) as made:
        yield made


def test_what_a_script_logs_with_mlflow_is_its_objective(cluster: Cluster, tmp_path: Path) -> None:
    """Without a tracking server; its files are with the job's, and none with the code."""
    pytest.importorskip("mlflow")
    document = sweep_of(tmp_path, trial_scripts.WITH_MLFLOW, 2)
    found = ended(cluster, cluster.client.submit_sweep(document))
    assert (found.state, found.complete) == ("SUCCEEDED", 2), found.first_failure
    for trial in trials_of(cluster, found.sweep):
        assert trial.values == (pytest.approx((trial.params["x"] - 0.3) ** 2 + 1 / 3),)
        assert trial.step == 3
        job = cluster.client.job(trial.job or 0)
        assert job.metrics["accuracy"] == 0.5
        assert job.metrics["speed"] == 1.0
        assert job.metrics["layer5"] == 5.0
        log = b"".join(chunk.data for chunk in cluster.client.logs(job.job))
        assert b"not reported to the job: step is -1" in log, "a warning, and the script goes on"
        assert b"values in one report" not in log
    assert [path.name for path in tmp_path.iterdir()] == ["trial.py"]


def test_a_trial_that_logs_to_a_place_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    """The user's tracking URI stays as it is, and the objective is told all the same."""
    pytest.importorskip("mlflow")
    place = tmp_path / "mine"
    document = sweep_of(tmp_path, trial_scripts.WITH_MLFLOW, limits={"max_total_trials": 1})
    document["trial"]["environment_variables"] = {"MLFLOW_TRACKING_URI": place.as_uri()}
    found = ended(cluster, cluster.client.submit_sweep(document))
    assert found.complete == 1, found.first_failure
    [tag] = place.glob("*/*/tags/paceline.job")
    assert tag.read_text() == str(found.best[0].job)


def test_what_a_program_prints_is_its_objective(cluster: Cluster, tmp_path: Path) -> None:
    """In any language; the pattern says which number, and which step."""
    objective = {
        "primary_metric": "loss",
        "goal": "minimize",
        "pattern": r"epoch (?P<step>\d+): val_loss=(?P<value>\S+)",
    }
    document = sweep_of(tmp_path, "", 2, objective=objective)
    script = "for n in 1 2 3; do echo epoch $n: val_loss=$PACELINE_PARAM_x$n; done"
    document["trial"]["command"] = script
    found = ended(cluster, cluster.client.submit_sweep(document))
    assert (found.state, found.complete) == ("SUCCEEDED", 2), found.first_failure
    for trial in trials_of(cluster, found.sweep):
        assert trial.values == (pytest.approx(float(f"{trial.params['x']}3")),)
        assert trial.step == 3
