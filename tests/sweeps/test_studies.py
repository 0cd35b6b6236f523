"""Studies: what may be asked, what it does, and that all of it is there again after a restart."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
from paceline.scheduler.core.settings import Settings
from paceline.scheduler.loop_engine import Engine
from paceline.scheduler.loop_lookup import load, read_trials
from paceline.scheduler.sweeps import studies as studies_module
from paceline.scheduler.sweeps.ops import (
    CreateStudy,
    CreateTrial,
    DeleteStudy,
    Made,
    OpenStudy,
    SetIntermediate,
    SetStudyAttr,
    SetTrialAttr,
    SetTrialParam,
    SetTrialState,
    StudyOps,
    StudyStimulus,
)
from paceline.scheduler.sweeps.study import NewTrial, Param, Study, SweepState, Trial, TrialState
from paceline.spec.errors import Conflict, InvalidRequest, LimitExceeded, NotFound, PacelineError
from paceline.spec.ids import JobId, Micros
from support.memory_store import MemoryStore

FLOAT = json.dumps({"name": "FloatDistribution", "attributes": {"low": 0.0, "high": 1.0, "log": False}})
WIDER = json.dumps({"name": "FloatDistribution", "attributes": {"low": 0.0, "high": 9.0, "log": False}})
LOG = json.dumps({"name": "FloatDistribution", "attributes": {"low": 0.1, "high": 9.0, "log": True}})
CHOICE = json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": ["a", "b"]}})
OTHER_CHOICE = json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": ["b", "a"]}})
RUNNING = NewTrial()
WAITING = NewTrial(TrialState.WAITING)


class Desk:
    """An engine over a store in memory, with a clock that goes on by itself."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.now_us = 1_000_000
        self.again()

    def again(self) -> None:
        """As after a crash."""
        self.engine = load(self.store, Settings())

    def ask(self, *asked: StudyStimulus) -> list[object]:
        """One step; the answers."""
        self.now_us += 10
        for study in filter(None, map(self.engine.cold_study, asked)):
            self.engine.studies.put(study, read_trials(self.store, study))
        step = self.engine.step(asked, Micros(self.now_us), {})
        if not step.empty:
            self.store.commit(step.batch)
        self.engine.studies.evict()
        self.changed = step.changed
        return list(step.answers)

    def one(self, asked: StudyStimulus) -> object:
        [answer] = self.ask(asked)
        if isinstance(answer, PacelineError):
            raise answer
        return answer

    def make(self, name: str = "s", directions: tuple[str, ...] = ("minimize",), document: str = "") -> int:
        number = self.one(CreateStudy(f"key-{name}", name, directions, "ann", document))
        assert isinstance(number, int)
        return number

    def do(self, study: int, *ops: object) -> tuple[object, ...]:
        answer = self.one(StudyOps(study, ops))  # type: ignore[arg-type]
        assert isinstance(answer, tuple)
        return answer

    def add(self, study: int, new: NewTrial = RUNNING, key: str = "") -> int:
        [made] = self.do(study, CreateTrial(new, key))
        assert isinstance(made, Made)
        return made.number

    def study(self, number: int) -> Study:
        self.one(OpenStudy(number))
        return self.engine.studies.get(number)

    def trial(self, study: int, number: int) -> Trial:
        return self.study(study).trial(number)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def told(trials: Iterable[Trial]) -> list[str]:
    """Where NaN is as NaN; the order of intermediate values has no meaning."""
    return [repr(replace(trial, intermediate=dict(sorted(trial.intermediate.items())))) for trial in trials]


def versions(trials: Iterable[Trial]) -> list[int]:
    return [trial.version for trial in trials]


def test_a_trials_life(desk: Desk) -> None:
    study = desk.make(directions=("minimize", "maximize"))
    number = desk.add(study)
    desk.do(
        study,
        SetTrialParam(number, "x", Param(0.5, FLOAT)),
        SetIntermediate(number, 1, 0.25),
        SetTrialAttr(number, "note", '"good"'),
        SetTrialAttr(number, "constraints", "[1.0]", system=True),
        SetTrialState(number, TrialState.COMPLETE, (1.0, math.inf)),
    )
    trial = desk.trial(study, number)
    assert trial.params == {"x": Param(0.5, FLOAT)} and trial.values == (1.0, math.inf)
    assert trial.intermediate == {1: 0.25}
    assert (trial.user_attrs, trial.system_attrs) == ({"note": '"good"'}, {"constraints": "[1.0]"})
    assert trial.started_us is not None and trial.finished_us is not None
    assert trial.started_us < trial.finished_us


@pytest.mark.parametrize(
    "op",
    [
        SetTrialParam(0, "x", Param(0.5, FLOAT)),
        SetIntermediate(0, 1, 0.25),
        SetTrialAttr(0, "a", "1"),
        SetTrialState(0, TrialState.RUNNING),
        SetTrialState(0, TrialState.COMPLETE, (2.0,)),
    ],
    ids=lambda op: type(op).__name__,
)
@pytest.mark.parametrize("together", [False, True])
def test_a_finished_trial_never_changes(desk: Desk, op: object, together: bool) -> None:
    study = desk.make()
    desk.add(study)
    finish = SetTrialState(0, TrialState.PRUNED, (1.0,))
    if together:
        with pytest.raises(Conflict, match="trial 0 of study 1 is finished"):
            desk.do(study, finish, op)
        assert desk.trial(study, 0).state is TrialState.RUNNING
    else:
        desk.do(study, finish)
        before = repr(desk.trial(study, 0))
        with pytest.raises(Conflict, match="trial 0 of study 1 is finished"):
            desk.do(study, op)
        assert repr(desk.trial(study, 0)) == before


def test_all_or_none(desk: Desk) -> None:
    study = desk.make()
    number = desk.add(study)
    before = repr(desk.study(study))
    with pytest.raises(NotFound, match="has no trial 7"):
        desk.do(
            study,
            SetStudyAttr("a", "1"),
            CreateTrial(NewTrial(), "k"),
            SetTrialParam(number, "x", Param(0.5, FLOAT)),
            SetIntermediate(7, 1, 1.0),
        )
    assert repr(desk.study(study)) == before and desk.changed == frozenset()
    desk.again()
    assert repr(desk.study(study)) == before


def test_of_all_who_ask_for_a_waiting_trial_one_gets_it(desk: Desk) -> None:
    study = desk.make()
    desk.add(study, WAITING)
    asked = [StudyOps(study, (SetTrialState(0, TrialState.RUNNING, claim=f"c{at}"),)) for at in range(3)]
    assert desk.ask(*asked) == [(True,), (False,), (False,)]
    assert desk.ask(*asked) == [(True,), (False,), (False,)], "a call that comes again is answered alike"
    desk.again()
    assert desk.ask(*asked) == [(True,), (False,), (False,)]


def test_what_comes_again_makes_nothing_twice(desk: Desk) -> None:
    study = desk.make()
    assert desk.make() == study
    assert desk.add(study, key="k1") == desk.add(study, key="k1") == 0
    assert desk.add(study, key="k2") == 1
    tell = (SetIntermediate(0, 1, 0.5), SetTrialState(0, TrialState.COMPLETE, (1.0,), claim="t"))
    assert desk.do(study, *tell) == desk.do(study, *tell) == (None, True)
    desk.again()
    assert desk.make() == study and desk.add(study, key="k2") == 1
    assert desk.do(study, *tell) == (None, True)
    assert len(desk.study(study).trials) == 2
    with pytest.raises(Conflict):
        desk.do(study, SetTrialState(0, TrialState.COMPLETE, (1.0,), claim="another"))


def test_names_are_taken_and_numbers_never_come_back(desk: Desk) -> None:
    first = desk.make("a")
    with pytest.raises(Conflict, match="study named 'a' already: study 1"):
        desk.one(CreateStudy("other", "a", ("minimize",), "ann"))
    second = desk.make("b")
    desk.one(DeleteStudy(second))
    desk.again()
    with pytest.raises(NotFound, match="no study 2"):
        desk.one(DeleteStudy(second))
    with pytest.raises(NotFound):
        desk.do(second, SetStudyAttr("a", "1"))
    third = desk.make("b")
    assert (first, second, third) == (1, 2, 3)
    assert desk.study(third).trials == []


def test_a_study_that_goes_in_the_step_that_changed_it_is_gone(desk: Desk) -> None:
    study = desk.make()
    desk.add(study)
    desk.ask(
        StudyOps(study, (SetIntermediate(0, 1, 1.0), CreateTrial(WAITING, ""))),
        DeleteStudy(study),
        CreateStudy("again", "s", ("maximize",), "ann"),
    )
    assert desk.changed == {1, 2}
    desk.again()
    assert [(one.id, one.directions) for one in desk.engine.studies.by_id.values()] == [(2, ("maximize",))]
    assert desk.store.trial_rows == {} and desk.store.trial_values == {}


def test_a_name_keeps_its_kind_of_distribution(desk: Desk) -> None:
    study = desk.make()
    desk.add(study)
    desk.add(study)
    desk.do(study, SetTrialParam(0, "x", Param(0.5, FLOAT)), SetTrialParam(0, "c", Param(1, CHOICE)))
    for again in (False, True):
        if again:
            desk.again()
        for name, other in (("x", LOG), ("x", CHOICE), ("c", OTHER_CHOICE), ("c", FLOAT)):
            with pytest.raises(InvalidRequest, match=f"'{name}' was sampled from"):
                desk.do(study, SetTrialParam(1, name, Param(0.5, other)))
        desk.do(study, SetTrialParam(1, "x", Param(3.0, WIDER)), SetTrialParam(1, "c", Param(0, CHOICE)))
    with pytest.raises(InvalidRequest):
        desk.do(study, SetTrialParam(1, "y", Param(0.5, FLOAT)), SetTrialParam(1, "y", Param(0.5, CHOICE)))
    assert "y" not in desk.study(study).distributions


@pytest.mark.parametrize("values", [None, (), (1.0,), (1.0, 2.0, 3.0)])
def test_a_complete_trial_has_a_value_for_each_objective(
    desk: Desk, values: tuple[float, ...] | None
) -> None:
    study = desk.make(directions=("minimize", "maximize"))
    desk.add(study)
    with pytest.raises(InvalidRequest, match="expected 2"):
        desk.do(study, SetTrialState(0, TrialState.COMPLETE, values))


def test_all_is_there_after_a_restart(desk: Desk) -> None:
    study = desk.make(directions=("minimize", "maximize"))
    desk.do(study, SetStudyAttr("a", '{"b": NaN}'), SetStudyAttr("c", "1", system=True))
    made = NewTrial(
        TrialState.COMPLETE,
        {"y": Param(-math.inf, FLOAT), "x": Param(2.0, WIDER)},
        (math.nan, -math.inf),
        {3: math.nan, 1: math.inf, 2: 1e-300},
        {"u": "1"},
        {"s": "[2]"},
        Micros(5),
        Micros(7),
    )
    desk.add(study, made, key="k")
    desk.add(study, WAITING)
    running = desk.add(study)
    desk.do(study, SetIntermediate(running, 5, 0.5), SetIntermediate(running, 2, 0.25))
    desk.do(study, SetIntermediate(running, 5, 0.125))
    before = desk.study(study)
    desk.again()
    after = desk.study(study)
    assert after is not before
    assert told(after.trials) == told(before.trials)
    assert (after.version, after.noted, after.keys) == (before.version, before.noted, before.keys)
    assert (after.user_attrs, after.system_attrs) == ({"a": '{"b": NaN}'}, {"c": "1"})
    assert (after.name, after.directions, after.user, after.made_us) == (
        before.name,
        before.directions,
        before.user,
        before.made_us,
    )
    assert list(after.trials[0].params) == ["y", "x"]


@pytest.mark.parametrize("restarts", [False, True])
def test_who_knows_a_version_hears_only_what_came_after_it(desk: Desk, restarts: bool) -> None:
    study = desk.make()
    for _ in range(5):
        desk.add(study)
    known = desk.study(study).version
    desk.do(study, SetIntermediate(3, 1, 0.5), SetIntermediate(3, 2, 0.5), SetTrialAttr(1, "a", "1"))
    if restarts:
        desk.again()
    standing = desk.study(study)
    changed = list(standing.changed_since(known))
    assert [trial.number for trial in changed] == [3, 1]
    assert changed[0].noted <= known < changed[1].noted, "the record of trial 3 is as it was"
    assert changed[0].reported_since(known) == {1: 0.5, 2: 0.5}
    assert changed[0].reported_since(changed[0].version - 1) == {2: 0.5}
    assert list(standing.changed_since(standing.version)) == []
    assert [trial.number for trial in standing.changed_since(0)] == [0, 2, 4, 3, 1]


def test_versions_stay_in_order_however_often_a_trial_changes(desk: Desk) -> None:
    study = desk.make()
    for _ in range(3):
        desk.add(study)
    for at in range(3_000):
        desk.do(study, SetIntermediate(at % 2, at % 7, float(at)))
    standing = desk.study(study)
    assert [trial.number for trial in standing.changed_since(0)] == [2, 0, 1]
    found = versions(standing.changed_since(0))
    assert found == sorted(found) and found[-1] == standing.version
    assert len(standing._log_versions) < 2_000
    assert list(standing.trials[0].reported.values()) == sorted(standing.trials[0].reported.values())


def test_what_is_reported_writes_one_small_row(desk: Desk) -> None:
    study = desk.make()
    desk.add(study)
    desk.do(study, SetTrialAttr(0, "large", json.dumps("x" * 10_000)))
    desk.now_us += 10
    op = StudyOps(study, (SetIntermediate(0, 1, 0.5),))
    step = desk.engine.step([op], Micros(desk.now_us), {})
    written = step.batch.studies
    assert written is not None and len(written.values) == 1
    assert not (written.studies or written.trials or step.batch.events)
    assert not step.empty and step.changed == {study}


# --- sweeps that the scheduler drives


def driven(desk: Desk, state: SweepState = SweepState.RUNNING) -> int:
    study = desk.make("sweep", document="{}")
    desk.engine.studies.set_sweep_state(desk.engine.studies.get(study), state)
    new = desk.engine.studies.add_trial(
        desk.engine.studies.get(study), NewTrial(), Micros(desk.now_us), job=JobId(11)
    )
    desk.one(OpenStudy(study))  # a step, which writes the changes
    assert new.job == 11
    return study


def test_a_sweeps_trials_are_the_schedulers_to_change(desk: Desk) -> None:
    study = driven(desk)
    for op in (
        SetTrialParam(0, "x", Param(0.5, FLOAT)),
        SetTrialState(0, TrialState.FAIL),
        SetIntermediate(0, 1, 1.0),
        CreateTrial(NewTrial(), ""),
    ):
        with pytest.raises(Conflict, match="study 1 is a sweep: the scheduler"):
            desk.do(study, op)
    waiting = desk.add(study, NewTrial(TrialState.WAITING, system_attrs={"fixed_params": '{"x": 1}'}))
    desk.do(study, SetTrialAttr(0, "note", "1"), SetStudyAttr("note", "1"))
    assert (waiting, desk.trial(study, 0).user_attrs) == (1, {"note": "1"})


def test_a_sweep_that_runs_is_not_deleted(desk: Desk) -> None:
    study = driven(desk)
    with pytest.raises(Conflict, match="RUNNING"):
        desk.one(DeleteStudy(study))
    desk.engine.studies.set_sweep_state(desk.engine.studies.get(study), SweepState.CANCELLED)
    desk.one(DeleteStudy(study))
    assert desk.engine.studies.of_job(JobId(11)) is None


def test_live_sweeps_are_in_memory_from_the_start_with_their_jobs(desk: Desk) -> None:
    study, other = driven(desk), desk.make("other")
    desk.add(other)
    desk.again()
    found = desk.engine.studies.of_job(JobId(11))
    assert found is not None and (found[0].id, found[1].number) == (study, 0)
    assert not desk.engine.studies.get(other).loaded
    desk.engine.studies.set_state(*found, TrialState.COMPLETE, Micros(desk.now_us), values=(1.0,))
    desk.one(OpenStudy(study))
    assert desk.engine.studies.of_job(JobId(11)) is None and desk.changed == {study}
    desk.again()
    assert desk.engine.studies.of_job(JobId(11)) is None
    assert desk.trial(study, 0).values == (1.0,)


# --- bounds


def test_studies_that_nobody_uses_leave_memory_and_come_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies_module, "LOADED_MAX", 10)
    sweep = driven(desk)
    made = [desk.make(f"s{at}") for at in range(4)]
    for study in made:
        for at in range(2):
            desk.add(study)
            desk.do(study, SetIntermediate(at, 1, 0.5))
    studies = desk.engine.studies
    assert [study for study in made if studies.get(study).loaded] == made[2:]
    assert studies.get(sweep).loaded and studies.size == 9
    before = repr(desk.study(made[0]).trials)
    desk.again()
    assert repr(desk.study(made[0]).trials) == before
    assert len(desk.study(made[1]).trials) == 2


@pytest.mark.parametrize("system", [False, True])
def test_attributes_are_bounded(desk: Desk, system: bool) -> None:
    study = desk.make()
    desk.add(study)
    large = json.dumps("x" * 400_000)
    for op in (SetTrialAttr(0, "{}", large, system), SetStudyAttr("{}", large, system)):
        for at in range(2):
            desk.do(study, type(op)(**{**_fields(op), "key": f"k{at}"}))
        with pytest.raises(LimitExceeded, match="characters of attributes"):
            desk.do(study, op)
    desk.add(study)
    small = [SetTrialAttr(1, f"k{at}", "1", system) for at in range(1_000)]
    desk.do(study, *small)
    with pytest.raises(LimitExceeded, match="has 1000 of them"):
        desk.do(study, SetTrialAttr(1, "more", "1", system))
    desk.do(study, SetTrialAttr(1, "k0", "2", system))


def _fields(op: object) -> dict[str, object]:
    return {name: getattr(op, name) for name in op.__slots__}  # type: ignore[attr-defined]


def test_studies_trials_and_values_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies_module, "STUDIES_MAX", 1)
    monkeypatch.setattr(studies_module, "TRIALS_PER_STUDY_MAX", 2)
    monkeypatch.setattr("paceline.scheduler.sweeps.ops.TRIAL_VALUES_MAX", 3)
    study = desk.make()
    with pytest.raises(LimitExceeded, match="1 studies"):
        desk.make("more")
    desk.add(study)
    desk.do(study, *(SetIntermediate(0, step, 1.0) for step in range(3)))
    with pytest.raises(LimitExceeded, match="3 intermediate values"):
        desk.do(study, SetIntermediate(0, 3, 1.0))
    desk.do(study, SetIntermediate(0, 2, 2.0))
    desk.add(study)
    with pytest.raises(LimitExceeded, match="has 2 trials"):
        desk.add(study)
    assert isinstance(desk.engine, Engine)
