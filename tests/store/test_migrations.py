"""The migrations lead to the schema of tables.py, each whole or not at all; else alembic stays away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from paceline.scheduler.store import migrate, open_store, tables
from paceline.scheduler.store.base import (
    AccountRow,
    AssetNameRow,
    AssetRow,
    EdgeRow,
    EndpointRow,
    EventRow,
    JobRow,
    KeyRow,
    MetricRow,
    NodeRow,
    OutputsRow,
    StudyRow,
    TrialRow,
    TrialValueRow,
)
from paceline.scheduler.store.migrate import SCHEMA_VERSION
from paceline.spec.errors import StoreFailure
from sqlalchemy import create_engine


def test_the_newest_migration_is_the_version_that_is_expected() -> None:
    script = ScriptDirectory(str(migrate.FOLDER), version_locations=[str(migrate.FOLDER)])
    assert script.get_current_head() == SCHEMA_VERSION
    assert len(script.get_bases()) == 1


def test_migrations_and_tables_agree(tmp_path: Path) -> None:
    path = tmp_path / "paceline.db"
    open_store(path).close()
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    engine.dispose()


def test_rows_have_their_fields_in_the_order_of_the_columns() -> None:
    columns = {table.name: tuple(table.c.keys()) for table in tables.metadata.tables.values()}
    assert columns == {
        "accounts": AccountRow._fields,
        "asset_names": AssetNameRow._fields,
        "assets": AssetRow._fields,
        "documents": ("job", "document"),
        "edges": EdgeRow._fields,
        "endpoints": EndpointRow._fields,
        "events": EventRow._fields,
        "jobs": tuple(name for name in JobRow._fields if name != "document"),
        "keys": KeyRow._fields,
        "meta": ("name", "value"),
        "metrics": ("id", *MetricRow._fields),
        "nodes": NodeRow._fields,
        "outputs": OutputsRow._fields,
        "studies": StudyRow._fields,
        "trial_values": TrialValueRow._fields,
        "trials": TrialRow._fields,
    }


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "paceline.db"
    open_store(path).close()
    before = path.read_bytes()
    folder = tmp_path / "migrations"
    folder.mkdir()
    for file in migrate.FOLDER.glob("*.py"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "v0005_bad.py").write_text(
        "from alembic import op\nrevision = '0005'\ndown_revision = '0004'\n"
        "def upgrade():\n    op.execute('DROP TABLE keys')\n    op.execute('ALTER TABLE nothing ADD x')\n"
    )
    monkeypatch.setattr(migrate, "FOLDER", folder)
    monkeypatch.setattr(migrate, "SCHEMA_VERSION", "0005")
    with pytest.raises(StoreFailure, match="nothing"):
        open_store(path)
    monkeypatch.undo()
    assert path.read_bytes()[4096:] == before[4096:]
    open_store(path).close()


def test_a_migration_forward_keeps_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conformance.store import event
    from paceline.scheduler.store.base import Batch

    path = tmp_path / "paceline.db"
    store = open_store(path)
    store.load()
    store.commit(Batch(events=[event(1)]))
    store.close()
    folder = tmp_path / "migrations"
    folder.mkdir()
    for file in migrate.FOLDER.glob("*.py"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "v0005_more.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = '0005'\ndown_revision = '0004'\n"
        "def upgrade():\n    op.add_column('nodes', sa.Column('more', sa.Text))\n"
    )
    monkeypatch.setattr(migrate, "FOLDER", folder)
    monkeypatch.setattr(migrate, "SCHEMA_VERSION", "0005")
    newer = open_store(path)
    assert newer.load().last_seq == 1
    newer.close()
    monkeypatch.undo()
    with pytest.raises(StoreFailure, match="0005"):
        open_store(path)


def test_a_start_and_a_commit_import_no_library_for_databases(tmp_path: Path) -> None:
    path = tmp_path / "paceline.db"
    open_store(path).close()
    code = (
        "import sys\nfrom conformance.store import event, job\n"
        "from paceline.scheduler.store import open_store\n"
        "from paceline.scheduler.store.base import Batch, NodeRow, StudyBatch\n"
        f"store = open_store({str(path)!r})\n"
        "list(store.load().jobs)\n"
        "store.commit(Batch(events=[event(1)], jobs=[job(1, document='{}')], nodes=[NodeRow('n', '')]))\n"
        "store.commit(Batch(studies=StudyBatch(deleted=[1], last_study=1)))\n"
        "assert store.trials(1) == ([], [])\n"
        "assert store.documents([1]) == {1: '{}'} and store.job(1) and store.key('') is None\n"
        "assert not {'alembic', 'sqlalchemy', 'psycopg'} & set(sys.modules)\n"
        "assert store.jobs() and 'sqlalchemy' in sys.modules\n"
        "store.close()\n"
    )
    tests = str(Path(__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, env={**os.environ, "PYTHONPATH": tests}
    )
