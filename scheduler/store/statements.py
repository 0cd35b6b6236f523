"""The SQL that every database understands, made from base.py's rows: their fields are the columns' names.

`?` stands for a parameter, and for nothing else; values never become part of a statement. The tables are made
by migrations/ (a test compares their columns with the rows). A document has a table of its own, because a
job's row is written again at each change of its state and its document never.
"""

from collections.abc import Sequence
from typing import Final

from ...spec.ids import JobId
from .base import EventRow, JobRow, KeyRow, MetricRow, NodeRow

JOB_COLUMNS: Final = tuple(name for name in JobRow._fields if name != "document")
_ESCAPE: Final = "/"


def insert(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({_names(columns)}) VALUES ({_marks(columns)})"


def upsert(table: str, columns: Sequence[str]) -> str:
    """The first column is the primary key."""
    changes = ", ".join(f'"{name}" = excluded."{name}"' for name in columns[1:])
    return f'{insert(table, columns)} ON CONFLICT ("{columns[0]}") DO UPDATE SET {changes}'


def select(columns: Sequence[str], rest: str) -> str:
    return f"SELECT {_names(columns)} FROM {rest}"


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns)


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


INSERT_EVENT: Final = insert("events", EventRow._fields)
UPSERT_JOB: Final = upsert("jobs", JOB_COLUMNS)
UPSERT_DOCUMENT: Final = upsert("documents", ("job", "document"))
UPSERT_NODE: Final = upsert("nodes", NodeRow._fields)
INSERT_KEY: Final = insert("keys", KeyRow._fields)
INSERT_METRIC: Final = insert("metrics", MetricRow._fields)
INSERT_META: Final = insert("meta", ("name", "value"))

META: Final = select(("value",), 'meta WHERE "name" = ?')
LAST_EVENT: Final = select(("seq", "at_us"), 'events ORDER BY "seq" DESC LIMIT 1')
LAST_JOB: Final = select(("job",), 'jobs ORDER BY "job" DESC LIMIT 1')
JOBS_OF_STATE: Final = select(JOB_COLUMNS, 'jobs WHERE "state" = ? ORDER BY "job"')
NODES: Final = select(NodeRow._fields, 'nodes ORDER BY "node"')
JOB: Final = select(JobRow._fields, 'jobs LEFT JOIN documents USING ("job") WHERE "job" = ?')
KEY: Final = select(KeyRow._fields, 'keys WHERE "key" = ?')


def documents(jobs: Sequence[JobId]) -> str:
    return select(("job", "document"), f'documents WHERE "job" IN ({_marks(jobs)})')


def listing(
    states: Sequence[str], user: str, name_contains: str, before: JobId | None, limit: int
) -> tuple[str, list[object]]:
    """Jobs, newest first, and the values for it."""
    wanted: list[tuple[str, Sequence[object]]] = []
    if states:
        wanted.append((f'"state" IN ({_marks(states)})', [str(state) for state in states]))
    if user:
        wanted.append(('"user" = ?', [user]))
    if name_contains:
        like = f"""lower("name") LIKE lower(CAST(? AS TEXT)) ESCAPE '{_ESCAPE}'"""
        wanted.append((like, [f"%{_escaped(name_contains)}%"]))
    if before is not None:
        wanted.append(('"job" < ?', [before]))
    return _filtered(JOB_COLUMNS, "jobs", wanted, '"job" DESC', limit)


def events(job: JobId | None, after_seq: int, limit: int) -> tuple[str, list[object]]:
    wanted: list[tuple[str, Sequence[object]]] = [('"seq" > ?', [after_seq])]
    if job is not None:
        wanted.append(('"job" = ?', [job]))
    return _filtered(EventRow._fields, "events", wanted, '"seq"', limit)


def metrics(job: JobId, name: str, limit: int) -> tuple[str, list[object]]:
    wanted: list[tuple[str, Sequence[object]]] = [('"job" = ?', [job])]
    if name:
        wanted.append(('"name" = ?', [name]))
    return _filtered(MetricRow._fields, "metrics", wanted, '"id"', limit)


def _filtered(
    columns: Sequence[str], table: str, wanted: Sequence[tuple[str, Sequence[object]]], order: str, limit: int
) -> tuple[str, list[object]]:
    where = f" WHERE {' AND '.join(condition for condition, _ in wanted)}" if wanted else ""
    values = [value for _, given in wanted for value in given]
    return select(columns, f"{table}{where} ORDER BY {order} LIMIT ?"), [*values, limit]


def _escaped(text: str) -> str:
    """Text of which LIKE takes nothing for a wildcard."""
    for special in (_ESCAPE, "%", "_"):
        text = text.replace(special, _ESCAPE + special)
    return text
