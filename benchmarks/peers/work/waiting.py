"""Waiting by condition, never by luck. Standard library alone: other interpreters run it."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T | None], what: str, *, timeout_s: float = 30.0, every_s: float = 0.005
) -> T:
    """Call `condition` until it gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {timeout_s} s")
        time.sleep(every_s)
    return found
