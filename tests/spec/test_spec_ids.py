"""What a task is called, and that its place in a set is the same in every process."""

import pytest
from paceline.spec.ids import Attempt, JobId, TaskKey

KEY = TaskKey(JobId(812), Attempt(3), 0)


def test_a_key_is_read_as_it_is_written() -> None:
    assert str(KEY) == "812.3.0" and TaskKey.parse("812.3.0") == KEY
    assert TaskKey(JobId(812), Attempt(2), 9) < KEY
    with pytest.raises(ValueError):
        TaskKey.parse("812.3")


def test_its_hash_is_that_of_its_numbers() -> None:
    """Sets of keys are gone through, and a simulation has to take the same course again."""
    assert hash(KEY) == hash((812, 3, 0))


def test_it_is_frozen() -> None:
    with pytest.raises(AttributeError):
        KEY.task = 1  # type: ignore[misc]
