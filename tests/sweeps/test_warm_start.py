"""A sweep that begins with trials of an earlier one: which, what of them fits, that they do not count."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from paceline.client.optuna_storage import StudyStorage
from paceline.scheduler.sweeps.driving import PARAMS
from paceline.scheduler.sweeps.study import Objective, Param, Study, SweepPlan, Trial, TrialState
from paceline.scheduler.sweeps.warm_start import earlier_trials
from paceline.spec.errors import InvalidRequest, NotFound
from paceline.spec.ids import Micros
from support import trial_scripts
from support.cluster import Cluster
from support.sweeps import sweep
from support.trial_sweeps import ended, sweep_of, trials_of

CHOICE = '{"name": "CategoricalDistribution", "attributes": {"choices": ["sgd", "adam", "lion"]}}'
FLOAT = '{"name": "FloatDistribution", "attributes": {"low": -5.0, "high": 5.0, "log": false, "step": null}}'
SPACE = {
    "lr": {"type": "loguniform", "min_value": -7, "max_value": 0},
    "optimizer": {"type": "choice", "values": ["adam", "sgd"]},
    "momentum": {"type": "uniform", "min_value": 0, "max_value": 1, "when": {"optimizer": "sgd"}},
}


def study_of(*trials: tuple[TrialState, dict[str, Any], tuple[float, ...]]) -> Study:
    made = [
        Trial(
            number,
            state,
            {"lr": Param(-1.0, FLOAT)},
            values,
            user_attrs={PARAMS: json.dumps(params)},
            finished_us=Micros(number),
        )
        for number, (state, params, values) in enumerate(trials)
    ]
    distributions = {name: FLOAT for trial in trials for name in trial[1]}
    study = Study(7, "old", ("minimize",), "ada", Micros(0), trials=made, distributions=distributions)
    study.plan = SweepPlan((Objective("loss", "minimize"),))
    return study


def asking(**warm_start: Any) -> Any:
    return sweep(search_space=SPACE, warm_start={"sweep": 7, **warm_start})


def test_what_fits_is_taken_and_what_does_not_is_said() -> None:
    done = TrialState.COMPLETE
    study = study_of(
        (done, {"lr": 0.1, "optimizer": "sgd", "momentum": 0.9}, (3.0,)),
        (done, {"lr": 9.0, "optimizer": "adam", "momentum": 0.5}, (2.0,)),
        (TrialState.FAIL, {"lr": 0.1}, ()),
        (TrialState.PRUNED, {"lr": 0.01, "depth": 3}, (9.0,)),
        (TrialState.RUNNING, {"lr": 0.1}, ()),
        (done, {"depth": 4}, (1.0,)),
    )
    found = earlier_trials(asking(), study)
    assert [json.loads(one.user_attrs[PARAMS]) for one in found.trials] == [
        {"lr": 0.1, "optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "adam"},
        {"lr": 0.01},
    ]
    assert [(one.state, one.values) for one in found.trials] == [
        (done, (3.0,)),
        (done, (2.0,)),
        (TrialState.PRUNED, (9.0,)),
    ]
    assert found.trials[0].params["optimizer"].value == 1.0, "its place among the choices of the new space"
    assert found.trials[0].params["lr"].value == pytest.approx(0.1)
    assert found.note == (
        "3 trials of sweep 7 (old) are known from the start; 1 have no value that fits; values left out:"
        " lr of 1 (expected a number from 0.000911882 to 1; found 9.0), momentum of 1 (not there with the"
        " other values), depth of 2 (this search space has no such name)"
    )


def test_the_newest_or_the_best() -> None:
    study = study_of(*((TrialState.COMPLETE, {"lr": 0.1}, (value,)) for value in (3.0, 1.0, 4.0, 2.0)))
    assert [one.values for one in earlier_trials(asking(count=2), study).trials] == [(4.0,), (2.0,)]
    best = earlier_trials(asking(trials="best", count=2), study)
    assert [one.values for one in best.trials] == [(1.0,), (2.0,)]
    assert best.note == "2 trials of sweep 7 (old) are known from the start, of 4 that are finished"


def test_another_objective_or_nothing_in_common_is_refused() -> None:
    study = study_of((TrialState.COMPLETE, {"depth": 3}, (1.0,)))
    with pytest.raises(InvalidRequest, match="shares no dimension with this search space; it has depth"):
        earlier_trials(asking(), study)
    study.plan = SweepPlan((Objective("error", "minimize"),))
    with pytest.raises(InvalidRequest, match="does not seek what this one seeks, but minimize error"):
        earlier_trials(asking(), study)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("warm"), agents=1, cpus=4) as made:
        yield made


def test_earlier_trials_are_known_and_do_not_count(cluster: Cluster, tmp_path: Path) -> None:
    """Also after the scheduler has died: the sampler is told of them anew."""
    first = ended(cluster, cluster.client.submit_sweep(sweep_of(tmp_path, trial_scripts.PARABOLA, 4)))
    grid = {"x": {"type": "choice", "values": [one.params["x"] for one in trials_of(cluster, first.sweep)]}}
    grid["x"]["values"] += [0.25, 0.5]
    limits = {"max_concurrent_trials": 1}
    warm_start = {"sweep": first.name, "trials": "all"}
    document = sweep_of(
        tmp_path,
        trial_scripts.HELD,
        search_space=grid,
        sampling_algorithm="grid",
        limits=limits,
        warm_start=warm_start,
    )
    number = cluster.client.submit_sweep(document)
    cluster.kill_scheduler()
    cluster.start_scheduler()
    (tmp_path / "gate").touch()
    found = ended(cluster, number)
    assert (found.state, found.complete, found.earlier) == ("SUCCEEDED", 2, 4)
    trials = trials_of(cluster, number)
    assert [one.params["x"] for one in trials[4:]] == [0.25, 0.5], "the others of the grid are known"
    assert trials[0].why == f"trial 0 of sweep {first.sweep}"
    assert found.best[0].params["x"] == 0.25
    shown = cluster.pace("sweep", "show", str(number)).stdout
    assert f"4 trials of sweep {first.sweep} ({first.name}) are known from the start" in shown


def test_from_a_study_made_through_optuna(cluster: Cluster, tmp_path: Path) -> None:
    storage = StudyStorage(state=cluster.state)
    study = optuna.create_study(storage=storage, study_name="by-hand")
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 4) - 0.3) ** 2, n_trials=5)
    document = sweep_of(tmp_path, trial_scripts.PARABOLA, 2, warm_start={"sweep": "by-hand"})
    found = ended(cluster, cluster.client.submit_sweep(document))
    inside = [trial.params["x"] for trial in study.trials if trial.params["x"] <= 1]
    assert found.earlier == len(inside)
    known = trials_of(cluster, found.sweep)[: found.earlier]
    assert [one.params["x"] for one in known] == inside


def test_no_such_sweep(cluster: Cluster, tmp_path: Path) -> None:
    for asked, why in ((77, "there is no study 77"), ("nobody", "there is no study named 'nobody'")):
        document = sweep_of(tmp_path, trial_scripts.PARABOLA, 2, warm_start={"sweep": asked})
        with pytest.raises(NotFound, match=why):
            cluster.client.submit_sweep(document)
