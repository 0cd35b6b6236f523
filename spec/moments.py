"""Moments as people write them: ISO 8601 with a zone, kept as text in UTC, to the second."""

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_moment(text: str) -> str:
    """`2026-12-01T06:00Z` from any way to write it. Raises ValueError, also where the zone is missing."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("no zone")
    try:
        found = found.astimezone(UTC).replace(microsecond=0)
    except OverflowError as error:
        raise ValueError("out of range") from error
    if not 1970 < found.year < 9999:
        raise ValueError("out of range")
    return found.isoformat().replace("+00:00", "Z").replace(":00Z", "Z")


def moment_us(moment: str) -> int:
    """Microseconds since 1970 of what `parse_moment` gave."""
    return (datetime.fromisoformat(moment) - _EPOCH) // timedelta(microseconds=1)


def moment_text(at_us: int) -> str:
    """`2026-12-01 06:00 UTC`, with the seconds where there are some."""
    found = _EPOCH + timedelta(seconds=at_us // 1_000_000)
    return f"{found:%Y-%m-%d %H:%M}{f':{found:%S}' if found.second else ''} UTC"
