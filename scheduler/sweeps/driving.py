"""Sweeps that the scheduler drives: what may be asked of them, and what a job's news mean for its trial.

A trial begins in the step that submits its job, and its result is told in the step in which the job ends: so
no crash comes in between. Which params it has, and whether it is to end early, its sampler has said before
(sampler_process.py); here it is only applied.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...spec.errors import Conflict
from ...spec.ids import JobId, Micros
from ...spec.lifecycle import JobState
from ...studies.attributes import FIXED, WHY
from ..core.attempt_events import AttemptEnded, AttemptStarted
from ..core.checkpoint_events import CheckpointAccepted
from ..core.events import Event
from ..core.job import Job
from ..core.state import Touched
from ..core.stimuli import NewJob
from ..core.task_events import MetricsReported
from .studies import Studies
from .study import (
    SWEEP_OVER,
    NewTrial,
    Param,
    Study,
    Successor,
    SweepPlan,
    SweepState,
    Trial,
    TrialState,
)

PARAMS: Final = "params"
"""A trial's attribute: what its script got."""
TOLD: Final = "told"
"""The last value of each metric that matters here."""
PRUNED: Final = "pruned"
CONSTRAINTS: Final = "constraints"
"""Optuna's own attribute."""
INFEASIBLE: Final = 1.0
"""In place of a constraint that was not told."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """Finished trials that a sweep begins with, and how they were chosen, for a person."""

    trials: tuple[NewTrial, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class SubmitSweep:
    """Answer: the number of its study. The same key again gives the same. Raises LimitExceeded."""

    key: str
    user: str
    label: str
    document: str
    plan: SweepPlan
    waiting: tuple[Mapping[str, Any], ...] = ()
    """Raw values of points that are tried first."""
    earlier: Earlier = Earlier()


@dataclass(frozen=True, slots=True)
class StartTrial:
    """Answer: its job's number; of one that was started before, the same. Raises NotFound, Conflict, and what
    a submit does."""

    study: int
    number: int
    params: Mapping[str, Param]
    values: Mapping[str, Any]
    """What the script gets."""
    system_attrs: Mapping[str, str]
    study_attrs: Mapping[str, str]
    job: NewJob
    fresh: bool
    """Suggested for a new trial, not for one that waits with values of its own."""

    @property
    def key(self) -> str:
        """Of the submit: nobody else's may be like it."""
        return f"sweep {self.study} trial {self.number}"


@dataclass(frozen=True, slots=True)
class Judged:
    """A sampler's word on a trial that runs. Answer: None. Raises NotFound."""

    study: int
    number: int
    prune: str
    """Why it is to end; empty: it goes on."""
    system_attrs: Mapping[str, str]
    successor: Successor | None = None
    """Of one that is to end: what takes its place."""


@dataclass(frozen=True, slots=True)
class ChangeSweep:
    """Answer: None. Raises NotFound, Conflict."""

    study: int
    to: SweepState
    why: str = ""
    ends_as: SweepState | None = None
    """Of one that is stopping: what it will be when its trials have ended."""
    more: int = 0
    """Trials beyond those that it was to have."""


@dataclass(frozen=True, slots=True)
class StartWorker:
    """A job that runs trials of a sweep by function, one after the other. `number`: of workers, from 0.
    Answer: its job's number. Raises NotFound, Conflict, and what a submit does."""

    study: int
    number: int
    job: NewJob

    @property
    def key(self) -> str:
        """Of the submit: nobody else's may be like it."""
        return f"sweep {self.study} worker {self.number}"


SweepStimulus = SubmitSweep | StartTrial | StartWorker | Judged | ChangeSweep


def submitted(studies: Studies, asked: SubmitSweep, now_us: Micros) -> Study:
    """The new study, with what waits in it."""
    directions = tuple(one.goal for one in asked.plan.objectives)
    name = f"{asked.label}-{studies.last_study + 1}"
    while name in studies.by_name:  # somebody has made a study of that name through Optuna
        name += "-"
    study = Study(
        0, name, directions, asked.user, now_us, "", asked.document, SweepState.RUNNING, plan=asked.plan
    )
    study.earlier, study.earlier_note = len(asked.earlier.trials), asked.earlier.note
    studies.create(study)
    for new in asked.earlier.trials:
        studies.add_trial(study, new, now_us)
    for point in asked.waiting:
        fixed = {FIXED: json.dumps(dict(point))}
        studies.add_trial(study, NewTrial(TrialState.WAITING, system_attrs=fixed), now_us)
    return study


def startable(studies: Studies, asked: StartTrial) -> tuple[Study, Trial | None]:
    """The study, and the trial if it is there. Raises Conflict where it cannot be started."""
    study = studies.get(asked.study)
    if asked.number > len(study.trials):
        raise Conflict(f"trial {asked.number} of sweep {study.id} does not follow {len(study.trials) - 1}")
    trial = study.trials[asked.number] if asked.number < len(study.trials) else None
    if trial is not None and trial.state is not TrialState.WAITING and trial.job is None:
        raise Conflict(f"trial {asked.number} of sweep {study.id} is {trial.state} and does not start")
    if trial is not None and trial.job is None and asked.fresh:
        raise Conflict(f"trial {asked.number} of sweep {study.id} was added meanwhile")
    if study.state is not SweepState.RUNNING and (trial is None or trial.job is None):
        raise Conflict(f"sweep {study.id} is {study.state}: nothing is started", study=study.id)
    return study, trial


def started(studies: Studies, asked: StartTrial, job: JobId, now_us: Micros) -> None:
    """The trial's job is submitted."""
    study, trial = startable(studies, asked)
    attrs = {PARAMS: json.dumps(dict(asked.values))}
    if trial is None:
        new = NewTrial(
            TrialState.RUNNING, dict(asked.params), user_attrs=attrs, system_attrs=asked.system_attrs
        )
        trial = studies.add_trial(study, new, now_us)
    else:
        for key, text in asked.system_attrs.items():
            studies.set_trial_attr(study, trial, key, text, system=True)
        studies.set_trial_attr(study, trial, PARAMS, attrs[PARAMS], system=False)
        studies.set_state(study, trial, TrialState.RUNNING, now_us)
    for name, param in asked.params.items():
        studies.set_param(study, trial, name, param)
    studies.set_job(study, trial, job)
    for key, text in asked.study_attrs.items():
        studies.set_study_attr(study, key, text, system=True)


def check_worker(studies: Studies, asked: StartWorker) -> Study:
    """Raises Conflict where no worker, or another one, is to start."""
    study = studies.get(asked.study)
    if study.state is not SweepState.RUNNING or asked.number != study.workers_made:
        raise Conflict(
            f"sweep {study.id} is {study.state} and has had {study.workers_made} workers", study=study.id
        )
    return study


def worker_over(studies: Studies, study: Study, job: Job, now_us: Micros) -> None:
    """A trial that it has left has failed; so has, with a job that failed outside of any, one that it would
    have run."""
    studies.drop_worker(study, job.number)
    ending = job.course.ending
    why = f"its job ended amid it: {job.state}"
    if ending is not None and job.state is not JobState.SUCCEEDED:
        why = ending.text
    found = studies.of_job(job.number)
    if found is not None:
        studies.set_trial_attr(*found, WHY, json.dumps(why), system=False)
        studies.set_state(*found, TrialState.FAIL, now_us)
        return
    assert study.plan is not None
    if job.state is JobState.FAILED and len(study.trials) < study.trials_max:
        failed = NewTrial(TrialState.FAIL, user_attrs={WHY: json.dumps(why)})
        studies.add_trial(study, failed, now_us, job=job.number)


def sampled(trial: Trial) -> dict[str, Any]:
    """What `trial.suggest_...` has given."""
    return {name: _external(param) for name, param in trial.params.items()}


def _external(param: Param) -> Any:
    read = json.loads(param.distribution)  # as Optuna writes it
    match read["name"]:
        case "CategoricalDistribution":
            return read["attributes"]["choices"][int(param.value)]
        case "IntDistribution":
            return int(param.value)
    return param.value


def judged(studies: Studies, asked: Judged) -> None:
    study = studies.get(asked.study)
    trial = study.trial(asked.number)
    if trial.finished:
        return
    for key, text in asked.system_attrs.items():
        studies.set_trial_attr(study, trial, key, text, system=True)
    if asked.prune and PRUNED not in trial.user_attrs:
        studies.set_trial_attr(study, trial, PRUNED, json.dumps(asked.prune), system=False)
        if asked.successor is not None:
            studies.set_successor(study, trial, asked.successor)


def changed(studies: Studies, asked: ChangeSweep, now_us: Micros) -> None:
    study = studies.get(asked.study)
    if study.state is None or study.plan is None:
        raise Conflict(
            f"study {study.id} is no sweep: nobody drives it", hint="it is used through Optuna's own API"
        )
    if study.state is asked.to and not asked.more:
        return
    if study.state in SWEEP_OVER and not asked.more:
        raise Conflict(
            f"sweep {study.id} is over: {study.state}",
            hint=f"`pace sweep extend {study.id} --trials N` adds trials to it",
            study=study.id,
        )
    if asked.more:
        study.extend(asked.more, now_us)
    study.why, study.ends_as = asked.why, asked.ends_as
    study.ended_us = now_us if asked.to in SWEEP_OVER else None
    studies.set_sweep_state(study, asked.to)


def follow(studies: Studies, event: Event, touched: Touched) -> None:
    """What has become of a trial's job, in the same step."""
    if isinstance(touched, Job) and touched.number in studies.by_worker:
        study = studies.by_id[studies.by_worker[touched.number]]
        if touched.over:
            worker_over(studies, study, touched, event.at_us)
        elif isinstance(event, AttemptStarted | AttemptEnded):
            studies.wake(study)
    elif isinstance(event, MetricsReported):
        found = studies.of_job(event.task.job)
        if found is not None:
            reported(studies, *found, event)
    elif isinstance(touched, Job):
        found = studies.of_job(touched.number)
        if found is None:
            return
        if touched.over:
            over(studies, *found, touched, event.at_us)
        elif isinstance(event, AttemptStarted | AttemptEnded | CheckpointAccepted):
            studies.wake(found[0])


def reported(studies: Studies, study: Study, trial: Trial, event: MetricsReported) -> None:
    """Of a gang the first rank's word counts: the others may report their own share under the same name."""
    if event.rank != 0 or study.plan is None or study.plan.by_function:
        return
    plan = study.plan
    told = {name: event.values[name] for name in plan.metrics if name in event.values}
    if not told:
        return
    before = json.loads(trial.user_attrs.get(TOLD, "{}"))
    if before | told != before:
        studies.set_trial_attr(study, trial, TOLD, json.dumps(before | told), system=False)
    if len(plan.objectives) == 1 and plan.objectives[0].metric in told:
        studies.report(study, trial, event.step, told[plan.objectives[0].metric])


def over(studies: Studies, study: Study, trial: Trial, job: Job, now_us: Micros) -> None:
    """The trial's job is over: this is its result."""
    assert study.plan is not None
    told = json.loads(trial.user_attrs.get(TOLD, "{}"))
    state, values, why = _result(study.plan, trial, told, job)
    if why:
        studies.set_trial_attr(study, trial, WHY, json.dumps(why), system=False)
    if state is not TrialState.FAIL and study.plan.constraints:
        found = [told.get(name, math.nan) for name in study.plan.constraints]
        bounded = [INFEASIBLE if math.isnan(value) else value for value in found]
        studies.set_trial_attr(study, trial, CONSTRAINTS, json.dumps(bounded), system=True)
    studies.set_state(study, trial, state, now_us, values=values)
    stays = study.state in (SweepState.RUNNING, SweepState.PAUSED)
    if state is TrialState.PRUNED and trial.successor is not None and stays:
        fixed = {FIXED: trial.successor.fixed}
        new = NewTrial(TrialState.WAITING, system_attrs=fixed, fork=trial.successor.fork)
        studies.add_trial(study, new, now_us)


def _result(
    plan: SweepPlan, trial: Trial, told: Mapping[str, float], job: Job
) -> tuple[TrialState, tuple[float, ...] | None, str]:
    ending = job.course.ending
    if PRUNED in trial.user_attrs and job.state is not JobState.SUCCEEDED:
        last = trial.intermediate[max(trial.intermediate)] if trial.intermediate else math.nan
        pruned: str = json.loads(trial.user_attrs[PRUNED])
        return TrialState.PRUNED, None if math.isnan(last) else (last,), pruned
    if job.state is not JobState.SUCCEEDED:
        return TrialState.FAIL, None, ending.text if ending is not None else f"its job is {job.state}"
    missing = [one.metric for one in plan.objectives if one.metric not in told]
    if missing:
        named = ", ".join(sorted(job.course.metrics)[:10]) or "nothing"
        return (
            TrialState.FAIL,
            None,
            f"{', '.join(missing)} was never reported by rank 0; it reported {named}",
        )
    values = tuple(told[one.metric] for one in plan.objectives)
    bad = [one.metric for one, value in zip(plan.objectives, values, strict=True) if math.isnan(value)]
    if bad:
        return TrialState.FAIL, None, f"the last value of {', '.join(bad)} is NaN"
    return TrialState.COMPLETE, values, ""
