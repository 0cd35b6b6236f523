"""The store's calls, the same for every database; what differs is the Backend's.

Statements are SQLAlchemy Core's (statements.py); their text runs on the driver's own cursor, because the
commit is the scheduler's hottest path. What a start and the loop need was compiled ahead: a start imports no
SQLAlchemy. One connection writes; reads have connections of their own and see only what was committed.
"""

import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from heapq import merge
from itertools import starmap
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec

from ...spec.errors import StoreFailure
from ...spec.ids import JobId, Micros
from ...spec.lifecycle import TERMINAL, JobState
from .ahead import DOCUMENTS_AT_ONCE, Ahead
from .base import (
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

if TYPE_CHECKING:
    from sqlalchemy import Select

T = TypeVar("T")

POLICY: Final = "policy"
LAST_STUDY: Final = "last_study"
"""Their rows in the table `meta`."""
LIVE_STATES: Final = tuple(sorted(state.value for state in JobState if state not in TERMINAL))

_job_values = attrgetter(*(name for name in JobRow._fields if name != "document"))


class Backend(Protocol):
    """What one kind of database does in its own way."""

    @property
    def where(self) -> str:
        """The file, or the server and database without its password, for messages."""

    begin: str
    database: str
    """Its name in statements.py."""
    ahead: Ahead

    def connect_writer(self) -> Any:
        """A driver connection in autocommit mode that holds the store's lock."""

    def reading(self) -> AbstractContextManager[Any]:
        """A driver connection in autocommit mode, for the reads of one thread."""

    def failure(self, error: Exception, doing: str) -> StoreFailure:
        """Which file or server, what is wrong with it, and what to do."""

    def close(self) -> None: ...


class SqlStore:
    """A Store over a Backend. See base.Store for what each call promises."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._writer: Any = None
        self._last_seq = 0
        self._ahead = backend.ahead
        with self._failures("opening the store"):
            self._connect()
            self._cluster_id = self._read_cluster_id()

    @property
    def cluster_id(self) -> str:
        return self._cluster_id

    @property
    def where(self) -> str:
        """The file, or the server and database."""
        return self._backend.where

    def load(self) -> Loaded:
        doing = "loading the state"
        with self._failures(doing):
            self._connect()
        last_seq, last_at_us = self._one(doing, self._ahead.last_event) or (0, 0)
        [last_job] = self._one(doing, self._ahead.last_job)
        nodes = _made(NodeRow, self._all(doing, self._ahead.nodes))
        accounts = _made(AccountRow, self._all(doing, self._ahead.accounts))
        policy = self._one(doing, self._ahead.meta, POLICY)
        last_study = self._one(doing, self._ahead.meta, LAST_STUDY)
        self._last_seq = last_seq
        return Loaded(
            last_seq,
            JobId(last_job or 0),
            Micros(last_at_us),
            self._live_jobs(),
            nodes,
            accounts,
            "" if policy is None else policy[0],
            _made(StudyRow, self._all(doing, self._ahead.studies)),
            0 if last_study is None else int(last_study[0]),
            _made(AssetNameRow, self._all(doing, self._ahead.asset_names)),
            _made(AssetRow, self._all(doing, self._ahead.assets)),
            _made(EndpointRow, self._all(doing, self._ahead.endpoints)),
            _made(OutputsRow, self._all(doing, self._ahead.outputs)),
        )

    def _live_jobs(self) -> Iterator[JobRow]:
        """Row by row: the text of all jobs is large, and of no use once a job is made of it."""
        with self._failures("loading the state"), self._backend.reading() as connection:
            each = (connection.execute(self._ahead.jobs_of_state, (state,)) for state in LIVE_STATES)
            yield from starmap(JobRow, merge(*each))  # the number comes first in a row

    def commit(self, batch: Batch) -> None:
        self._check_follows(batch.events)
        with self._failures("committing"):
            if self._writer is None:
                raise StoreFailure(
                    f"{self.where} lost its connection",
                    hint="the scheduler loads the state again before it goes on",
                )
            cursor = self._writer.cursor()
            try:
                cursor.execute(self._backend.begin)
                self._write(cursor, batch)
                cursor.execute("COMMIT")
            except BaseException:
                self._abandon(cursor)
                raise
            cursor.close()
        if batch.events:
            self._last_seq = batch.events[-1].seq

    def key(self, key: str) -> KeyRow | None:
        row = self._one("reading a key", self._ahead.key, key)
        if row is None:
            return None
        return KeyRow(row[0], row[1], msgspec.json.decode(row[2], type=tuple[JobId, ...]))

    def job(self, job: JobId) -> JobRow | None:
        row = self._one("reading a job", self._ahead.job, job)
        return None if row is None else JobRow(*row)

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        user: str = "",
        name_contains: str = "",
        before: JobId | None = None,
        limit: int = 100,
    ) -> Sequence[JobRow]:
        from .statements import listing

        return _made(JobRow, self._found("listing jobs", listing(states, user, name_contains, before, limit)))

    def documents(self, jobs: Sequence[JobId]) -> dict[JobId, str]:
        found: dict[JobId, str] = {}
        for start in range(0, len(jobs), DOCUMENTS_AT_ONCE):
            some = jobs[start : start + DOCUMENTS_AT_ONCE]
            again = [some[-1]] * (DOCUMENTS_AT_ONCE - len(some))
            found.update(self._all("reading documents", self._ahead.documents, *some, *again))
        return found

    def events(
        self, *, job: JobId | None = None, after_seq: int = 0, limit: int = 10_000
    ) -> Sequence[EventRow]:
        from .statements import history

        return _made(EventRow, self._found("reading events", history(job, after_seq, limit)))

    def metrics(self, job: JobId, *, name: str = "", limit: int = 100_000) -> Sequence[MetricRow]:
        from .statements import measured

        return [_metric_row(row) for row in self._found("reading metrics", measured(job, name, limit))]

    def trials(self, study: int) -> tuple[Sequence[TrialRow], Sequence[TrialValueRow]]:
        doing = "reading trials"
        return (
            _made(TrialRow, self._all(doing, self._ahead.trials, study)),
            [_trial_value_row(row) for row in self._all(doing, self._ahead.trial_values, study)],
        )

    def edges(self, *, source: str = "", target: str = "", limit: int = 1000) -> Sequence[EdgeRow]:
        from .statements import lineage

        return _made(EdgeRow, self._found("reading the lineage", lineage(source, target, limit)))

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        self._backend.close()

    def _write(self, cursor: Any, batch: Batch) -> None:
        if batch.events:
            cursor.executemany(self._ahead.insert_event, batch.events)
        if batch.jobs:
            cursor.executemany(self._ahead.upsert_job, [_job_values(job) for job in batch.jobs])
            documents = [(job.job, job.document) for job in batch.jobs if job.document is not None]
            if documents:
                cursor.executemany(self._ahead.upsert_document, documents)
        if batch.nodes:
            cursor.executemany(self._ahead.upsert_node, batch.nodes)
        if batch.keys:
            cursor.executemany(
                self._ahead.insert_key,
                [(key.key, key.at_us, msgspec.json.encode(key.jobs).decode()) for key in batch.keys],
            )
        if batch.accounts:
            cursor.executemany(self._ahead.upsert_account, batch.accounts)
        if batch.accounts_closed:
            cursor.executemany(self._ahead.delete_account, [(path,) for path in batch.accounts_closed])
        if batch.policy is not None:
            cursor.execute(self._ahead.upsert_meta, (POLICY, batch.policy))
        if batch.metrics:
            cursor.executemany(
                self._ahead.insert_metric, [_metric_values(metric) for metric in batch.metrics]
            )
        if batch.studies is not None:
            self._write_studies(cursor, batch.studies)
        if batch.registry is not None:
            self._write_registry(cursor, batch.registry)

    def _write_studies(self, cursor: Any, batch: StudyBatch) -> None:
        for study in batch.deleted:
            cursor.execute(self._ahead.delete_trial_values, (study,))
            cursor.execute(self._ahead.delete_trials, (study,))
            cursor.execute(self._ahead.delete_study, (study,))
        if batch.studies:
            cursor.executemany(self._ahead.upsert_study, batch.studies)
        if batch.trials:
            cursor.executemany(self._ahead.upsert_trial, batch.trials)
        if batch.values:
            cursor.executemany(
                self._ahead.upsert_trial_value, [_trial_value_values(value) for value in batch.values]
            )
        if batch.last_study is not None:
            cursor.execute(self._ahead.upsert_meta, (LAST_STUDY, str(batch.last_study)))

    def _write_registry(self, cursor: Any, batch: RegistryBatch) -> None:
        ahead = self._ahead
        for statement, rows in (
            (ahead.upsert_asset_name, batch.names),
            (ahead.upsert_asset, batch.assets),
            (ahead.insert_edge, batch.edges),
            (ahead.delete_endpoint, [(name,) for name in batch.endpoints_deleted]),
            (ahead.upsert_endpoint, batch.endpoints),
            (ahead.delete_outputs, [(job,) for job in batch.outputs_deleted]),
            (ahead.upsert_outputs, batch.outputs),
        ):
            if rows:
                cursor.executemany(statement, rows)

    def _abandon(self, cursor: Any) -> None:
        """Roll back; where even that fails the connection is worthless, and load() makes a new one."""
        try:
            cursor.execute("ROLLBACK")
            cursor.close()
        except Exception:  # noqa: BLE001 - the caller is about to raise the first error, which says more
            writer, self._writer = self._writer, None
            with suppress(Exception):
                cursor.close()  # an open statement would keep the file open behind the connection's back
                writer.close()

    def _check_follows(self, events: Sequence[EventRow]) -> None:
        for expected, event in enumerate(events, start=self._last_seq + 1):
            if event.seq != expected:
                raise StoreFailure(
                    f"{self.where} has events up to {self._last_seq}; event {event.seq} does not follow",
                    hint="the scheduler's state and its store have parted: load the state again",
                    expected=expected,
                    found=event.seq,
                )

    def _connect(self) -> None:
        if self._writer is None:
            self._writer = self._backend.connect_writer()

    def _read_cluster_id(self) -> str:
        row = self._one("reading the cluster's id", self._ahead.meta, "cluster_id")
        if row is not None:
            return str(row[0])
        made = uuid.uuid4().hex
        self._writer.cursor().execute(self._ahead.insert_meta, ("cluster_id", made))
        return made

    def _one(self, doing: str, statement: str, *values: object) -> Any:
        rows = self._all(doing, statement, *values)
        return rows[0] if rows else None

    def _found(self, doing: str, wanted: "Select[Any]") -> Sequence[Any]:
        from .statements import compiled

        statement, values = compiled(wanted, self._backend.database)
        return self._all(doing, statement, *values)

    def _all(self, doing: str, statement: str, *values: object) -> Sequence[Any]:
        with self._failures(doing), self._backend.reading() as connection:
            rows: Sequence[Any] = connection.execute(statement, values).fetchall()
            return rows

    @contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        try:
            yield
        except StoreFailure:
            raise
        except Exception as error:
            raise self._backend.failure(error, doing) from error


def _made(kind: Callable[..., T], rows: Iterable[Any]) -> list[T]:
    return list(starmap(kind, rows))


def _metric_values(metric: MetricRow) -> MetricRow:
    return metric._replace(value=None) if math.isnan(metric.value) else metric  # type: ignore[arg-type]


def _metric_row(row: Any) -> MetricRow:
    job, attempt, rank, step, name, value, at_us = row
    return MetricRow(job, attempt, rank, step, name, math.nan if value is None else value, at_us)


def _trial_value_values(row: TrialValueRow) -> TrialValueRow:
    return row._replace(value=None) if math.isnan(row.value) else row  # type: ignore[arg-type]


def _trial_value_row(row: Any) -> TrialValueRow:
    study, number, step, value, version = row
    return TrialValueRow(study, number, step, math.nan if value is None else value, version)
