"""The schema as it stands now, in SQLAlchemy Core; migrations/ leads to exactly this (a test compares them).

A job's document lives in a table of its own, because a job's row is written again at each change of its
state and its document never; a trial's values lie in one for the same reason. NaN is a value that training
reports; SQLite keeps it as NULL.
"""

from typing import Final

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, String, Table, Text

metadata: Final = MetaData()
_number = BigInteger().with_variant(Integer, "sqlite")

meta: Final = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

events: Final = Table(
    "events",
    metadata,
    Column("seq", _number, primary_key=True, autoincrement=False),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("job", BigInteger),
    Column("node", Text),
)
Index(
    "events_by_job",
    events.c.job,
    events.c.seq,
    sqlite_where=events.c.job.is_not(None),
    postgresql_where=events.c.job.is_not(None),
)

jobs: Final = Table(
    "jobs",
    metadata,
    Column("job", _number, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("submitted_us", BigInteger, nullable=False),
    Column("finished_us", BigInteger),
    Column("demand", Text, nullable=False),
    Column("record", Text, nullable=False),
)
Index("jobs_by_state", jobs.c.state, jobs.c.job)

documents: Final = Table(
    "documents",
    metadata,
    Column("job", _number, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
)

nodes: Final = Table(
    "nodes",
    metadata,
    Column("node", Text, primary_key=True),
    Column("record", Text, nullable=False),
)

accounts: Final = Table(
    "accounts",
    metadata,
    Column("queue", Text, primary_key=True),
    Column("record", Text, nullable=False),
)

keys: Final = Table(
    "keys",
    metadata,
    Column("key", Text, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("jobs", Text, nullable=False),
)

metrics: Final = Table(
    "metrics",
    metadata,
    Column("id", _number, primary_key=True, autoincrement=True),
    Column("job", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("value", Double),
    Column("at_us", BigInteger, nullable=False),
)
Index("metrics_by_job", metrics.c.job, metrics.c.id)

studies: Final = Table(
    "studies",
    metadata,
    Column("study", _number, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("record", Text, nullable=False),
)

trials: Final = Table(
    "trials",
    metadata,
    Column("study", BigInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("job", BigInteger),
    Column("state", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("record", Text, nullable=False),
)

trial_values: Final = Table(
    "trial_values",
    metadata,
    Column("study", BigInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("value", Double),
    Column("version", BigInteger, nullable=False),
)

asset_names: Final = Table(
    "asset_names",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("record", Text, nullable=False),
)

assets: Final = Table(
    "assets",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("record", Text, nullable=False),
)

edges: Final = Table(
    "edges",
    metadata,
    Column("source", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    Column("relation", Text, primary_key=True),
)
Index("edges_by_target", edges.c.target, edges.c.source)

endpoints: Final = Table(
    "endpoints",
    metadata,
    Column("name", Text, primary_key=True),
    Column("record", Text, nullable=False),
)

outputs: Final = Table(
    "outputs",
    metadata,
    Column("job", _number, primary_key=True, autoincrement=False),
    Column("record", Text, nullable=False),
)

alembic_version: Final = Table(
    "alembic_version",
    MetaData(),  # alembic makes it, and takes no part of it for ours
    Column("version_num", String(32), primary_key=True),
)
