"""What may be asked of studies, and how it is decided: checked whole first, then applied.

The rules are those of Optuna's own storages: a finished trial never changes, and of those who ask for a
waiting trial one gets it. A call whose reply was lost may come again: what it made carries its key, so that
nothing is made twice and the answer is the same.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from ...proto.auth import Worker
from ...proto.limits import ATTRS_BYTES_MAX, ATTRS_MAX, TRIAL_VALUES_MAX
from ...spec.errors import Conflict, InvalidRequest, LimitExceeded
from ...spec.ids import JobId, Micros
from .studies import Studies
from .study import NewTrial, Param, Study, SweepState, Trial, TrialState

STUDY_VALUES_MAX: Final = 5_000_000
"""Intermediate values."""


@dataclass(frozen=True, slots=True)
class CreateStudy:
    """Answer: its number. The same key and name again give the same. Raises Conflict, LimitExceeded."""

    key: str
    name: str
    directions: tuple[str, ...]
    user: str
    document: str = ""


@dataclass(frozen=True, slots=True)
class DeleteStudy:
    """Answer: None. Raises NotFound; Conflict when the scheduler drives it now."""

    study: int


@dataclass(frozen=True, slots=True)
class OpenStudy:
    """Its trials are in memory then. Answer: None. Raises NotFound."""

    study: int


@dataclass(frozen=True, slots=True)
class SetStudyAttr:
    """Answer: None."""

    key: str
    text: str
    system: bool = False


@dataclass(frozen=True, slots=True)
class CreateTrial:
    """Answer: Made. The same key again gives the same trial."""

    new: NewTrial
    key: str


@dataclass(frozen=True, slots=True)
class SetTrialParam:
    """Answer: None. Raises InvalidRequest when the name is sampled from another kind of distribution."""

    trial: int
    name: str
    param: Param


@dataclass(frozen=True, slots=True)
class SetTrialState:
    """Answer: bool, False when RUNNING is asked for what is not WAITING. The same claim again gives True."""

    trial: int
    state: TrialState
    values: tuple[float, ...] | None = None
    claim: str = ""


@dataclass(frozen=True, slots=True)
class SetIntermediate:
    """Answer: None."""

    trial: int
    step: int
    value: float


@dataclass(frozen=True, slots=True)
class SetTrialAttr:
    """Answer: None."""

    trial: int
    key: str
    text: str
    system: bool = False


@dataclass(frozen=True, slots=True)
class TakeTrial:
    """By a worker: the trial that its job runs next. Answer: Taken, or None when there are to be no more.
    Until that trial is finished, the same again gives the same."""


TrialOp = SetTrialParam | SetTrialState | SetIntermediate | SetTrialAttr
Op = SetStudyAttr | CreateTrial | TakeTrial | TrialOp


@dataclass(frozen=True, slots=True)
class StudyOps:
    """All or none, in this order; they come from outside. Answer: one for each, and what `then` reads.

    Raises NotFound, Conflict (a finished trial; what is the scheduler's to change), InvalidRequest,
    LimitExceeded.
    """

    study: int
    ops: tuple[Op, ...]
    then: Callable[[Study], object] | None = None
    """To be read right after them. Quick, and a copy."""
    by: Worker | None = None
    """Which worker asks; None: a client. That its attempt is the current one was checked."""


StudyStimulus = CreateStudy | DeleteStudy | OpenStudy | StudyOps


@dataclass(frozen=True, slots=True)
class Made:
    number: int
    started_us: Micros | None


@dataclass(frozen=True, slots=True)
class Taken(Made):
    """By a worker."""


def on_study(studies: Studies, asked: StudyStimulus, now_us: Micros) -> object:
    """Changes `studies`, or raises a PacelineError and changes nothing."""
    match asked:
        case CreateStudy():
            return _create(studies, asked, now_us)
        case DeleteStudy():
            _delete(studies, asked)
            return None
        case OpenStudy():
            studies.use(studies.get(asked.study))
            return None
        case StudyOps():
            study = studies.get(asked.study)
            assert study.loaded
            done = _Check(study, asked.by).run(asked.ops)
            answers = [_apply(studies, study, op, done, now_us, by=asked.by) for op in asked.ops]
            return (*answers, asked.then(study)) if asked.then is not None else tuple(answers)


def _create(studies: Studies, asked: CreateStudy, now_us: Micros) -> int:
    taken = studies.by_name.get(asked.name)
    if taken is not None and asked.key and studies.by_id[taken].key == asked.key:
        return taken
    new = Study(0, asked.name, asked.directions, asked.user, now_us, asked.key, asked.document)
    return studies.create(new).id


def _delete(studies: Studies, asked: DeleteStudy) -> None:
    study = studies.get(asked.study)
    if study.live:
        raise Conflict(
            f"study {study.id} is a sweep that is {study.state}",
            hint="cancel it first",
            study=study.id,
        )
    studies.delete(study)


@dataclass(slots=True)
class _Check:
    """Whether all of some ops can be applied, one after the other."""

    study: Study
    by: Worker | None = None
    over: set[int] = field(default_factory=set)
    """Trials that these ops finish."""
    fresh: dict[str, str] = field(default_factory=dict)
    """Distributions of names that nobody has sampled before."""

    def run(self, ops: tuple[Op, ...]) -> frozenset[int]:
        """The trials to which all of this was done before. Raises what is wrong with the first op that is."""
        done = frozenset(self._done(ops))
        for op in ops:
            match op:
                case SetStudyAttr():
                    attrs = self.study.system_attrs if op.system else self.study.user_attrs
                    both = (*self.study.system_attrs.items(), *self.study.user_attrs.items())
                    _check_room(attrs, op.key, f"study {self.study.id}")
                    _check_bytes((*both, (op.key, op.text)), f"study {self.study.id}")
                case CreateTrial():
                    self._check_new(op)
                case TakeTrial():
                    self._check_worker()
                case _ if op.trial not in done:
                    self._check_trial(op, self.study.trial(op.trial))
        return done

    def _done(self, ops: tuple[Op, ...]) -> Iterable[int]:
        for op in ops:
            if isinstance(op, SetTrialState) and op.claim and self.study.trial(op.trial).claim == op.claim:
                yield op.trial

    def _check_new(self, op: CreateTrial) -> None:
        if self.by is not None or (self.study.document and op.new.state is not TrialState.WAITING):
            raise self._driven("adds no trials but WAITING ones from outside")
        self._check_values(op.new.state, op.new.values or None)
        self._check_steps(len(op.new.intermediate), 0)

    def _check_trial(self, op: TrialOp, trial: Trial) -> None:
        if trial.finished or trial.number in self.over:
            raise Conflict(
                f"trial {trial.number} of study {self.study.id} is finished and does not change",
                hint="add a new trial",
                study=self.study.id,
                trial=trial.number,
                state="finished",
            )
        if self.by is not None and trial.job != self.by.job:
            raise Conflict(
                f"trial {trial.number} of study {self.study.id} is job {trial.job}'s, not {self.by.job}'s",
                study=self.study.id,
                trial=trial.number,
            )
        if self.by is None and self.study.document and not isinstance(op, SetTrialAttr):
            raise self._driven("changes its trials itself")
        what = f"trial {trial.number} of study {self.study.id}"
        match op:
            case SetTrialParam():
                self._check_distribution(op)
                _check_room(trial.params, op.name, what)
                _check_bytes((*_texts(trial), (op.name, op.param.distribution)), what)
            case SetTrialAttr():
                _check_room(trial.system_attrs if op.system else trial.user_attrs, op.key, what)
                _check_bytes((*_texts(trial), (op.key, op.text)), what)
            case SetIntermediate():
                self._check_steps(op.step not in trial.intermediate, len(trial.intermediate))
            case SetTrialState():
                self._check_values(op.state, op.values)
                if op.state.finished:
                    self.over.add(trial.number)

    def _check_distribution(self, op: SetTrialParam) -> None:
        first = self.study.distributions.get(op.name) or self.fresh.setdefault(op.name, op.param.distribution)
        if first != op.param.distribution and _kind(first) != _kind(op.param.distribution):
            raise InvalidRequest(
                f"{op.name!r} was sampled from {first[:500]} before, not {op.param.distribution[:500]}",
                hint="the kind, log, and the choices of a name stay the same in a study: use another name",
                study=self.study.id,
                param=op.name,
            )

    def _check_values(self, state: TrialState, values: tuple[float, ...] | None) -> None:
        due = len(self.study.directions)
        if (values is None and state is TrialState.COMPLETE) or (values is not None and len(values) != due):
            raise InvalidRequest(
                f"{len(values or ())} values for a {state} trial of study {self.study.id}",
                hint=f"expected {due}: the study has so many objectives",
                study=self.study.id,
            )

    def _check_steps(self, more: int, standing: int) -> None:
        if standing + more > TRIAL_VALUES_MAX or self.study.values_count + more > STUDY_VALUES_MAX:
            raise LimitExceeded(
                f"the trial has {standing} intermediate values, study {self.study.id} has "
                f"{self.study.values_count}",
                hint="report less often",
                of_a_trial=TRIAL_VALUES_MAX,
                of_a_study=STUDY_VALUES_MAX,
            )

    def _check_worker(self) -> None:
        if self.by is None or self.by.job not in self.study.workers:
            raise Conflict(
                f"trials of study {self.study.id} are taken by the jobs that it has for that",
                study=self.study.id,
            )

    def _driven(self, why: str) -> Conflict:
        return Conflict(
            f"study {self.study.id} is a sweep: the scheduler {why}",
            hint="enqueue points (study.enqueue_trial), set attributes, or make a study of your own",
            study=self.study.id,
        )


def _apply(
    studies: Studies, study: Study, op: Op, done: frozenset[int], now_us: Micros, *, by: Worker | None
) -> object:
    match op:
        case SetStudyAttr():
            studies.set_study_attr(study, op.key, op.text, system=op.system)
            return None
        case CreateTrial():
            before = study.keys.get(op.key)
            made = study.trials[before] if before is not None else None
            trial = made or studies.add_trial(study, op.new, now_us, key=op.key)
            return Made(trial.number, trial.started_us)
        case TakeTrial():
            assert by is not None
            taken = _take(studies, study, by.job, now_us)
            return None if taken is None else Taken(taken.number, taken.started_us)
        case SetTrialState():
            return op.trial in done or _set_state(studies, study, op, now_us)
        case _ if op.trial in done:
            return None
    trial = study.trials[op.trial]
    match op:
        case SetTrialParam():
            studies.set_param(study, trial, op.name, op.param)
        case SetTrialAttr():
            studies.set_trial_attr(study, trial, op.key, op.text, system=op.system)
        case SetIntermediate():
            studies.report(study, trial, op.step, op.value)
    return None


def _take(studies: Studies, study: Study, job: JobId, now_us: Micros) -> Trial | None:
    assert study.plan is not None
    own = studies.of_job(job)
    if own is not None:
        return own[1]
    if study.state is not SweepState.RUNNING or study.failed_in_row >= study.plan.failed:
        return None
    if study.waiting:
        trial = study.trials[min(study.waiting)]
        studies.set_state(study, trial, TrialState.RUNNING, now_us)
        studies.set_job(study, trial, job)
        return trial
    if len(study.trials) >= study.trials_max:
        return None
    return studies.add_trial(study, NewTrial(), now_us, job=job)


def _set_state(studies: Studies, study: Study, op: SetTrialState, now_us: Micros) -> bool:
    trial = study.trials[op.trial]
    if op.state is TrialState.RUNNING and trial.state is not TrialState.WAITING:
        return False
    studies.set_state(study, trial, op.state, now_us, values=op.values, claim=op.claim)
    return True


def _check_room(standing: object, key: str, what: str) -> None:
    assert isinstance(standing, dict)
    if key not in standing and len(standing) >= ATTRS_MAX:
        raise LimitExceeded(
            f"{what} has {len(standing)} of them", hint="put several into one", limit=ATTRS_MAX
        )


def _check_bytes(texts: Iterable[tuple[str, str]], what: str) -> None:
    """Of what would be there then; what is replaced counts once more."""
    size = sum(len(key) + len(text) for key, text in texts)
    if size > ATTRS_BYTES_MAX:
        raise LimitExceeded(
            f"{what} would have {size} characters of attributes",
            hint="keep large things in files, and their names here",
            limit=ATTRS_BYTES_MAX,
        )


def _texts(trial: Trial) -> Iterable[tuple[str, str]]:
    yield from trial.user_attrs.items()
    yield from trial.system_attrs.items()
    for name, param in trial.params.items():
        yield name, param.distribution


@lru_cache(maxsize=1024)
def _kind(distribution: str) -> object:
    """What stays the same of a name: the kind, and log; of a choice all of it, in its order."""
    read = json.loads(distribution)  # as Optuna writes it: choices may be NaN and Infinity
    attributes = read.get("attributes", {})
    if read["name"] == "CategoricalDistribution":
        return read["name"], attributes
    return read["name"], attributes.get("log", False)
