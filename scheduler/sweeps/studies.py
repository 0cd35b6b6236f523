"""All studies: what is in memory, and the one place that changes them.

Held by loop_engine.Engine and changed only inside a step; `take_changes` gives what the step's batch writes.
If the batch is not committed, the engine is thrown away with all of this: so objects change in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ...proto.limits import TRIALS_PER_STUDY_MAX
from ...spec.errors import Conflict, LimitExceeded, NotFound
from ...spec.ids import JobId, Micros
from .study import NewTrial, Param, Study, Successor, SweepState, Trial, TrialState

STUDIES_MAX: Final = 10_000
LOADED_MAX: Final = 500_000
"""Trials and intermediate values, together, of the studies that are kept in memory although nobody uses them:
some hundred bytes each."""


@dataclass(slots=True)
class Changes:
    """What a step has changed, to be written. A study that is deleted is in nothing else."""

    studies: dict[int, Study] = field(default_factory=dict)
    trials: dict[tuple[int, int], Trial] = field(default_factory=dict)
    values: dict[tuple[int, int, int], tuple[float, int]] = field(default_factory=dict)
    """By study, trial and step: the value and its version."""
    deleted: set[int] = field(default_factory=set)
    last_study: int | None = None
    """When studies were made."""
    touched: set[int] = field(default_factory=set)
    """All that are named above."""


class Studies:
    """All studies, and the trials of those that are in use."""

    def __init__(self, studies: Sequence[Study] = (), last_study: int = 0) -> None:
        self.by_id: dict[int, Study] = {study.id: study for study in studies}
        self.by_name: dict[str, int] = {study.name: study.id for study in studies}
        self.by_job: dict[JobId, tuple[int, int]] = {}
        """Study and number of the trials that are not finished and have a job, of studies that are loaded."""
        self.by_worker: dict[JobId, int] = {job: study.id for study in studies for job in study.workers}
        """Studies of the jobs that run trials of them."""
        self.last_study = last_study
        self.size = 0
        """Trials and intermediate values that are loaded."""
        self._changes = Changes()
        self._recent: dict[int, None] = {}
        """Those that are loaded, the least recently used first."""

    # --- reading

    def get(self, number: int) -> Study:
        """Raises NotFound."""
        study = self.by_id.get(number)
        if study is None:
            raise NotFound(f"there is no study {number}", hint="see `pace sweep list`", study=number)
        return study

    def named(self, name: str) -> Study:
        """Raises NotFound."""
        number = self.by_name.get(name)
        if number is None:
            raise NotFound(f"there is no study named {name!r}", hint="see `pace sweep list`", name=name)
        return self.by_id[number]

    def of_job(self, job: JobId) -> tuple[Study, Trial] | None:
        """The trial that this job runs, if it is not finished."""
        found = self.by_job.get(job)
        if found is None:
            return None
        study = self.by_id[found[0]]
        return study, study.trials[found[1]]

    # --- what is in memory

    def cold_live(self) -> list[int]:
        """Live sweeps whose trials are not loaded."""
        return [study.id for study in self.by_id.values() if study.live and not study.loaded]

    def put(self, number: int, trials: list[Trial]) -> None:
        """Its trials, as they are stored."""
        study = self.by_id.get(number)
        if study is None or study.loaded:
            return
        study.trials, study.loaded = trials, True
        study.keys = {trial.key: trial.number for trial in trials if trial.key}
        study.waiting = {trial.number for trial in trials if trial.state is TrialState.WAITING}
        study.failed_in_row, study.first_failed = 0, None
        for trial in sorted(study.own_trials, key=lambda one: (one.finished_us or 0, one.number)):
            if trial.finished:
                study.note_end(trial)
        study.values_count = sum(len(trial.intermediate) for trial in trials)
        study.version = max((trial.version for trial in trials), default=0)
        study.version = max(study.version, study.noted)
        study.sort_log()
        self.size += study.size
        for trial in trials:
            if trial.job is not None and not trial.finished:
                self.by_job[trial.job] = (number, trial.number)
        self.use(study)

    def use(self, study: Study) -> None:
        """It is used now."""
        if study.loaded:
            self._recent.pop(study.id, None)
            self._recent[study.id] = None

    def evict(self) -> None:
        """The least recently used leave memory, as long as there is too much: not live sweeps, nor the last
        that was used. Called when all that was changed is committed."""
        if self.size <= LOADED_MAX:
            return
        for number in list(self._recent)[:-1]:
            if not self.by_id[number].live:
                self._forget(self.by_id[number])
            if self.size <= LOADED_MAX:
                return

    def _forget(self, study: Study) -> None:
        for trial in study.trials:
            if trial.job is not None and not trial.finished:
                self.by_job.pop(trial.job, None)
        self.size -= study.size
        study.trials, study.loaded, study.keys, study.values_count = [], False, {}, 0
        study.waiting = set()
        study.sort_log()
        self._recent.pop(study.id, None)

    # --- changes of a study

    def create(self, study: Study) -> Study:
        """`study.id` is given here. Raises Conflict when the name is taken, LimitExceeded."""
        taken = self.by_name.get(study.name)
        if taken is not None:
            raise Conflict(
                f"there is a study named {study.name!r} already: study {taken}",
                hint="load that one, or choose another name",
                study=taken,
                name=study.name,
            )
        if len(self.by_id) >= STUDIES_MAX:
            raise LimitExceeded(f"there are {len(self.by_id)} studies", hint="delete some", limit=STUDIES_MAX)
        self.last_study += 1
        study.id, study.loaded = self.last_study, True
        self.by_id[study.id] = study
        self.by_name[study.name] = study.id
        self._changes.last_study = self.last_study
        self.note_study(study)
        return study

    def delete(self, study: Study) -> None:
        self._forget(study)
        del self.by_id[study.id], self.by_name[study.name]
        changes = self._changes
        changes.studies.pop(study.id, None)
        changes.trials = {key: trial for key, trial in changes.trials.items() if key[0] != study.id}
        changes.values = {key: value for key, value in changes.values.items() if key[0] != study.id}
        changes.deleted.add(study.id)
        changes.touched.add(study.id)

    def set_study_attr(self, study: Study, key: str, text: str, *, system: bool) -> None:
        (study.system_attrs if system else study.user_attrs)[key] = text
        self.note_study(study)

    def wake(self, study: Study) -> None:
        """Something that is not written here has changed for it: who follows it hears of that."""
        self._changes.touched.add(study.id)

    def set_sweep_state(self, study: Study, state: SweepState) -> None:
        study.state = state
        self.note_study(study)

    def add_worker(self, study: Study, job: JobId) -> None:
        study.workers.append(job)
        study.workers_made += 1
        self.by_worker[job] = study.id
        self.note_study(study)

    def drop_worker(self, study: Study, job: JobId) -> None:
        """Its job is over."""
        study.workers.remove(job)
        del self.by_worker[job]
        self.note_study(study)

    def note_study(self, study: Study) -> None:
        """Its own row has changed."""
        study.version += 1
        study.noted = study.version
        self._changes.studies[study.id] = study
        self._touch(study)

    # --- changes of a trial

    def add_trial(
        self, study: Study, new: NewTrial, now_us: Micros, *, key: str = "", job: JobId | None = None
    ) -> Trial:
        """Raises LimitExceeded."""
        if len(study.trials) >= TRIALS_PER_STUDY_MAX:
            raise LimitExceeded(
                f"study {study.id} has {len(study.trials)} trials",
                hint="begin another",
                limit=TRIALS_PER_STUDY_MAX,
            )
        begun = new.state is not TrialState.WAITING
        trial = Trial(
            len(study.trials),
            new.state,
            dict(new.params),
            new.values,
            {},
            dict(new.user_attrs),
            dict(new.system_attrs),
            now_us if new.started_us is None and begun else new.started_us,
            now_us if new.finished_us is None and new.state.finished else new.finished_us,
            key,
            fork=new.fork,
        )
        study.trials.append(trial)
        self.size += 1
        if not begun:
            study.waiting.add(trial.number)
        if trial.finished and trial.number >= study.earlier:
            study.note_end(trial)
        if key:
            study.keys[key] = trial.number
        for step, value in new.intermediate.items():
            self.report(study, trial, step, value)
        if job is not None:
            self.set_job(study, trial, job)
        self._note(study, trial)
        return trial

    def set_job(self, study: Study, trial: Trial, job: JobId) -> None:
        """That job runs it from now on."""
        if trial.job is not None:
            self.by_job.pop(trial.job, None)
        trial.job = job
        if not trial.finished:
            self.by_job[job] = (study.id, trial.number)
        self._note(study, trial)

    def set_param(self, study: Study, trial: Trial, name: str, param: Param) -> None:
        if name not in study.distributions:
            study.distributions[name] = param.distribution
            self.note_study(study)
        trial.params[name] = param
        self._note(study, trial)

    def set_state(
        self,
        study: Study,
        trial: Trial,
        state: TrialState,
        now_us: Micros,
        *,
        values: tuple[float, ...] | None = None,
        claim: str = "",
    ) -> None:
        """Not of a finished one."""
        assert not trial.finished
        trial.state, trial.claim = state, claim
        (study.waiting.add if state is TrialState.WAITING else study.waiting.discard)(trial.number)
        if values is not None:
            trial.values = values
        if state is TrialState.RUNNING:
            trial.started_us = now_us
        if state.finished:
            trial.finished_us = now_us
            trial.reported = {}
            study.note_end(trial)
            if trial.job is not None:
                self.by_job.pop(trial.job, None)
        self._note(study, trial)

    def set_trial_attr(self, study: Study, trial: Trial, key: str, text: str, *, system: bool) -> None:
        (trial.system_attrs if system else trial.user_attrs)[key] = text
        self._note(study, trial)

    def set_successor(self, study: Study, trial: Trial, successor: Successor) -> None:
        trial.successor = successor
        self._note(study, trial)

    def report(self, study: Study, trial: Trial, step: int, value: float) -> None:
        """An intermediate value; the last one of a step counts."""
        if step not in trial.intermediate:
            study.values_count += 1
            self.size += 1
        trial.intermediate[step] = value
        study.note(trial)
        if not trial.finished:
            trial.reported.pop(step, None)
            trial.reported[step] = trial.version
        self._changes.values[study.id, trial.number, step] = (value, trial.version)
        self._touch(study)

    def _note(self, study: Study, trial: Trial) -> None:
        """Something of its record has changed."""
        study.note(trial)
        trial.noted = trial.version
        self._changes.trials[study.id, trial.number] = trial
        self._touch(study)

    def _touch(self, study: Study) -> None:
        self._changes.touched.add(study.id)
        self.use(study)

    def take_changes(self) -> Changes:
        """Since the last call."""
        changes, self._changes = self._changes, Changes()
        return changes
