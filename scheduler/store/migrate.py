"""Brings a store's schema forward to tables.SCHEMA_VERSION, in one transaction, and refuses a newer one.

Alembic is imported only when there is something to do: a scheduler that starts on a store of its own
version does not pay for it.
"""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from ...spec.errors import StoreFailure
from .tables import SCHEMA_VERSION

FOLDER = Path(__file__).parent / "migrations"


def stored_version(connection: Connection) -> str | None:
    """Revision that the store names; None for a store without any table of ours."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
    return None if row is None else str(row[0])


def migrate(connection: Connection, where: str) -> str | None:
    """Run the missing steps in the connection's transaction; returns the version that was there.

    Raises StoreFailure for a newer one.
    """
    version = stored_version(connection)
    if version == SCHEMA_VERSION:
        return version
    if version is None and (tables := inspect(connection).get_table_names()):
        raise StoreFailure(
            f"{where} holds tables that are not Paceline's: {', '.join(sorted(tables)[:5])}",
            hint="name an empty database, or a file of its own, with --store",
        )
    _upgrade(connection, version, where)
    return version


def _upgrade(connection: Connection, version: str | None, where: str) -> None:
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
