"""Where a rank's output goes, when it goes on to another task: to that task's file."""

import os
import sys
from pathlib import Path

_NAME = "rank-"


def move_output(log: Path) -> None:
    """stdout and stderr, as far as they go to the last task's file: what the script has led elsewhere stays.
    Raises OSError.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        for number in (1, 2):
            if _is_a_rank_log(number, log):
                os.dup2(fd, number)
    finally:
        os.close(fd)


def _is_a_rank_log(number: int, log: Path) -> bool:
    """Of any task of the agent: FOLDER/tasks/TASK/rank-N.log, whose folder may be gone by now."""
    path = Path(os.readlink(f"/proc/self/fd/{number}").removesuffix(" (deleted)"))  # noqa: PTH115
    return path.parent.parent == log.resolve().parent.parent and path.name.startswith(_NAME)
