"""PostgreSQL, by URL: for a store on another machine, or one that several tools read.

One session holds an advisory lock for as long as the scheduler writes through it; a session that breaks
loses the lock and its open transaction together, so a scheduler that was replaced cannot write any more.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from ...spec.errors import StoreFailure
from . import compiled
from .migrate import migrate
from .sql import SqlStore

LOCK_KEY: Final = 0x7061_6365_6C69_6E65
"""'paceline' in ASCII; one lock per database."""

CONNECT_TIMEOUT_S: Final = 10
LOCK_WAIT_S: Final = 3
_SETTINGS: Final = "-c synchronous_commit=on -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s"

_HINTS: Final = (
    (
        psycopg.errors.DiskFull,
        "the server's disk is full",
        "free space on the server, then start the scheduler again",
    ),
    (
        psycopg.errors.ReadOnlySqlTransaction,
        "it is read-only",
        "name the primary server, not a standby, with --store",
    ),
    (
        psycopg.errors.InsufficientPrivilege,
        "the user may not do that",
        "GRANT ALL on the database's public schema to that user",
    ),
    (psycopg.errors.DataCorrupted, "it is damaged", "restore the database from a backup"),
    (
        psycopg.errors.IndexCorrupted,
        "an index is damaged",
        "REINDEX the database, then start the scheduler again",
    ),
    (
        psycopg.OperationalError,
        "the server did not answer",
        "check that it runs and that the URL's host, user and database are right",
    ),
)


def open_postgres(url: str) -> SqlStore:
    """Lock, make or migrate, and open the database. Raises StoreFailure."""
    backend = PostgresBackend(url)
    try:
        return SqlStore(backend)
    except BaseException:
        backend.close()
        raise


class PostgresBackend:
    """One database; see sql.Backend."""

    begin = "BEGIN"
    database = "postgresql"
    ahead = compiled.POSTGRES

    def __init__(self, url: str) -> None:
        self._url = url
        self.where = f"the store {make_url(url).render_as_string(hide_password=True)}"
        self._engine = _engine(self._connect)
        self._migrated = False

    def connect_writer(self) -> Any:
        connection = self._connect()
        try:
            self._take_lock(connection)
            if not self._migrated:
                self._migrate()
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def reading(self) -> Iterator[psycopg.Connection[Any]]:
        pooled = self._engine.raw_connection()
        try:
            connection: Any = pooled.driver_connection
            yield connection
        finally:
            pooled.close()

    def failure(self, error: Exception, doing: str) -> StoreFailure:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        for kind, problem, hint in _HINTS:
            if isinstance(cause, kind):
                return StoreFailure(f"{self.where}: {doing} failed: {problem} ({cause})", hint=hint)
        hint = "see the scheduler's log; nothing of the batch was stored"
        return StoreFailure(f"{self.where}: {doing} failed: {type(cause).__name__}: {cause}", hint=hint)

    def close(self) -> None:
        self._engine.dispose()

    def _connect(self) -> psycopg.Connection[Any]:
        settings = conninfo_to_dict(self._url)
        settings["options"] = f"{settings.get('options') or ''} {_SETTINGS}".strip()
        settings.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
        settings.setdefault("application_name", "paceline scheduler")
        settings.setdefault("keepalives_idle", 5)
        settings.setdefault("keepalives_interval", 2)
        settings.setdefault("keepalives_count", 3)
        return psycopg.connect(autocommit=True, **settings)  # type: ignore[arg-type]

    def _take_lock(self, connection: psycopg.Connection[Any]) -> None:
        """Waits a little: the server may not know yet that the scheduler before this one was killed."""
        try:
            connection.execute(f"SET lock_timeout = '{LOCK_WAIT_S}s'")
            connection.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
            connection.execute("RESET lock_timeout")
        except psycopg.errors.LockNotAvailable as error:
            raise StoreFailure(
                f"{self.where} is held by another scheduler ({_holder(connection)})",
                hint="stop that one first, or give this one a database of its own",
            ) from error

    def _migrate(self) -> None:
        """In a connection of SQLAlchemy's own, under the writer's lock."""
        with self._engine.connect() as connection:
            transaction = connection.execution_options(isolation_level="READ COMMITTED")
            with transaction.begin():
                migrate(transaction, self.where)
        self._migrated = True


def _holder(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute(
        "SELECT a.pid, coalesce(host(a.client_addr), 'local socket')"
        " FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.classid = %s AND l.objid = %s",
        (LOCK_KEY >> 32, LOCK_KEY & 0xFFFF_FFFF),
    ).fetchone()
    return "unknown" if row is None else f"server process {row[0]}, from {row[1]}"


def _engine(connect: Callable[[], psycopg.Connection[Any]]) -> Engine:
    return create_engine(
        "postgresql+psycopg://",
        creator=connect,
        paramstyle="format",
        poolclass=QueuePool,
        pool_size=4,
        max_overflow=4,
        pool_pre_ping=True,
        isolation_level="AUTOCOMMIT",
    )
