"""SQLite is a store, and says what is wrong with its file."""

import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conformance.store import StoreConformance, event, job
from paceline.scheduler.store import open_store
from paceline.scheduler.store.base import Batch
from paceline.spec.errors import InvalidRequest, StoreFailure


class TestSqlite(StoreConformance):
    @pytest.fixture
    def location(self, tmp_path: Path) -> str:
        return str(tmp_path / "paceline.db")


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A closed store of a few hundred pages."""
    path = tmp_path / "paceline.db"
    store = open_store(path)
    store.load()
    for start in range(0, 400, 100):
        store.commit(
            Batch(
                events=[event(n, body="e" * 500) for n in range(start + 1, start + 101)],
                jobs=[job(n, document="d" * 1000) for n in range(start + 1, start + 101)],
            )
        )
    store.close()
    return path


def refusal(location: Path | str) -> StoreFailure:
    with pytest.raises(StoreFailure) as refused:
        open_store(location).close()
    assert refused.value.hint, "says what to do"
    assert str(location) in refused.value.message, "says which file"
    return refused.value


def test_commits_are_synced_and_in_wal_mode(tmp_path: Path) -> None:
    store = open_store(tmp_path / "paceline.db")
    writer = store._writer
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)
    store.close()
    assert (tmp_path / "paceline.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("url", ["sqlite:///{}", "{}"])
def test_paths_and_urls_name_the_same_file(tmp_path: Path, url: str) -> None:
    path = tmp_path / "with space & 100%.db"
    store = open_store(url.format(path))
    made = store.cluster_id
    store.close()
    again = open_store(path)
    assert again.cluster_id == made
    again.close()


def test_unknown_urls_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="mysql"):
        open_store("mysql://there/paceline")


@pytest.mark.parametrize("where", [0, 1, 50, 95])
def test_overwritten_pages_are_refused(filled: Path, where: int) -> None:
    size = filled.stat().st_size
    with filled.open("r+b") as file:
        file.seek(size * where // 100 // 4096 * 4096)
        file.write(os.urandom(8192))
    assert "damaged" in refusal(filled).message


@pytest.mark.parametrize("kept", [0, 1, 100, 4096, 0.5, 0.99])
def test_a_truncated_file_is_refused(filled: Path, kept: float) -> None:
    size = filled.stat().st_size
    os.truncate(filled, int(kept if kept >= 1 else size * kept) // 1)
    assert "damaged" in refusal(filled).message


@pytest.mark.parametrize("content", [b"not a database\n" * 500, b"\0" * 40960])
def test_what_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "paceline.db"
    path.write_bytes(content)
    assert "damaged" in refusal(path).message
    assert path.read_bytes() == content


def test_a_database_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    assert "recipes" in refusal(path).message


def test_a_log_without_its_file_is_refused(filled: Path) -> None:
    filled.with_name("paceline.db-wal").write_bytes(b"something")
    filled.unlink()
    assert "its log" in refusal(filled).message
    assert not filled.exists()


def test_a_newer_schema_is_refused_and_left_alone(filled: Path) -> None:
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    refused = refusal(filled)
    assert "9999" in refused.message and "newer" in refused.hint
    with sqlite3.connect(filled) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (400,)
    connection.close()


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "paceline.db").mkdir()
    refusal(tmp_path / "paceline.db")


def test_a_crash_while_the_store_is_made_leaves_no_half_store(tmp_path: Path) -> None:
    path = tmp_path / "paceline.db"
    for name in ("paceline.db.new", "paceline.db.new-wal", "paceline.db.new-journal"):
        (tmp_path / name).write_bytes(b"half")
    store = open_store(path)
    assert store.load().last_seq == 0
    store.close()
    assert not (tmp_path / "paceline.db.new").exists()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small tmpfs; needs root and the right to mount."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
        return folder

    yield mount
    if os.path.ismount(folder) and subprocess.run(["umount", folder]).returncode != 0:
        subprocess.run(["umount", "-l", folder], check=True)
        pytest.fail("a file of the store is still open")


def test_a_full_disk_fails_the_commit_and_loses_nothing(mounted: Callable[[str], Path]) -> None:
    folder = mounted("size=2m")
    store = open_store(folder / "paceline.db")
    store.load()
    seq = 0
    with pytest.raises(StoreFailure, match=r"disk is full \(\d+ bytes free\)") as full:
        for _ in range(1000):
            store.commit(Batch(events=[event(seq + 1, body="x" * 30_000)]))
            seq += 1
    assert "free space" in full.value.hint
    assert seq > 10
    assert store.load().last_seq == seq
    assert len(store.events()) == seq
    with pytest.raises(StoreFailure, match="disk is full"):
        store.commit(Batch(events=[event(seq + 1, body="x" * 200_000)]))
    subprocess.run(["mount", "-o", "remount,size=8m", folder], check=True)
    assert store.load().last_seq == seq
    store.commit(Batch(events=[event(seq + 1, body="x" * 30_000)]))
    store.close()
    again = open_store(folder / "paceline.db")
    assert again.load().last_seq == seq + 1
    again.close()


def test_a_full_disk_refuses_a_new_store(mounted: Callable[[str], Path]) -> None:
    folder = mounted("size=64k")
    (folder / "ballast").write_bytes(b"x" * (48 << 10))
    assert "disk is full" in refusal(folder / "paceline.db").message


def test_a_read_only_folder_is_refused(mounted: Callable[[str], Path]) -> None:
    folder = mounted("size=8m")
    open_store(folder / "paceline.db").close()
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    assert "read-only" in refusal(folder / "paceline.db").message
    assert "read-only" in refusal(folder / "new.db").message


def test_a_file_that_may_not_be_written_is_refused(filled: Path) -> None:
    if os.getuid() == 0:
        done = subprocess.run(["chattr", "+i", filled], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"root writes through modes, and chattr says: {done.stderr.strip()}")
        try:
            assert "read-only" in refusal(filled).message
        finally:
            subprocess.run(["chattr", "-i", filled], check=True)
        return
    filled.chmod(0o400)
    assert "read-only" in refusal(filled).message
