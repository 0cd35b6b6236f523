"""What is left of jobs on this machine's agents: found by the shims' pid files, their descendants, and the
mark in the environment; killed by pid and start time. For when no scheduler or agent is there to do it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ..proto.marks import agent_mark
from . import process as processes
from .process import Identity
from .settings import read_small

KILL_S: Final = 20.0


def task_shims(state: Path) -> Iterator[tuple[str, Identity]]:
    """Task key and shim of each task that runs on this folder's agents."""
    for path in (state / "agents").glob("*/tasks/*/shim.pid"):
        try:
            pid, start_time = read_small(path).split()
            shim = Identity(int(pid), int(start_time))
        except (OSError, ValueError):
            continue  # being written or being dropped: then the agent, not we, has it in hand
        if shim.is_alive():
            yield path.parent.name, shim


def kill_tasks(state: Path, tell: Callable[[str], None]) -> None:
    """SIGKILL every process of every task: first what is below the shims, which reap it, then the shims."""
    marks = tuple(agent_mark(tasks) for tasks in (state / "agents").glob("*/tasks"))
    shims = dict.fromkeys(shim for _, shim in task_shims(state))

    def below() -> Iterator[Identity]:
        for shim in shims:
            if shim.is_alive():
                yield from processes.descendants(shim)
        marked = processes.with_environment("PACELINE_MARK", lambda value: value.endswith(marks))
        yield from (found for found in marked if found not in shims)

    killed = processes.kill_all(below, KILL_S)
    killed += processes.kill_all(lambda: (shim for shim in shims if shim.is_alive()), KILL_S)
    if killed:
        tell(f"killed {len(killed)} process{'es' if len(killed) != 1 else ''} of jobs")
