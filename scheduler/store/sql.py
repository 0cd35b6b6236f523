"""The store's calls in SQL, the same for every database; what differs is the Backend's.

Statements are written in SQLAlchemy Core, compiled once, and run on the driver's own cursor, because the
commit is the scheduler's hottest path. One connection writes; reads have connections of their own and see
only what was committed.
"""

import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import ClauseElement, Connection, Engine, Select, func, insert, select

from ...spec.errors import StoreFailure
from ...spec.ids import JobId, Micros
from ...spec.lifecycle import TERMINAL, JobState
from . import tables
from .base import Batch, EventRow, JobRow, KeyRow, Loaded, MetricRow, NodeRow

T = TypeVar("T")

LIVE_STATES = tuple(sorted(state.value for state in JobState if state not in TERMINAL))

_job_columns = (*tables.jobs.c,)
_job_values = attrgetter(*(column.name for column in tables.jobs.c))
_event_values = attrgetter(*(column.name for column in tables.events.c))
_metric_columns = [column for column in tables.metrics.c if column.name != "id"]


class Backend(Protocol):
    """What one kind of database does in its own way."""

    @property
    def where(self) -> str:
        """The file, or the server and database without its password, for messages."""

    @property
    def engine(self) -> Engine:
        """For reads. Each statement is a transaction of its own."""

    @property
    def upsert(self) -> Callable[[Any], Any]:
        """The dialect's insert, with on_conflict_do_update."""

    def connect_writer(self) -> Any:
        """A driver connection in autocommit mode that holds the store's lock."""

    begin: str

    def failure(self, error: Exception, doing: str) -> StoreFailure:
        """Which file or server, what is wrong with it, and what to do."""

    def close(self) -> None: ...


class SqlStore:
    """A Store over a Backend. See base.Store for what each call promises."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._writer: Any = None
        self._last_seq = 0
        self._insert_events = self._compiled(insert(tables.events))
        self._upsert_jobs = self._compiled(self._upserting(tables.jobs))
        self._upsert_documents = self._compiled(self._upserting(tables.documents))
        self._upsert_nodes = self._compiled(self._upserting(tables.nodes))
        self._insert_keys = self._compiled(insert(tables.keys))
        self._insert_metrics = self._compiled(
            insert(tables.metrics).values({column.name: None for column in _metric_columns})
        )
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
        with self._failures("loading the state"):
            self._connect()
            with self._reading() as connection:
                self._last_seq, last_at_us = connection.execute(
                    select(
                        func.coalesce(func.max(tables.events.c.seq), 0),
                        func.coalesce(func.max(tables.events.c.at_us), 0),
                    )
                ).one()
                last_job = connection.execute(
                    select(func.coalesce(func.max(tables.jobs.c.job), 0))
                ).scalar_one()
                live = select(*_job_columns).where(tables.jobs.c.state.in_(LIVE_STATES))
                jobs = _made(JobRow, connection.execute(live.order_by(tables.jobs.c.job)))
                nodes = _made(
                    NodeRow, connection.execute(select(*tables.nodes.c).order_by(tables.nodes.c.node))
                )
        return Loaded(self._last_seq, JobId(last_job), Micros(last_at_us), jobs, nodes)

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
        row = self._one("reading a key", select(*tables.keys.c).where(tables.keys.c.key == key))
        if row is None:
            return None
        return KeyRow(row[0], row[1], msgspec.json.decode(row[2], type=tuple[JobId, ...]))

    def job(self, job: JobId) -> JobRow | None:
        wanted = select(*_job_columns, tables.documents.c.document).outerjoin_from(
            tables.jobs, tables.documents, tables.jobs.c.job == tables.documents.c.job
        )
        row = self._one("reading a job", wanted.where(tables.jobs.c.job == job))
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
        wanted = select(*_job_columns).order_by(tables.jobs.c.job.desc()).limit(limit)
        if states:
            wanted = wanted.where(tables.jobs.c.state.in_([str(state) for state in states]))
        if user:
            wanted = wanted.where(tables.jobs.c.user == user)
        if name_contains:
            wanted = wanted.where(tables.jobs.c.name.icontains(name_contains, autoescape=True))
        if before is not None:
            wanted = wanted.where(tables.jobs.c.job < before)
        return _made(JobRow, self._all("listing jobs", wanted))

    def documents(self, jobs: Sequence[JobId]) -> dict[JobId, str]:
        found: dict[JobId, str] = {}
        for start in range(0, len(jobs), 500):
            wanted = select(*tables.documents.c).where(tables.documents.c.job.in_(jobs[start : start + 500]))
            found.update((JobId(row[0]), row[1]) for row in self._all("reading documents", wanted))
        return found

    def events(
        self, *, job: JobId | None = None, after_seq: int = 0, limit: int = 10_000
    ) -> Sequence[EventRow]:
        wanted = select(*tables.events.c).where(tables.events.c.seq > after_seq).order_by(tables.events.c.seq)
        if job is not None:
            wanted = wanted.where(tables.events.c.job == job)
        return _made(EventRow, self._all("reading events", wanted.limit(limit)))

    def metrics(self, job: JobId, *, name: str = "", limit: int = 100_000) -> Sequence[MetricRow]:
        wanted = select(*_metric_columns).where(tables.metrics.c.job == job).order_by(tables.metrics.c.id)
        if name:
            wanted = wanted.where(tables.metrics.c.name == name)
        return [_metric_row(row) for row in self._all("reading metrics", wanted.limit(limit))]

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        self._backend.close()

    def _write(self, cursor: Any, batch: Batch) -> None:
        if batch.events:
            cursor.executemany(self._insert_events, [_event_values(event) for event in batch.events])
        if batch.jobs:
            cursor.executemany(self._upsert_jobs, [_job_values(job) for job in batch.jobs])
            documents = [(job.job, job.document) for job in batch.jobs if job.document is not None]
            if documents:
                cursor.executemany(self._upsert_documents, documents)
        if batch.nodes:
            cursor.executemany(self._upsert_nodes, [(node.node, node.record) for node in batch.nodes])
        if batch.keys:
            cursor.executemany(
                self._insert_keys,
                [(key.key, key.at_us, msgspec.json.encode(key.jobs).decode()) for key in batch.keys],
            )
        if batch.metrics:
            cursor.executemany(self._insert_metrics, [_metric_values(metric) for metric in batch.metrics])

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

    def _reading(self) -> Connection:
        return self._backend.engine.connect()

    def _connect(self) -> None:
        if self._writer is None:
            self._writer = self._backend.connect_writer()

    def _read_cluster_id(self) -> str:
        row = self._one(
            "reading the cluster's id", select(tables.meta.c.value).where(tables.meta.c.name == "cluster_id")
        )
        if row is not None:
            return str(row[0])
        made = uuid.uuid4().hex
        statement = self._compiled(insert(tables.meta))
        self._writer.cursor().execute(statement, ("cluster_id", made))
        return made

    def _one(self, doing: str, statement: Select[Any]) -> Any:
        rows = self._all(doing, statement)
        return rows[0] if rows else None

    def _all(self, doing: str, statement: Select[Any]) -> Sequence[Any]:
        with self._failures(doing), self._reading() as connection:
            return connection.execute(statement).all()

    @contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        try:
            yield
        except StoreFailure:
            raise
        except Exception as error:
            raise self._backend.failure(error, doing) from error

    def _upserting(self, table: Any) -> Any:
        statement = self._backend.upsert(table)
        changing = {
            column.name: statement.excluded[column.name] for column in table.c if not column.primary_key
        }
        return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changing)

    def _compiled(self, statement: ClauseElement) -> str:
        return str(statement.compile(dialect=self._backend.engine.dialect))


def _made(kind: Callable[..., T], rows: Iterable[Any]) -> list[T]:
    return [kind(*row) for row in rows]


def _metric_values(metric: MetricRow) -> tuple[object, ...]:
    value = None if math.isnan(metric.value) else metric.value
    return (metric.job, metric.attempt, metric.rank, metric.step, metric.name, value, metric.at_us)


def _metric_row(row: Any) -> MetricRow:
    job, attempt, rank, step, name, value, at_us = row
    return MetricRow(job, attempt, rank, step, name, math.nan if value is None else value, at_us)
