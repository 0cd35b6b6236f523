"""Brings a store's schema forward to SCHEMA_VERSION, in one transaction, and refuses a newer one.

SQLAlchemy and alembic are imported only when there is something to do: a scheduler that starts on a store of
its own version does not pay for them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...spec.errors import StoreFailure

if TYPE_CHECKING:
    from sqlalchemy import Connection

SCHEMA_VERSION: Final = "0004"
"""Revision of the newest migration: an older store is migrated forward, a newer one refused."""

FOLDER = Path(__file__).parent / "migrations"


def migrate(connection: "Connection", where: str) -> None:
    """Run the missing steps in the connection's transaction. Raises StoreFailure for a newer version."""
    from sqlalchemy import inspect, select

    from .tables import alembic_version

    tables = inspect(connection).get_table_names()
    row = connection.execute(select(alembic_version)).first() if alembic_version.name in tables else None
    version = None if row is None else str(row[0])
    if version == SCHEMA_VERSION:
        return
    if version is None and tables:
        raise StoreFailure(
            f"{where} holds tables that are not Paceline's: {', '.join(sorted(tables)[:5])}",
            hint="name an empty database, or a file of its own, with --store",
        )
    _upgrade(connection, version, where)


def _upgrade(connection: "Connection", version: str | None, where: str) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.runtime.migration import MigrationContext, RevisionStep
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(FOLDER), version_locations=[str(FOLDER)])
    known = {revision.revision for revision in script.walk_revisions()}
    if version is not None and version not in known:
        raise StoreFailure(
            f"{where} has schema version {version}; this Paceline knows versions up to {SCHEMA_VERSION}",
            hint="a newer Paceline wrote it: start that version, or restore a backup from before the upgrade",
            found=version,
            known=SCHEMA_VERSION,
        )

    def steps(current: object, _: MigrationContext) -> list[RevisionStep]:
        return script._upgrade_revs(SCHEMA_VERSION, current)  # type: ignore[arg-type]

    with EnvironmentContext(Config(), script, fn=steps, destination_rev=SCHEMA_VERSION) as environment:
        environment.configure(connection=connection, transactional_ddl=True)
        environment.run_migrations()
