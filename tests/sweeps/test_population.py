"""Population based training: who falls behind, and what takes its place; in single moments, and for real."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.client.sweep_views import Fork as ForkView
from paceline.scheduler.core.job import Checkpoint, Course, Job, Parent
from paceline.scheduler.sweeps.driving import PARAMS
from paceline.scheduler.sweeps.explore import explored
from paceline.scheduler.sweeps.population import Exploit, Population
from paceline.scheduler.sweeps.study import Fork, Objective, Study, SweepPlan, SweepState, Trial, TrialState
from paceline.spec.ids import Attempt, JobId, Micros
from paceline.spec.sampling import PbtSampling
from support.cluster import Cluster
from support.paddock import shape
from support.sweep_strategies import DIMENSIONS
from support.sweeps import sweep
from support.trial_sweeps import ended, population_of, trials_of

PBT = {"type": "pbt", "population_size": 4, "perturbation_interval": 2, "seed": 5}
NOW = Micros(1)


def checkpoint(step: int, **changes: Any) -> Checkpoint:
    return Checkpoint(step, Attempt(1), f"/jobs/step-{step}", "hash", 1, NOW, **changes)


class Members:
    """A sweep whose trials have told their losses, and saved, at these steps."""

    def __init__(self, *, most: int = 20, **sampling: Any) -> None:
        self.spec = sweep(sampling_algorithm={**PBT, **sampling}, limits={"max_total_trials": most})
        plan = SweepPlan((Objective("loss", "minimize"),), trials=most)
        self.study = Study(1, "s", ("minimize",), "ann", NOW, state=SweepState.RUNNING, plan=plan)
        self.jobs: dict[JobId, Job] = {}

    def add(self, told: Mapping[int, float], saved: tuple[Checkpoint, ...] = (), **changes: Any) -> Trial:
        number = len(self.study.trials)
        trial = Trial(number, TrialState.RUNNING, job=JobId(100 + number), **changes)
        trial.intermediate = dict(told)
        trial.reported = dict.fromkeys(told, 1)
        trial.user_attrs[PARAMS] = json.dumps({"lr": 0.1 + 0.01 * number})
        self.study.trials.append(trial)
        self.save(number, *saved)
        return trial

    def save(self, number: int, *saved: Checkpoint) -> None:
        course = Course(checkpoints=tuple(reversed(saved)))
        self.jobs[JobId(100 + number)] = Job(JobId(100 + number), "t", "ann", 0, NOW, shape(), course)

    def tell(self, number: int, step: int, loss: float) -> None:
        trial = self.study.trials[number]
        trial.intermediate[step], trial.reported[step] = loss, 1

    def exploits(self) -> list[Exploit]:
        how = self.spec.sampling_algorithm
        assert isinstance(how, PbtSampling)
        return Population(self.spec, how, self.study.trials).exploits(self.study, self.jobs)

    def who(self) -> list[tuple[int, int, int]]:
        """Trial, donor, step of the checkpoint."""
        return [
            (one.number, one.successor.fork.trial, one.successor.fork.parent.step) for one in self.exploits()
        ]


def four(losses: tuple[float, ...] = (0.4, 0.1, 0.3, 0.2), step: int = 2, **sampling: Any) -> Members:
    members = Members(**sampling)
    for loss in losses:
        members.add({1: 1.0, step: loss}, (checkpoint(step),))
    return members


def test_the_last_goes_on_from_the_first() -> None:
    [found] = four().exploits()
    assert (found.number, found.successor.fork.trial, found.successor.fork.parent) == (
        *(0, 1),
        Parent(JobId(101), 2),
    )
    assert (found.successor.fork.member, found.successor.fork.generation) == (0, 1)
    assert found.why == (
        "pbt at step 2, with 0.4: its place goes on from the checkpoint of step 2 of trial 1, which had 0.1"
    )
    assert set(json.loads(found.successor.fixed)) == {"lr"}
    assert four().exploits() == [found], "the same trial with the same seed, the same values"


def test_a_quarter_of_three_is_none() -> None:
    assert four((0.4, 0.1, 0.3)).who() == []
    assert four((0.4, 0.1), quantile_fraction=0.5).who() == [(0, 1, 2)]


def test_more_is_better_and_no_number_is_worst() -> None:
    members = four((0.4, 0.1, 0.3, math.nan))
    assert members.who() == [(3, 1, 2)]
    goal = {"primary_metric": "loss", "goal": "maximize"}
    members.spec = members.spec.model_copy(update={"objective": sweep(objective=goal).objective})
    assert members.who() == [(3, 0, 2)]


def test_members_are_compared_where_each_has_come() -> None:
    members = four()
    members.tell(1, 3, 0.9)
    members.tell(1, 4, 0.9)
    assert members.who() == [(0, 1, 2)], "at step 2, where it was the best; at 4 it is alone"
    del members.study.trials[2].intermediate[2]
    assert members.who() == [], "three have come so far"


def test_who_is_in_front_is_compared_where_enough_others_have_come() -> None:
    members = four((0.1, 0.4, 0.3, 0.2))
    for step in (4, 6, 8):
        members.tell(3, step, 0.9)
    for number, loss in enumerate((0.1, 0.4, 0.3)):
        members.tell(number, 4, loss)
        members.save(number, checkpoint(4))
    assert members.who() == [(3, 0, 4)], "at 4, though it is at 8 and was good at 2"
    members.tell(1, 5, 0.4)
    members.tell(1, 6, 0.4)
    assert members.who() == [(3, 0, 4)], "at 6 they are two"


def test_the_checkpoint_is_not_beyond_the_member_where_that_can_be() -> None:
    members = four()

    def with_saves(*saves: Checkpoint) -> list[tuple[int, int, int]]:
        members.save(1, *saves)
        return members.who()

    assert with_saves() == [], "there is none yet"
    assert with_saves(checkpoint(1), checkpoint(2), checkpoint(3)) == [(0, 1, 2)]
    assert with_saves(checkpoint(1), checkpoint(2, damaged={"storage": "hash"})) == [(0, 1, 1)]
    assert with_saves(checkpoint(5), checkpoint(6)) == [(0, 1, 5)], "the first beyond"
    for number, loss in enumerate((0.5, 0.1, 0.2, 0.3)):
        members.tell(number, 4, loss)
    assert with_saves(checkpoint(2)) == [], "that would lose a whole interval"
    assert with_saves(checkpoint(3)) == [(0, 1, 3)]


def test_who_has_just_gone_on_has_an_interval_to_itself() -> None:
    members = four()
    fork = Fork(0, 1, 1, Parent(JobId(101), 2), checkpoint(2))
    members.study.trials[0].state = TrialState.PRUNED
    members.add({3: 0.5}, fork=fork)
    assert members.who() == []
    for number, loss in enumerate((0.2, 0.1, 0.3, 0.5), 1):
        members.tell(number, 4, loss)
        members.save(number, checkpoint(4))
    [found] = members.exploits()
    assert (found.number, found.successor.fork.trial) == (4, 2)
    assert (found.successor.fork.member, found.successor.fork.generation) == (0, 2)


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED])
def test_who_does_not_run_gives_no_checkpoint(state: TrialState) -> None:
    members = four()
    members.study.trials[1].state = state
    assert members.who() == []


def test_one_that_failed_is_not_counted() -> None:
    members = four((0.4, 0.1, 0.3, 0.2, 0.9))
    assert members.who() == [(4, 1, 2)]
    members.study.trials[4].state = TrialState.FAIL
    assert members.who() == [(0, 1, 2)]


def test_as_many_as_there_may_be_trials() -> None:
    assert four(most=4).who() == []
    members = four((0.4, 0.1, 0.3, 0.2, 0.35, 0.15, 0.5, 0.05), most=9)
    assert len(members.who()) == 1
    members = four((0.4, 0.1, 0.3, 0.2, 0.35, 0.15, 0.5, 0.05), most=10)
    assert [one[0] for one in members.who()] == [0, 6]
    assert four(most=6, population_size=6, quantile_fraction=0.25).who() == [], "for two first ones"


@given(DIMENSIONS, st.integers(0, 10**6), st.floats(0, 1))
def test_values_stay_in_the_space(dimension: dict[str, Any], seed: int, anew: float) -> None:
    spec = sweep(search_space={"lr": dimension}, sampling_algorithm={**PBT, "resample_probability": anew})
    how, [one] = spec.sampling_algorithm, spec.space.dimensions.values()
    assert isinstance(how, PbtSampling)
    die = Random(seed)
    values = {"lr": one.value(explored(spec.space, {}, how, die)["lr"])}
    for _ in range(5):
        assert one.expected(values["lr"]) == "", values
        values = {"lr": one.value(explored(spec.space, values, how, die)["lr"])}


def test_values_are_near_those_of_the_other() -> None:
    space: dict[str, Any] = {
        "lr": {"type": "loguniform", "min_value": -9, "max_value": 0},
        "width": {"type": "int", "low": 1, "high": 100},
        "layer": {"type": "choice", "values": ["a", "b", "c", "d"]},
        "q": {"type": "quniform", "min_value": 0, "max_value": 100, "q": 10},
        "more": {"type": "uniform", "min_value": 5, "max_value": 6, "when": {"layer": "c"}},
    }
    spec = sweep(search_space=space, sampling_algorithm={**PBT, "resample_probability": 0})
    how = spec.sampling_algorithm
    assert isinstance(how, PbtSampling)
    mine = {"lr": 0.1, "width": 2, "layer": "b", "q": 10}
    seen = [spec.space.values(explored(spec.space, mine, how, Random(seed))) for seed in range(50)]
    assert {round(float(one["lr"] or 0), 9) for one in seen} == {0.08, 0.12}
    assert {one["width"] for one in seen} == {1, 3}, "by one at least"
    assert {one["layer"] for one in seen} == {"a", "c"}, "its neighbours"
    assert {one["q"] for one in seen} == {0, 20}
    assert {"more" in one for one in seen if one["layer"] == "c"} == {True}, "drawn, as the other had none"
    assert not any("more" in one for one in seen if one["layer"] != "c")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("population"), agents=1, cpus=5) as made:
        yield made


def test_each_generation_goes_on_from_the_best(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.client.submit_sweep(population_of(tmp_path))
    found = ended(cluster, number)
    assert (found.state, found.complete, found.pruned) == ("SUCCEEDED", 4, 3), found.why
    trials = trials_of(cluster, number)
    assert next(one.number for one in trials if one.state == "PRUNED") == 0
    assert trials[4].fork == ForkView(member=0, generation=1, trial=1, step=2)
    assert all(one.fork and one.fork.step == 2 * at for at, one in enumerate(trials[4:], 1))
    job = cluster.client.job(trials[4].job or 0)
    assert (job.parent_job, job.parent_step) == (trials[1].job, 2)
    assert "goes on from the checkpoint of step 2 of trial 1" in trials[0].why
    whole = [one for one in trials if one.state == "COMPLETE"]
    totals = {one.number: one.values[0] for one in whole}
    assert max(totals.values()) >= 8 * 0.5
    assert trials[4].params["x"] != 0.5
    shown = cluster.pace("sweep", "trials", str(number)).stdout
    assert "trial 1 at 2, member 0.1" in shown
    table = tmp_path / "trials.csv"
    assert cluster.pace("sweep", "export", str(number), str(table)).returncode == 0
    assert "fork.member" in table.read_text()
