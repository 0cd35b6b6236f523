"""Every statement of the store, in SQLAlchemy Core over the tables of tables.py.

What a start, a commit and the loop run is compiled ahead into compiled.py (`make statements`): a start must
not wait for the import of SQLAlchemy. What only callers read is compiled when they ask.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ClauseElement, Dialect, Select, bindparam, delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from ...spec.ids import JobId
from .ahead import DOCUMENTS_AT_ONCE, Ahead
from .tables import (
    accounts,
    alembic_version,
    asset_names,
    assets,
    documents,
    edges,
    endpoints,
    events,
    jobs,
    keys,
    meta,
    metrics,
    nodes,
    outputs,
    studies,
    trial_values,
    trials,
)

_DIALECTS: Final[dict[str, Dialect]] = {
    "sqlite": SQLiteDialect_pysqlite(paramstyle="qmark"),
    "postgresql": PGDialect_psycopg(paramstyle="format"),  # type: ignore[no-untyped-call]
}
_UPSERTS: Final[dict[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_METRICS: Final = [column for column in metrics.c if column is not metrics.c.id]


def compiled(statement: ClauseElement, database: str) -> tuple[str, list[Any]]:
    """Its text for that database's driver, and its values in its order (None: not given)."""
    made: Any = statement.compile(dialect=_DIALECTS[database], compile_kwargs={"render_postcompile": True})
    return " ".join(str(made).split()), [made.params[name] for name in made.positiontup]


class _Compiler:
    """Texts for one database."""

    def __init__(self, database: str) -> None:
        self._database = database
        self.insert = _UPSERTS[database]

    def text(self, statement: ClauseElement) -> str:
        made, values = compiled(statement, self._database)
        assert all(value is None for value in values), f"{made} needs {values}"
        return made

    def upsert(self, table: Any) -> str:
        statement = self.insert(table)
        changes = {
            column.name: statement.excluded[column.name] for column in table.c if not column.primary_key
        }
        return self.text(
            statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes)
        )

    def of_study(self, wanted: Any, table: Any) -> str:
        return self.text(wanted.where(table.c.study == bindparam("study")))


def compiled_ahead(database: str) -> Ahead:
    """What compiled.py holds."""
    made = _Compiler(database)
    return Ahead(**_writes(made), **_reads(made))


def _writes(made: _Compiler) -> dict[str, str]:
    """What a commit runs."""
    # The database counts the ids.
    given: dict[str, Any] = {column.name: bindparam(column.name) for column in _METRICS}
    return {
        "insert_meta": made.text(insert(meta)),
        "upsert_meta": made.upsert(meta),
        "insert_event": made.text(insert(events)),
        "upsert_job": made.upsert(jobs),
        "upsert_document": made.upsert(documents),
        "upsert_node": made.upsert(nodes),
        "upsert_account": made.upsert(accounts),
        "delete_account": made.text(delete(accounts).where(accounts.c.queue == bindparam("queue"))),
        "insert_key": made.text(insert(keys)),
        "insert_metric": made.text(insert(metrics).inline().values(given)),
        "upsert_study": made.upsert(studies),
        "upsert_trial": made.upsert(trials),
        "upsert_trial_value": made.upsert(trial_values),
        "delete_study": made.of_study(delete(studies), studies),
        "delete_trials": made.of_study(delete(trials), trials),
        "delete_trial_values": made.of_study(delete(trial_values), trial_values),
        "upsert_asset_name": made.upsert(asset_names),
        "upsert_asset": made.upsert(assets),
        "insert_edge": made.text(made.insert(edges).on_conflict_do_nothing()),
        "upsert_endpoint": made.upsert(endpoints),
        "delete_endpoint": made.text(delete(endpoints).where(endpoints.c.name == bindparam("name"))),
        "upsert_outputs": made.upsert(outputs),
        "delete_outputs": made.text(delete(outputs).where(outputs.c.job == bindparam("job"))),
    }


def _reads(made: _Compiler) -> dict[str, str]:
    """What a start and the loop run."""
    some: list[Any] = [bindparam(f"job_{number}") for number in range(DOCUMENTS_AT_ONCE)]
    # The last event is also the latest: the engine makes none before another.
    last_seq = select(func.max(events.c.seq)).scalar_subquery()
    return {
        "schema_version": made.text(select(alembic_version.c.version_num)),
        "meta": made.text(select(meta.c.value).where(meta.c.name == bindparam("name"))),
        "last_event": made.text(select(events.c.seq, events.c.at_us).where(events.c.seq == last_seq)),
        "last_job": made.text(select(func.max(jobs.c.job))),
        "jobs_of_state": made.text(
            select(jobs).where(jobs.c.state == bindparam("state")).order_by(jobs.c.job)
        ),
        "nodes": made.text(select(nodes).order_by(nodes.c.node)),
        "accounts": made.text(select(accounts).order_by(accounts.c.queue)),
        "key": made.text(select(keys).where(keys.c.key == bindparam("key"))),
        "job": made.text(
            select(jobs, documents.c.document)
            .outerjoin_from(jobs, documents, jobs.c.job == documents.c.job)
            .where(jobs.c.job == bindparam("job"))
        ),
        "documents": made.text(select(documents).where(documents.c.job.in_(some))),
        "studies": made.text(select(studies).order_by(studies.c.study)),
        "trials": made.of_study(select(trials).order_by(trials.c.number), trials),
        "trial_values": made.of_study(
            select(trial_values).order_by(trial_values.c.number, trial_values.c.step), trial_values
        ),
        "asset_names": made.text(select(asset_names).order_by(asset_names.c.kind, asset_names.c.name)),
        "assets": made.text(select(assets).order_by(assets.c.kind, assets.c.name, assets.c.version)),
        "endpoints": made.text(select(endpoints).order_by(endpoints.c.name)),
        "outputs": made.text(select(outputs).order_by(outputs.c.job)),
    }


def listing(
    states: Sequence[str], user: str, name_contains: str, before: JobId | None, limit: int
) -> Select[Any]:
    """Jobs, newest first."""
    wanted = select(jobs).order_by(jobs.c.job.desc()).limit(limit)
    if states:
        wanted = wanted.where(jobs.c.state.in_([str(state) for state in states]))
    if user:
        wanted = wanted.where(jobs.c.user == user)
    if name_contains:
        wanted = wanted.where(jobs.c.name.icontains(name_contains, autoescape=True))
    if before is not None:
        wanted = wanted.where(jobs.c.job < before)
    return wanted


def history(job: JobId | None, after_seq: int, limit: int) -> Select[Any]:
    """Events in the order of their seq."""
    wanted = select(events).where(events.c.seq > after_seq).order_by(events.c.seq).limit(limit)
    return wanted if job is None else wanted.where(events.c.job == job)


def measured(job: JobId, name: str, limit: int) -> Select[Any]:
    """Metrics in the order of their commit."""
    wanted = select(*_METRICS).where(metrics.c.job == job).order_by(metrics.c.id).limit(limit)
    return wanted.where(metrics.c.name == name) if name else wanted


def lineage(source: str, target: str, limit: int) -> Select[Any]:
    """Edges from `source`, or to `target`."""
    wanted = select(edges).limit(limit)
    if source:
        return wanted.where(edges.c.source == source).order_by(edges.c.target, edges.c.relation)
    return wanted.where(edges.c.target == target).order_by(edges.c.source, edges.c.relation)
