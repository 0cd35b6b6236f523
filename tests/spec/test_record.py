"""Records are as frozen dataclasses to whoever reads them, and to mypy."""

from dataclasses import replace
from pathlib import Path

from mypy import api
from paceline.spec import record as module
from paceline.spec.record import record

CHANGES = """
from record import record

@record(frozen=True, slots=True)
class Point:
    x: int

Point(1).x = 2
"""


@record(frozen=True, slots=True, order=True)
class Point:
    x: int
    y: int = 0


def test_records_are_told_apart_by_their_fields() -> None:
    assert Point(1, 2) == replace(Point(1), y=2) != Point(1)
    assert {Point(1, 2), Point(1, 2), Point(1)} == {Point(1), Point(1, 2)}
    assert Point(1, 2) < Point(2)


def test_a_change_is_an_error_to_mypy(tmp_path: Path) -> None:
    """By itself: else all that it can import is looked at, too."""
    (tmp_path / "record.py").write_text(Path(module.__file__).read_text())
    (tmp_path / "changes.py").write_text(CHANGES)
    said, _, _ = api.run(["--config-file=", "--cache-dir", str(tmp_path), str(tmp_path / "changes.py")])
    assert 'Property "x" defined in "Point" is read-only' in said
    assert "Found 1 error" in said
