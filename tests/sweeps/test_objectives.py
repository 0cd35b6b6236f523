"""Sweeps by function, for real: worker jobs that call an objective for one trial after the other."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paceline.client.sweep_views import Sweep, Trial
from paceline.proto.generated import studies_pb2
from paceline.spec.errors import Conflict, InvalidRequest, PacelineError, StaleAttempt, Unauthenticated
from paceline.training.study_calls import Admission, StudyCalls
from support import objective_scripts
from support.cluster import Cluster, wait_until

Op = studies_pb2.StudyOp


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("objectives"), agents=1, cpus=2) as made:
        yield made


def sweep_of(
    folder: Path, script: str, trials: int = 6, *, workers: int = 1, **changes: Any
) -> dict[str, Any]:
    """Its workers run in `folder` itself: they talk with the test through files there."""
    (folder / "objective.py").write_text(script)
    work = {"objective": "objective.py:objective", "code": str(folder), "code_in_place": True}
    retry = {"max_attempts": 3, "backoff": {"start_s": 0}}
    return {
        "type": "sweep",
        "name": "parabola",
        "trial": {**work, "retry": retry},
        "objective": {"goal": "minimize"},
        "sampling_algorithm": {"type": "random", "seed": 7},
        "limits": {"max_total_trials": trials, "max_concurrent_trials": workers},
        **changes,
    }


def ended(cluster: Cluster, number: int) -> Sweep:
    found = cluster.client.wait_sweep(number)
    assert found.is_over
    return found


def trials_of(cluster: Cluster, number: int) -> list[Trial]:
    return list(cluster.client.trials(number))


def calls_of(folder: Path) -> list[dict[str, Any]]:
    """What the objective has written down, call by call."""
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def begun(folder: Path, count: int) -> list[dict[str, Any]]:
    return wait_until(f"{count} calls", lambda: len(found := calls_of(folder)) >= count and found)


def open_gate(folder: Path) -> None:
    (folder / "gate").touch()


def stored(cluster: Cluster, number: int, trial: int) -> Trial:
    """With its params."""

    def found() -> Trial | None:
        trials = trials_of(cluster, number)
        return trials[trial] if len(trials) > trial and trials[trial].params else None

    return wait_until(f"the params of trial {trial} are stored", found)


def test_one_worker_to_the_best_trial(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep_of(tmp_path, objective_scripts.PARABOLA)))
    done = cluster.pace("submit", str(tmp_path / "sweep.yaml"), "-o", "json")
    assert done.returncode == 0, done.stderr
    number = json.loads(done.stdout)["sweeps"][0]["sweep"]
    found = ended(cluster, number)
    assert (found.state, found.complete, found.failed, found.running) == ("SUCCEEDED", 6, 0, 0)
    trials = trials_of(cluster, number)
    assert len({one.job for one in trials}) == 1
    assert all(
        one.values == (pytest.approx((one.params["x"] - 0.3) ** 2 + one.params["n"]),) for one in trials
    )
    assert {one.params["kind"] for one in trials} == {"a", None}
    best = min(trials, key=lambda one: one.values).number
    assert found.best[0].number == best
    assert f"best: trial {best} " in cluster.pace("sweep", "best", str(number)).stdout
    assert cluster.pace("sweep", "trials", str(number)).stdout.count("COMPLETE") == 6


def test_two_workers_make_as_many_trials_as_are_asked_for(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.client.submit_sweep(sweep_of(tmp_path, objective_scripts.HELD, 9, workers=2))
    first = begun(tmp_path, 2)
    assert len({one["pid"] for one in first}) == 2
    open_gate(tmp_path)
    assert ended(cluster, number).complete == 9
    assert sorted(one["number"] for one in calls_of(tmp_path)) == list(range(9))
    assert cluster.client.extend_sweep(number, 2).trials_max == 11
    assert ended(cluster, number).complete == 11


def test_the_same_seed_gives_the_same_trials(cluster: Cluster, tmp_path: Path) -> None:
    tpe = {"type": "tpe", "seed": 3, "n_startup_trials": 4}
    document = sweep_of(tmp_path, objective_scripts.PARABOLA, 12, sampling_algorithm=tpe)
    numbers = [cluster.client.submit_sweep(document) for _ in range(2)]
    first, second = (
        [one.params for one in trials_of(cluster, ended(cluster, number).sweep)] for number in numbers
    )
    assert first == second


@pytest.mark.parametrize("how", ["killed", "preempted"])
def test_a_worker_that_goes_takes_up_its_trial_again(cluster: Cluster, tmp_path: Path, how: str) -> None:
    number = cluster.client.submit_sweep(sweep_of(tmp_path, objective_scripts.HELD, 2))
    [first] = begun(tmp_path, 1)
    before = stored(cluster, number, 0)
    assert before.params["x"] == first["x"]
    if how == "killed":
        os.kill(first["pid"], signal.SIGKILL)
    else:
        cluster.client.preempt(before.job or 0)
    _, again = begun(tmp_path, 2)
    assert again["pid"] != first["pid"]
    assert (again["number"], again["x"]) == (0, first["x"])
    open_gate(tmp_path)
    assert ended(cluster, number).complete == 2
    assert [one["number"] for one in calls_of(tmp_path)] == [0, 0, 1]
    job = cluster.client.job(before.job or 0)
    assert (job.state, job.attempt) == ("SUCCEEDED", 2)


def test_the_scheduler_dies_amid_a_trial(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.client.submit_sweep(sweep_of(tmp_path, objective_scripts.HELD, 3))
    begun(tmp_path, 1)
    cluster.kill_scheduler()
    open_gate(tmp_path)
    wait_until("the trial has ended", (tmp_path / "ended").exists)
    cluster.start_scheduler()
    found = ended(cluster, number)
    assert (found.state, found.complete) == ("SUCCEEDED", 3)
    assert [one["number"] for one in calls_of(tmp_path)] == [0, 1, 2]


def test_pause_resume_stop(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.client.submit_sweep(sweep_of(tmp_path, objective_scripts.HELD, 1000))
    begun(tmp_path, 1)
    assert cluster.client.pause_sweep(number).state == "PAUSED"
    open_gate(tmp_path)
    job = trials_of(cluster, number)[0].job or 0
    cluster.wait_state(job, "SUCCEEDED")
    paused = cluster.client.sweep(number)
    assert (paused.state, paused.complete, paused.running) == ("PAUSED", 1, 0)
    (tmp_path / "gate").unlink()
    cluster.client.resume_sweep(number)
    begun(tmp_path, 2)
    cluster.client.stop_sweep(number)
    found = ended(cluster, number)
    assert (found.state, found.complete, found.failed) == ("CANCELLED", 1, 1)


def test_what_an_objective_may_end_with(cluster: Cluster, tmp_path: Path) -> None:
    points = [{"kind": kind} for kind in ("raises", "nan", "text", "pruned", "two", "leaves", "fine")]
    document = sweep_of(tmp_path, objective_scripts.ENDINGS, len(points), enqueue=points)
    found = ended(cluster, cluster.client.submit_sweep(document))
    assert (found.state, found.complete, found.pruned, found.failed) == ("SUCCEEDED", 1, 1, 5)
    trials = trials_of(cluster, found.sweep)
    assert [(one.params["kind"], one.state, one.why) for one in trials] == [
        ("raises", "FAIL", "KeyError: 'no such layer'"),
        ("nan", "FAIL", "ValueError: the objective returned NaN"),
        ("text", "FAIL", "ValueError: the objective returned 'x'; expected numbers"),
        ("pruned", "PRUNED", "itself at step 3, with 0.5"),
        ("two", "FAIL", "ValueError: the objective returned 2 values; expected 1"),
        ("leaves", "FAIL", "its job ended amid it: SUCCEEDED"),
        ("fine", "COMPLETE", ""),
    ]
    assert trials[3].values == (0.5,)


@pytest.mark.parametrize(
    "script, why",
    [
        ("def objective(trial): raise KeyError('no such layer')", "KeyError: 'no such layer'"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("", "InvalidRequest: objective.py has no function objective"),
    ],
)
def test_trials_that_fail_stop_the_sweep(cluster: Cluster, tmp_path: Path, script: str, why: str) -> None:
    limits = {"max_total_trials": 1000, "max_concurrent_trials": 1, "max_failed_trials": 2}
    found = ended(cluster, cluster.client.submit_sweep(sweep_of(tmp_path, script, limits=limits)))
    assert (found.state, found.failed) == ("FAILED", 2)
    assert found.why == f"2 trials in a row failed, the first of them because: {why}"


def test_workers_that_cannot_start_stop_the_sweep(cluster: Cluster, tmp_path: Path) -> None:
    limits = {"max_total_trials": 9, "max_concurrent_trials": 1, "max_failed_trials": 2}
    document = sweep_of(tmp_path, objective_scripts.PARABOLA, limits=limits)
    document["trial"]["code"] = str(tmp_path / "elsewhere")
    found = ended(cluster, cluster.client.submit_sweep(document))
    assert (found.state, found.failed) == ("FAILED", 2)
    assert "elsewhere is not on this node" in found.why


def test_pruned_by_what_others_have_reported(cluster: Cluster, tmp_path: Path) -> None:
    document = sweep_of(
        tmp_path,
        objective_scripts.REPORTS,
        3,
        enqueue=[{"x": 0.1}, {"x": 0.9}, {"x": 0.05}],
        early_termination={"type": "median_stopping"},
    )
    trials = trials_of(cluster, ended(cluster, cluster.client.submit_sweep(document)).sweep)
    assert [one.state for one in trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert trials[1].why == "median_stopping at step 1, with 0.9"
    assert trials[1].values == (0.9,)


def test_several_objectives(cluster: Cluster, tmp_path: Path) -> None:
    goals = [{"goal": "maximize", "primary_metric": "accuracy"}, {"goal": "minimize"}]
    points = [{"x": x} for x in (0.2, 0.4, 0.9)]
    document = sweep_of(tmp_path, objective_scripts.TWO_GOALS, 3, objective=goals, enqueue=points)
    found = ended(cluster, cluster.client.submit_sweep(document))
    assert [(one.metric, one.goal) for one in found.objectives] == [
        ("accuracy", "maximize"),
        ("value_1", "minimize"),
    ]
    assert {one.params["x"] for one in found.best} == {0.2, 0.4}


def attempted(admission: dict[str, Any], *ops: Op, **changes: Any) -> Any:
    """The replies to such a write. Raises PacelineError."""
    calls = StudyCalls(replace(Admission(**admission), **changes))
    try:
        return calls.call("Write", studies_pb2.WriteStudyRequest(study=calls.study, ops=ops)).replies
    finally:
        calls.close()


def test_only_the_current_attempt_is_heard_and_of_its_own_trial_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    numbers = [cluster.client.submit_sweep(sweep_of(one, objective_scripts.HELD, 2)) for one in folders]
    old, other = (begun(folder, 1)[0] for folder in folders)
    os.kill(old["pid"], signal.SIGKILL)
    now = begun(folders[0], 2)[1]
    take, mine = Op(take_trial=studies_pb2.TakeTrial()), now["admission"]
    told = Op(
        state=studies_pb2.SetTrialState(
            trial=0, state=studies_pb2.COMPLETE, values=studies_pb2.Objectives(values=[0.0]), claim="c"
        )
    )
    made = studies_pb2.CreateTrial(key="k", trial=studies_pb2.NewTrial(state=studies_pb2.WAITING))
    for op in (take, told):
        with pytest.raises(StaleAttempt, match="attempt 1 of job"):
            attempted(old["admission"], op)
        with pytest.raises(Unauthenticated, match=f"works for study {numbers[1]}, and asks for study"):
            attempted(mine, op, token=other["admission"]["token"])
        with pytest.raises(Unauthenticated, match="not one of this scheduler's"):
            attempted(mine, op, token=old["admission"]["token"].replace(".1.", ".2."))
    with pytest.raises(Conflict, match="adds no trials"):
        attempted(mine, Op(create_trial=made))
    assert [one.trial for one in attempted(mine, take)] == [0], "the trial that it runs already"
    with pytest.raises(InvalidRequest):
        attempted(mine)
    for folder in folders:
        open_gate(folder)
    for number in numbers:
        assert ended(cluster, number).complete == 2
    for admission in (mine, other["admission"]):
        with pytest.raises(PacelineError, match="is over"):
            attempted(admission, take)


def test_the_example(cluster: Cluster) -> None:
    example = Path(__file__).parents[2] / "examples" / "objective" / "sweep.yaml"
    number = cluster.client.submit_sweep(example)
    found = ended(cluster, number)
    assert (found.state, found.done, found.failed) == ("SUCCEEDED", 30, 0)
    assert found.pruned > 0
    assert all(
        ("slope" in one.params) == (one.params["kind"] == "relu") for one in trials_of(cluster, number)
    )


def test_a_function_of_a_package(cluster: Cluster, tmp_path: Path) -> None:
    package = tmp_path / "nets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tuning.py").write_text(objective_scripts.PARABOLA)
    document = sweep_of(tmp_path, "raise AssertionError('not this one')", 3)
    document["trial"]["objective"] = "nets.tuning:objective"
    found = ended(cluster, cluster.client.submit_sweep(document))
    assert (found.state, found.complete) == ("SUCCEEDED", 3), found.why
    document["trial"]["objective"] = "nets.tuning:objectve"
    found = ended(cluster, cluster.client.submit_sweep(document))
    assert found.state == "FAILED"
    assert "nets.tuning has no function objectve" in found.why, found.why


@pytest.mark.slow
def test_a_worker_tells_its_trials_over_tls(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=1, cpus=2, scheduler_args=["--tls"]) as cluster:
        assert cluster.ca_file is not None
        number = cluster.client.submit_sweep(sweep_of(tmp_path, objective_scripts.HELD, 2))
        [call] = begun(tmp_path, 1)
        admission = call["admission"]
        assert admission["ca_file"] == str(cluster.ca_file), admission
        open_gate(tmp_path)
        assert ended(cluster, number).complete == 2
