"""PACELINE_MARK: what every descendant of a task inherits, so that none can hide from those who must end it.

The agent sets it and kills by it; `pace down` finds by it what an agent that is gone has left.
"""

import hashlib
from functools import lru_cache
from pathlib import Path


def mark_of(folder: Path) -> str:
    """The mark of the task in that folder: its key, and which agent's it is, since another cluster's
    agent on the same machine has tasks of the same keys."""
    return folder.name + agent_mark(folder.parent)


@lru_cache(maxsize=64)
def agent_mark(tasks: Path) -> str:
    """How the marks of all tasks below an agent's `tasks` folder end."""
    return "@" + hashlib.sha256(str(tasks.resolve()).encode()).hexdigest()[:16]
