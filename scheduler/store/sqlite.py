"""SQLite: one file in WAL mode with synchronous=FULL, held by one scheduler (flock on FILE.lock).

A new store is made aside and renamed into place when it is whole, so an empty or half-made file is never
taken for a new cluster. What is there is checked before anything is decided from it.
"""

import errno
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from ...spec.errors import StoreFailure
from .migrate import migrate
from .sql import SqlStore

BUSY_TIMEOUT_S: Final = 10.0
JOURNAL_BYTES_MAX: Final = 64 << 20

_HINTS: Final = {
    sqlite3.SQLITE_FULL: (
        "the disk is full",
        "free space on that disk; a scheduler that runs then goes on by itself, else start it again",
    ),
    sqlite3.SQLITE_READONLY: (
        "it is read-only",
        "make the file and its folder writable for the scheduler's user",
    ),
    sqlite3.SQLITE_CORRUPT: (
        "it is damaged",
        "restore it from a backup, or save what is left with `sqlite3 FILE .recover`",
    ),
    sqlite3.SQLITE_NOTADB: (
        "it is damaged, or not a SQLite database",
        "restore it from a backup, or name another file with --store",
    ),
    sqlite3.SQLITE_IOERR: (
        "the disk failed",
        "look at the kernel's log for that disk; restore from a backup if the file is damaged",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "it cannot be opened",
        "check that its folder exists and that the scheduler's user may write there",
    ),
    sqlite3.SQLITE_BUSY: (
        "another program holds it",
        "end the other program (a backup tool, a sqlite3 shell) and start again",
    ),
}


def open_sqlite(path: Path) -> SqlStore:
    """Lock, check, make or migrate, and open the file. Raises StoreFailure."""
    path = path.absolute()
    lock = _lock(path)
    try:
        return SqlStore(_prepared(path, lock))
    except BaseException:
        os.close(lock)
        raise


class SqliteBackend:
    """One file; see sql.Backend."""

    begin = "BEGIN IMMEDIATE"

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.where = f"the store {path}"
        self.upsert: Callable[[Any], Any] = upsert
        self._lock = lock
        self.engine = _engine(path)

    def connect_writer(self) -> sqlite3.Connection:
        connection = _connect(self.path)
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={JOURNAL_BYTES_MAX}")
        return connection

    def failure(self, error: Exception, doing: str) -> StoreFailure:
        return _failure(self.path, error, doing)

    def close(self) -> None:
        self.engine.dispose()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _prepared(path: Path, lock: int) -> SqliteBackend:
    try:
        if path.exists():
            _check(path)
        else:
            _make(path)
        backend = SqliteBackend(path, lock)
        _bring_forward(backend.engine, path)
    except (sqlite3.Error, DBAPIError, OSError) as error:
        raise _failure(path, error, "opening it") from error
    return backend


def _lock(path: Path) -> int:
    name = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _failure(path, error, "making its lock file") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StoreFailure(
            f"the store {path} is held by another scheduler (pid {holder})",
            hint="stop that one first, or give this one its own --state folder",
            path=str(path),
            pid=holder,
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _make(path: Path) -> None:
    """Make an empty store aside and rename it into place."""
    log = path.with_name(path.name + "-wal")
    if log.exists():
        raise StoreFailure(
            f"the store {path} is gone, but its log {log.name} is there",
            hint="put the file back beside its log, or move the log away to start with an empty store",
            path=str(path),
        )
    fresh = path.with_name(path.name + ".new")
    for leftover in (fresh, fresh.with_name(fresh.name + "-wal"), fresh.with_name(fresh.name + "-shm")):
        leftover.unlink(missing_ok=True)
    _bring_forward(_engine(fresh), path)
    fresh.chmod(0o600)
    fresh.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _bring_forward(engine: Engine, path: Path) -> None:
    """Migrate in one transaction, which also tells whether the file can be written at all."""
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only=OFF")
            connection.exec_driver_sql("PRAGMA synchronous=FULL")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                connection.exec_driver_sql("CREATE TABLE writable (x)")
                connection.exec_driver_sql("DROP TABLE writable")
                migrate(connection, f"the store {path}")
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                with suppress(DBAPIError):
                    connection.exec_driver_sql("ROLLBACK")
                raise
    finally:
        engine.dispose()


def _check(path: Path) -> None:
    """Refuse what is not a whole SQLite database."""
    if path.stat().st_size == 0:
        raise _damaged(path, "it is empty (0 bytes)")
    connection = _connect(path)
    try:
        problems = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
        tables = [str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master")]
    finally:
        connection.close()
    if problems != ["ok"]:
        raise _damaged(path, "; ".join(problems))
    if not tables:
        raise _damaged(path, "it holds no tables")  # SQLite takes a file of a few bytes for a new database


def _damaged(path: Path, found: str) -> StoreFailure:
    problem, hint = _HINTS[sqlite3.SQLITE_CORRUPT]
    return StoreFailure(f"the store {path}: {problem}: {found[:500]}", hint=hint, path=str(path))


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


def _engine(path: Path) -> Engine:
    engine = create_engine(
        "sqlite://",
        creator=lambda: _connect(path),
        poolclass=QueuePool,
        pool_size=4,
        max_overflow=4,
        isolation_level="AUTOCOMMIT",
    )

    @event.listens_for(engine, "connect")
    def only_reading(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA query_only=ON")

    return engine


def _failure(path: Path, error: Exception, doing: str) -> StoreFailure:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    problem, hint = _explain(cause)
    fields: dict[str, object] = {"path": str(path)}
    if problem == _HINTS[sqlite3.SQLITE_FULL][0]:
        fields["free_bytes"] = free = shutil.disk_usage(path.parent).free
        problem = f"{problem} ({free} bytes free)"
    return StoreFailure(f"the store {path}: {doing} failed: {problem} ({cause})", hint=hint, **fields)


def _explain(cause: BaseException) -> tuple[str, str]:
    if isinstance(cause, OSError):
        code = {
            errno.ENOSPC: sqlite3.SQLITE_FULL,
            errno.EDQUOT: sqlite3.SQLITE_FULL,
            errno.EROFS: sqlite3.SQLITE_READONLY,
            errno.EACCES: sqlite3.SQLITE_READONLY,
            errno.EPERM: sqlite3.SQLITE_READONLY,
            errno.EIO: sqlite3.SQLITE_IOERR,
        }.get(cause.errno or 0, sqlite3.SQLITE_CANTOPEN)
    else:
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    return _HINTS.get(code, ("it refused", "see the scheduler's log; nothing of the batch was stored"))
