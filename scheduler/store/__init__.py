"""What survives a crash: one transaction per batch, on SQLite or PostgreSQL.

`open_store` is the only way in; SQLAlchemy is imported when a store is opened, not before.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ...spec.errors import InvalidRequest

if TYPE_CHECKING:
    from .sql import SqlStore


def open_store(location: str | Path) -> "SqlStore":
    """Open the store at a path or URL (`sqlite:///FILE`, `postgresql://USER@HOST/NAME`), or make it.

    Raises StoreFailure when it is damaged, read-only, full, of a newer version, or held by another scheduler.
    """
    text = str(location)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _sqlite(Path(text))
    if scheme == "sqlite":
        return _sqlite(Path(rest.removeprefix("/")))
    if scheme.split("+")[0] in ("postgresql", "postgres"):
        from .postgres import open_postgres

        return open_postgres("postgresql://" + rest)
    raise InvalidRequest(
        f"--store {scheme}://... names no store that Paceline knows",
        hint="expected a file path, sqlite:///FILE or postgresql://USER@HOST/NAME",
        scheme=scheme,
    )


def _sqlite(path: Path) -> "SqlStore":
    from .sqlite import open_sqlite

    return open_sqlite(path)
