"""A store in memory that can be killed at any commit, before or after it took effect.

For the loop's and the core's own tests and for the simulation; it keeps rows as the real ones do.
"""

from collections.abc import Iterable, Sequence

from paceline.scheduler.store.base import (
    AccountRow,
    AssetNameRow,
    AssetRow,
    Batch,
    EdgeRow,
    EndpointRow,
    EventRow,
    JobRow,
    KeyRow,
    Loaded,
    MetricRow,
    NodeRow,
    OutputsRow,
    RegistryBatch,
    StudyBatch,
    StudyRow,
    TrialRow,
    TrialValueRow,
)
from paceline.spec.errors import StoreFailure
from paceline.spec.ids import JobId, Micros, NodeId
from paceline.spec.lifecycle import TERMINAL

OVER = frozenset(state.value for state in TERMINAL)


class MemoryStore:
    """`fail_before` and `fail_after` hold the numbers (from 1) of the commits that fail."""

    cluster_id = "memory"

    def __init__(self) -> None:
        self.event_rows: list[EventRow] = []
        self.job_rows: dict[JobId, JobRow] = {}
        self.live: dict[JobId, None] = {}
        self.node_rows: dict[NodeId, NodeRow] = {}
        self.key_rows: dict[str, KeyRow] = {}
        self.metric_rows: list[MetricRow] = []
        self.account_rows: dict[str, AccountRow] = {}
        self.policy = ""
        self.study_rows: dict[int, StudyRow] = {}
        self.trial_rows: dict[tuple[int, int], TrialRow] = {}
        self.trial_values: dict[tuple[int, int, int], TrialValueRow] = {}
        self.last_study = 0
        self.asset_name_rows: dict[tuple[str, str], AssetNameRow] = {}
        self.asset_rows: dict[tuple[str, str, str], AssetRow] = {}
        self.edge_rows: dict[EdgeRow, None] = {}
        self.endpoint_rows: dict[str, EndpointRow] = {}
        self.outputs_rows: dict[JobId, OutputsRow] = {}
        self.commits = 0
        self.fail_before: set[int] = set()
        self.fail_after: set[int] = set()

    def load(self) -> Loaded:
        last_at_us = self.event_rows[-1].at_us if self.event_rows else Micros(0)
        jobs = [self.job_rows[number]._replace(document=None) for number in sorted(self.live)]
        last_job = max(self.job_rows, default=JobId(0))
        nodes = list(self.node_rows.values())
        accounts = list(self.account_rows.values())
        return Loaded(
            len(self.event_rows),
            last_job,
            last_at_us,
            jobs,
            nodes,
            accounts,
            self.policy,
            [self.study_rows[study] for study in sorted(self.study_rows)],
            self.last_study,
            [self.asset_name_rows[key] for key in sorted(self.asset_name_rows)],
            [self.asset_rows[key] for key in sorted(self.asset_rows)],
            [self.endpoint_rows[name] for name in sorted(self.endpoint_rows)],
            [self.outputs_rows[job] for job in sorted(self.outputs_rows)],
        )

    def commit(self, batch: Batch) -> None:
        self.commits += 1
        if self.commits in self.fail_before:
            raise StoreFailure(f"commit {self.commits} was killed before it took effect")
        self._check(batch)
        self.event_rows += batch.events
        for row in batch.jobs:
            self._put_job(row)
        self.node_rows |= {row.node: row for row in batch.nodes}
        self.key_rows |= {row.key: row for row in batch.keys}
        self.metric_rows += batch.metrics
        self.account_rows |= {row.queue: row for row in batch.accounts}
        for path in batch.accounts_closed:
            self.account_rows.pop(path, None)
        self.policy = self.policy if batch.policy is None else batch.policy
        if batch.studies is not None:
            self._put_studies(batch.studies)
        if batch.registry is not None:
            self._put_registry(batch.registry)
        if self.commits in self.fail_after:
            raise StoreFailure(f"commit {self.commits} was killed after it took effect")

    def key(self, key: str) -> KeyRow | None:
        return self.key_rows.get(key)

    def job(self, job: JobId) -> JobRow | None:
        return self.job_rows.get(job)

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        user: str = "",
        name_contains: str = "",
        before: JobId | None = None,
        limit: int = 100,
    ) -> Sequence[JobRow]:
        found = [
            row._replace(document=None)
            for number, row in sorted(self.job_rows.items(), reverse=True)
            if (not states or row.state in states)
            and (not user or row.user == user)
            and name_contains in row.name
            and (before is None or number < before)
        ]
        return found[:limit]

    def documents(self, jobs: Sequence[JobId]) -> dict[JobId, str]:
        return {job: self.job_rows[job].document or "" for job in jobs if job in self.job_rows}

    def events(
        self, *, job: JobId | None = None, after_seq: int = 0, limit: int = 10_000
    ) -> Sequence[EventRow]:
        rows: Iterable[EventRow] = self.event_rows[after_seq:]
        return [row for row in rows if job is None or row.job == job][:limit]

    def metrics(self, job: JobId, *, name: str = "", limit: int = 100_000) -> Sequence[MetricRow]:
        return [row for row in self.metric_rows if row.job == job and name in ("", row.name)][:limit]

    def trials(self, study: int) -> tuple[Sequence[TrialRow], Sequence[TrialValueRow]]:
        rows = [row for key, row in sorted(self.trial_rows.items()) if key[0] == study]
        return rows, [row for key, row in sorted(self.trial_values.items()) if key[0] == study]

    def edges(self, *, source: str = "", target: str = "", limit: int = 1000) -> Sequence[EdgeRow]:
        found = [row for row in self.edge_rows if (row.source == source if source else row.target == target)]
        return sorted(found)[:limit]

    def close(self) -> None:
        return None

    def _check(self, batch: Batch) -> None:
        for at, row in enumerate(batch.events, len(self.event_rows) + 1):
            assert row.seq == at, f"event {row.seq} where {at} was due"
        for key in batch.keys:
            assert key.key not in self.key_rows, f"key {key.key} written twice"

    def _put_job(self, row: JobRow) -> None:
        standing = self.job_rows.get(row.job)
        if row.document is None and standing is not None:
            row = row._replace(document=standing.document)
        self.job_rows[row.job] = row
        if row.state in OVER:
            self.live.pop(row.job, None)
        else:
            self.live[row.job] = None

    def _put_studies(self, batch: StudyBatch) -> None:
        gone = set(batch.deleted)
        self.study_rows = {study: row for study, row in self.study_rows.items() if study not in gone}
        self.trial_rows = {key: row for key, row in self.trial_rows.items() if key[0] not in gone}
        self.trial_values = {key: row for key, row in self.trial_values.items() if key[0] not in gone}
        self.study_rows |= {row.study: row for row in batch.studies}
        self.trial_rows |= {(row.study, row.number): row for row in batch.trials}
        self.trial_values |= {(row.study, row.number, row.step): row for row in batch.values}
        self.last_study = self.last_study if batch.last_study is None else batch.last_study

    def _put_registry(self, batch: RegistryBatch) -> None:
        self.asset_name_rows |= {(row.kind, row.name): row for row in batch.names}
        self.asset_rows |= {(row.kind, row.name, row.version): row for row in batch.assets}
        self.edge_rows |= dict.fromkeys(batch.edges)
        for name in batch.endpoints_deleted:
            self.endpoint_rows.pop(name, None)
        self.endpoint_rows |= {row.name: row for row in batch.endpoints}
        for job in batch.outputs_deleted:
            self.outputs_rows.pop(job, None)
        self.outputs_rows |= {row.job: row for row in batch.outputs}
