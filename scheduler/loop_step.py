"""What one step of the loop gathers, and what it gives: answers, a Batch, effects, and what was told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from ..spec.ids import JobId, NodeId
from .core.attempt_events import AttemptEnded, AttemptStarted
from .core.effects import Effect
from .core.events import Event, job_of
from .core.job import Job
from .core.policy_events import AccountsClosed, PolicyChanged
from .core.queues import leaf_of_job, path_of
from .core.state import ClusterState
from .core.stimuli import ContactLost, InventoryChanged, Preempt, Restore, Stimulus, Tick, TrustCluster
from .core.task_events import MetricsReported
from .endpoints.stimuli import (
    DeleteEndpoint,
    Deploy,
    EndpointStimulus,
    Leave,
    Remove,
    Rollback,
    Scale,
    Settle,
    SetTraffic,
)
from .records import account_row, event_row, job_row, policy_text
from .registry.ops import Collected, RegistryStimulus
from .registry.registry import Changes as RegistryChanges
from .registry.rows import rows_of as registry_rows_of
from .store.base import AccountRow, Batch, KeyRow, MetricRow, NodeRow
from .sweeps.driving import ChangeSweep, Judged, SweepStimulus
from .sweeps.ops import DeleteStudy, OpenStudy, StudyStimulus
from .sweeps.rows import rows_of
from .sweeps.studies import Changes as StudyChanges

Asked = Stimulus | StudyStimulus | SweepStimulus | RegistryStimulus | EndpointStimulus
Unanswered = (
    (Preempt | Restore | InventoryChanged | ContactLost | TrustCluster | Tick)
    | (DeleteStudy | OpenStudy | Judged | ChangeSweep | Collected)
    | (Deploy | SetTraffic | Rollback | DeleteEndpoint | Leave | Settle | Scale | Remove)
)
"""To which the answer is None."""


class Committed(Struct, frozen=True):
    """An event as it was stored, with the job as of the end of its batch (None: not about a job)."""

    seq: int
    event: Event
    job: Job | None


class Poison(RuntimeError):
    """A bug of ours came to light at this stimulus; the state is spoilt."""

    def __init__(self, stimulus: Asked) -> None:
        super().__init__(f"a bug of ours came to light at {type(stimulus).__name__}")
        self.stimulus = stimulus


@dataclass(frozen=True, slots=True)
class Step:
    """`answers` match the stimuli; a refusal is one too. Nothing may leave before `batch` is committed."""

    answers: Sequence[object]
    batch: Batch
    effects: Sequence[Effect]
    committed: Sequence[Committed]
    more: bool
    """Places were left to give: step again at once."""
    changed: frozenset[int | str] = frozenset()
    """Studies, by number, and endpoints, by name, that have changed."""
    outputs_due: bool = False
    """Of a job that has just succeeded, some are to be registered."""

    @property
    def empty(self) -> bool:
        batch = self.batch
        written = batch.events or batch.jobs or batch.nodes or batch.keys or batch.metrics
        return not (written or self.changed or batch.registry)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a step has changed beside the cluster's state."""

    studies: StudyChanges
    endpoints: frozenset[str]
    registry: RegistryChanges


@dataclass(slots=True)
class Draft:
    """What a step has gathered so far."""

    facts: list[tuple[int, Event]] = field(default_factory=list)
    jobs: dict[JobId, Job] = field(default_factory=dict)
    nodes: dict[NodeId, NodeRow] = field(default_factory=dict)
    documents: dict[JobId, str] = field(default_factory=dict)
    keys: dict[str, KeyRow] = field(default_factory=dict)
    metrics: list[MetricRow] = field(default_factory=list)
    finished: Mapping[JobId, Job] = field(default_factory=dict)
    """Jobs that were over before this step and of which something is still told."""
    effects: list[Effect] = field(default_factory=list)
    outputs_due: bool = False

    def step(
        self,
        state: ClusterState,
        answers: Sequence[object],
        changes: Changes,
        *,
        more: bool,
    ) -> Step:
        """`state`, as it is at the end; `changes` beside it."""
        batch = self._batch(state, changes)
        changed = frozenset(changes.studies.touched) | changes.endpoints
        return Step(answers, batch, self.effects, self._committed(), more, changed, self.outputs_due)

    def _batch(self, state: ClusterState, changes: Changes) -> Batch:
        policies = [policy_text(event) for _, event in self.facts if isinstance(event, PolicyChanged)]
        return Batch(
            events=[event_row(seq, event) for seq, event in self.facts],
            jobs=[job_row(job, self.documents.get(number)) for number, job in self.jobs.items()],
            nodes=list(self.nodes.values()),
            keys=list(self.keys.values()),
            metrics=self.metrics,
            accounts=self._account_rows(state),
            accounts_closed=[
                path for _, event in self.facts if isinstance(event, AccountsClosed) for path in event.paths
            ],
            policy=policies[-1] if policies else None,
            studies=rows_of(changes.studies) if changes.studies.touched else None,
            registry=None if changes.registry.none else registry_rows_of(changes.registry),
        )

    def _account_rows(self, state: ClusterState) -> list[AccountRow]:
        """Of the queues in which something began or ended; of all, when the half-life may have changed."""
        accounts = state.usage.accounts
        changed: dict[str, None] = {}
        for _, event in self.facts:
            if isinstance(event, PolicyChanged):
                changed = dict.fromkeys(accounts)
                break
            if isinstance(event, AttemptStarted | AttemptEnded):
                changed |= dict.fromkeys(path_of(leaf_of_job(self.jobs[event.job])))
        return [account_row(path, accounts[path]) for path in changed if path in accounts]

    def _committed(self) -> list[Committed]:
        committed = []
        for seq, event in self.facts:
            number = job_of(event)
            committed.append(Committed(seq, event, None if number is None else self.jobs.get(number)))
        return committed


def metric_rows(state: ClusterState, event: MetricsReported) -> list[MetricRow]:
    """As many as the job's bound still allows."""
    key = event.task
    room = state.settings.metric_rows_max - state.jobs[key.job].course.metric_rows
    return [
        MetricRow(key.job, key.attempt, event.rank, event.step, name, value, event.at_us)
        for name, value in list(event.values.items())[: max(room, 0)]
    ]
