"""SQLite: one file in WAL mode with synchronous=FULL, held by one scheduler (flock on FILE.lock).

A new store is made aside and renamed into place when it is whole, so an empty or half-made file is never
taken for a new cluster. What is there is checked before anything is decided from it.
"""

import errno
import fcntl
import os
import shutil
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from ...spec.errors import StoreFailure
from . import compiled, migrate
from .sql import SqlStore

BUSY_TIMEOUT_S: Final = 10.0
READERS_MAX: Final = 4
"""Kept open between reads."""
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
    database = "sqlite"
    ahead = compiled.SQLITE

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.where = f"the store {path}"
        self._lock = lock
        self._readers: deque[sqlite3.Connection] = deque()

    def connect_writer(self) -> sqlite3.Connection:
        connection = _connect(self.path)
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={JOURNAL_BYTES_MAX}")
        return connection

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One that is free, or a new one; one whose read failed is not used again."""
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = _connect(self.path)
            connection.execute("PRAGMA query_only=ON")
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._readers.append(connection)
        if len(self._readers) > READERS_MAX:
            self._readers.popleft().close()

    def failure(self, error: Exception, doing: str) -> StoreFailure:
        return _failure(self.path, error, doing)

    def close_readers(self) -> None:
        while self._readers:
            self._readers.pop().close()

    def close(self) -> None:
        self.close_readers()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _prepared(path: Path, lock: int) -> SqliteBackend:
    """The connection that checks stays open for reads: when the last one closes, SQLite writes the whole log
    into the file, which a start has no time for."""
    backend = SqliteBackend(path, lock)
    try:
        if path.exists():
            with backend.reading() as connection:
                _check(connection, path)
        else:
            _make(path)
        _bring_forward(path, path)
    except (sqlite3.Error, OSError) as error:
        backend.close_readers()
        raise _failure(path, error, "opening it") from error
    except BaseException:
        backend.close_readers()
        raise
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
    _bring_forward(fresh, path)
    fresh.chmod(0o600)
    fresh.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _bring_forward(file: Path, path: Path) -> None:
    """To this version's schema; also tells whether the file can be written at all. `path`: its final name."""
    with closing(_connect(file)) as connection:
        current = _version(connection) == migrate.SCHEMA_VERSION
        if current:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE writable (x)")
            connection.execute("DROP TABLE writable")
            connection.execute("COMMIT")
    if not current:
        _migrate(file, path)


def _version(connection: sqlite3.Connection) -> str | None:
    named = "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
    if connection.execute(named).fetchone() is None:
        return None
    row = connection.execute(compiled.SQLITE.schema_version).fetchone()
    return None if row is None else str(row[0])


def _migrate(file: Path, path: Path) -> None:
    """In one transaction, on a connection of SQLAlchemy's."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    engine = create_engine("sqlite://", creator=lambda: _connect(file), poolclass=NullPool)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("PRAGMA synchronous=FULL")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                migrate.migrate(connection, f"the store {path}")
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                with suppress(DBAPIError):
                    connection.exec_driver_sql("ROLLBACK")
                raise
    except DBAPIError as error:
        raise error.orig or error from error


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not a whole SQLite database."""
    if path.stat().st_size == 0:
        raise _damaged(path, "it is empty (0 bytes)")
    problems = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
    if problems != ["ok"]:
        raise _damaged(path, "; ".join(problems))
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
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


def _failure(path: Path, error: Exception, doing: str) -> StoreFailure:
    problem, hint = _explain(error)
    fields: dict[str, object] = {"path": str(path)}
    if problem == _HINTS[sqlite3.SQLITE_FULL][0]:
        fields["free_bytes"] = free = shutil.disk_usage(path.parent).free
        problem = f"{problem} ({free} bytes free)"
    return StoreFailure(f"the store {path}: {doing} failed: {problem} ({error})", hint=hint, **fields)


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
