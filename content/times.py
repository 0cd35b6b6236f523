"""The time of a kept file: when somebody was last told that it is here, give or take FRESH_S."""

import os
import time
from typing import Final

FRESH_S: Final = 3600.0
"""Younger times are left as they are."""


def renewed(path: str) -> bool:
    """Whether that file is there; its time is now, unless it is fresh."""
    return kept_size(path) >= 0


def kept_size(path: str) -> int:
    """Of a file that is `renewed`; -1: it is not there."""
    try:
        info = os.stat(path)  # noqa: PTH116
        if info.st_mtime < time.time() - FRESH_S:
            os.utime(path)
    except FileNotFoundError:
        return -1
    return info.st_size
