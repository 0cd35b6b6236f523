"""A PostgreSQL server of the test session's own, from Debian's package: a temporary cluster on a unix socket.

PostgreSQL refuses to run as root, so under root the server runs as the `postgres` user. It is stopped by pid.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

PACKAGE = "Debian package `postgresql` (apt-get install postgresql)"


class PostgresServer:
    """A running server; `database()` gives an empty database."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], user: str) -> None:
        self.folder = folder
        self.pid = process.pid
        self._process = process
        self._user = user

    def database(self) -> str:
        """The URL of a database that holds nothing; the same one each time, emptied."""
        import psycopg

        url = self.url("paceline")
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            there = connection.execute("SELECT 1 FROM pg_database WHERE datname = 'paceline'").fetchone()
            if there is None:
                connection.execute("CREATE DATABASE paceline")
                return url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return url

    def url(self, name: str) -> str:
        return f"postgresql://{self._user}@/{name}?host={quote(str(self.folder))}"

    def kill(self) -> None:
        """Like a crash of the server: SIGQUIT is PostgreSQL's immediate shutdown, without a checkpoint."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=30)

    def start(self) -> None:
        self._process = _start(self.folder, _preexec_user())
        self.pid = self._process.pid
        _wait_ready(self)


def find_programs() -> Path | None:
    """The folder with initdb and postgres; the newest version wins."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[-3].zfill(4)
    )
    return folders[-1].parent if folders else None


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    programs = find_programs()
    if programs is None:
        message = f"PostgreSQL is not installed: {PACKAGE}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    user = _preexec_user()
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        name = user.pw_name if user is not None else pwd.getpwuid(os.getuid()).pw_name
        subprocess.run(
            [
                programs / "initdb",
                "-D",
                folder / "data",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "-A",
                "trust",
                "-U",
                name,
            ],
            check=True,
            capture_output=True,
            timeout=60,
            cwd=folder,
            **_as(user),
        )
        server = PostgresServer(folder, _start(folder, user), name)
        try:
            _wait_ready(server)
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, user: pwd.struct_passwd | None) -> subprocess.Popen[bytes]:
    programs = find_programs()
    assert programs is not None
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            [
                programs / "postgres",
                "-D",
                folder / "data",
                "-k",
                folder,
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=on",
            ],
            stdout=log,
            stderr=log,
            cwd=folder,
            **_as(user),
        )


def _wait_ready(server: PostgresServer) -> None:
    import psycopg

    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(server.url("postgres"), connect_timeout=2).close()
            return
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline or server._process.poll() is not None:
                log = (server.folder / "server.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"PostgreSQL did not start: {error}\n{log}") from error
            time.sleep(0.02)


def _preexec_user() -> pwd.struct_passwd | None:
    return pwd.getpwnam("postgres") if os.getuid() == 0 else None


def _as(user: pwd.struct_passwd | None) -> dict[str, object]:
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
