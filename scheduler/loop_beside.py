"""What is kept beside the cluster's state, and changed in the same steps: studies, endpoints, the registry.

Objects change in place; the step's batch has their rows. What each stimulus means is in their own rooms;
here is what they have to do with jobs: whoever starts one submits it in that step, or nothing happens.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping

from ..spec.ids import JobId, Micros
from .core.events import Event
from .core.state import ClusterState, Touched
from .core.stimuli import NewJob, Submit
from .endpoints.changing import asked as wished
from .endpoints.changing import check_startable, driven
from .endpoints.changing import follow as follow_endpoints
from .endpoints.changing import started as started_for
from .endpoints.endpoints import Endpoints
from .endpoints.lineage import store_endpoints
from .endpoints.stimuli import (
    DeleteEndpoint,
    Deploy,
    EndpointStimulus,
    Rollback,
    SetTraffic,
    StartReplica,
    StartRouter,
)
from .loop_step import Changes, Draft
from .registry.follow import follow as follow_outputs
from .registry.follow import submitted as note_uses
from .registry.ops import RegistryStimulus, on_registry
from .registry.rows import registry_from_rows
from .store.base import KeyRow, Loaded
from .sweeps.driving import (
    ChangeSweep,
    Judged,
    StartTrial,
    StartWorker,
    SubmitSweep,
    SweepStimulus,
    changed,
    check_worker,
    follow,
    judged,
    startable,
    started,
    submitted,
)
from .sweeps.ops import StudyOps, StudyStimulus, on_study
from .sweeps.rows import studies_from_rows
from .sweeps.workers import check_current

BesideStimulus = StudyStimulus | RegistryStimulus | SweepStimulus | EndpointStimulus
Made = Mapping[str, tuple[JobId, ...]]
"""By key: what the store says that was made by it."""


class Beside:
    """Of an engine."""

    state: ClusterState

    def __init__(self, loaded: Loaded) -> None:
        self.studies = studies_from_rows(loaded.studies, loaded.last_study)
        self.registry = registry_from_rows(loaded)
        self.endpoints = Endpoints({one.name: one.record for one in self.registry.endpoints.values()})

    @abstractmethod
    def _submit_one(self, draft: Draft, asked: Submit, now_us: Micros) -> JobId: ...

    def _beside(self, draft: Draft, asked: BesideStimulus, now_us: Micros, known: Made) -> object:
        """The answer. Raises what the stimulus says."""
        if isinstance(asked, StudyStimulus):
            if isinstance(asked, StudyOps) and asked.by is not None:
                check_current(self.state, asked.by)
            return on_study(self.studies, asked, now_us)
        if isinstance(asked, RegistryStimulus):
            return on_registry(self.registry, asked, now_us)
        if isinstance(asked, SweepStimulus):
            return self._sweep(draft, asked, now_us, known)
        return self._endpoint(draft, asked, now_us, known)

    def _follow(self, draft: Draft, event: Event, touched: Touched) -> None:
        """What a job's news mean here."""
        if self.studies.by_job or self.studies.by_worker:
            follow(self.studies, event, touched)
        if self.endpoints.by_job:
            follow_endpoints(self.endpoints, event, touched)
        if self.registry.outputs:
            draft.outputs_due |= follow_outputs(self.registry, touched)

    def _take_changes(self) -> Changes:
        """Since the last call."""
        touched = store_endpoints(self.endpoints, self.registry)
        return Changes(self.studies.take_changes(), touched, self.registry.take_changes())

    def _note_uses(self, job: JobId, new: NewJob, more: Iterable[tuple[str, str]]) -> None:
        note_uses(self.registry, job, new, more)

    def _sweep(self, draft: Draft, asked: SweepStimulus, now_us: Micros, known: Made) -> object:
        match asked:
            case SubmitSweep():
                before = draft.keys.get(asked.key)
                made = before.jobs if before else known.get(asked.key)
                if made is None:
                    made = (JobId(submitted(self.studies, asked, now_us).id),)
                    draft.keys[asked.key] = KeyRow(asked.key, now_us, made)
                return int(made[0])
            case StartTrial():
                return self._start_trial(draft, asked, now_us)
            case StartWorker():
                study = check_worker(self.studies, asked)
                job = self._submit_one(draft, Submit(asked.key, study.user, (asked.job,)), now_us)
                self._note_uses(job, asked.job, ((f"sweep:{study.id}", "trial"),))
                self.studies.add_worker(study, job)
                return job
            case Judged():
                judged(self.studies, asked)
            case ChangeSweep():
                changed(self.studies, asked, now_us)
        return None

    def _start_trial(self, draft: Draft, asked: StartTrial, now_us: Micros) -> JobId:
        """The job is submitted and the trial begins, or neither."""
        study, trial = startable(self.studies, asked)
        if trial is not None and trial.job is not None:
            return trial.job
        fork = trial.fork if trial is not None else None
        parent, checkpoint = (fork.parent, fork.checkpoint) if fork is not None else (None, None)
        submit = Submit(asked.key, study.user, (asked.job,), parent, checkpoint)
        job = self._submit_one(draft, submit, now_us)
        self._note_uses(job, asked.job, ((f"sweep:{study.id}", "trial"), *fork_of(submit)))
        started(self.studies, asked, job, now_us)
        return job

    def _endpoint(self, draft: Draft, asked: EndpointStimulus, now_us: Micros, known: Made) -> JobId | None:
        match asked:
            case StartReplica() | StartRouter():
                endpoint = check_startable(self.endpoints, asked)
                job = self._submit_one(draft, Submit(asked.key, endpoint.user, (asked.job,)), now_us)
                started_for(self.endpoints, asked, job)
                return job
            case Deploy() | SetTraffic() | Rollback():  # KeptWish
                if asked.key not in draft.keys and asked.key not in known:
                    wished(self.endpoints, asked, now_us)
                    draft.keys[asked.key] = KeyRow(asked.key, now_us, ())
            case DeleteEndpoint():
                wished(self.endpoints, asked, now_us)
            case _:
                driven(self.endpoints, asked, now_us)
        return None


def fork_of(asked: Submit) -> tuple[tuple[str, str], ...]:
    """The checkpoint from which a job goes on, for its lineage."""
    return () if asked.parent is None else ((f"checkpoint:{asked.parent.job}:{asked.parent.step}", "fork"),)
