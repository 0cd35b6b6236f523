"""What survives a crash: one transaction per batch, on SQLite or PostgreSQL.

`open_store` is the only way in; what belongs to one kind of database is imported when such a one is opened.
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
    scheme, rest = split_location(str(location))
    if scheme == "postgresql":
        from .postgres import open_postgres

        return open_postgres(f"postgresql://{rest}")
    from .sqlite import open_sqlite

    return open_sqlite(Path(rest))


def split_location(location: str) -> tuple[str, str]:
    """`sqlite` and a path, or `postgresql` and what follows `//`. Raises InvalidRequest on anything else."""
    scheme, separator, rest = location.partition("://")
    if not separator:
        return "sqlite", location
    if scheme == "sqlite":
        return "sqlite", rest.removeprefix("/")
    if scheme.split("+")[0] in ("postgresql", "postgres"):
        return "postgresql", rest
    raise InvalidRequest(
        f"{scheme}://... names no store that Paceline knows",
        hint="expected a file path, sqlite:///FILE or postgresql://USER@HOST/NAME",
        scheme=scheme,
    )
