"""Where jobs keep images of their checkpoints in this node's memory: a folder for each job, in one of the
agent's own in /dev/shm.

The ranks make theirs when they need it, and write there (training/images.py); what is in it outlives them and
their shim, so that the next attempt on this node finds it. The agent removes a job's folder when the job is
over, and a while after its last task here ended in any other way: the job may come back, and memory is not
for what may not. The agent's own goes with it, unless a task goes on. What a killed agent has left waits for
it to come back, until its state folder is gone. All calls belong to the event loop's thread.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import stat
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Final

from ..proto.marks import agent_mark
from ..spec.ids import JobId

log = logging.getLogger(__name__)

SHARED_MEMORY: Final = Path("/dev/shm")
_PREFIX: Final = "paceline-"
_OF_A_RUN: Final = "paceline-run-"
"""What runs without an agent make for themselves (training/scratch.py)."""
_GONE: Final = ".gone"
_TASKS: Final = ".tasks"
"""In an agent's folder: a link to its folder of tasks."""
LINGER_S: Final = 60.0
"""How long a job that ended badly, or was preempted, has to come back to this node."""


class MemoryFolders:
    """Of one agent."""

    def __init__(self, tasks: Path, linger_s: float = LINGER_S, root: Path = SHARED_MEMORY) -> None:
        """`tasks`: the agent's folder of tasks, which names it."""
        self._tasks = tasks.resolve()
        self._root = root / f"{_PREFIX}{agent_mark(tasks)[1:]}"
        self._linger_s = linger_s
        self._running: Counter[JobId] = Counter()
        self._leaving: dict[JobId, asyncio.TimerHandle] = {}
        self._told = False

    def begin(self) -> None:
        """Once, before any task: make its own; of others, what nobody can come back to goes."""
        for found in self._root.parent.glob(f"{_PREFIX}*"):
            if not found.name.startswith(_OF_A_RUN) and _is_abandoned(found):
                log.warning("%s is removed: %s is gone", found, (found / _TASKS).readlink().parent)
                shutil.rmtree(found, ignore_errors=True)
        if not self._usable():
            return
        try:
            self._root.mkdir(mode=0o700, exist_ok=True)
            if not (self._root / _TASKS).is_symlink():
                (self._root / _TASKS).symlink_to(self._tasks)
        except OSError as error:  # no room: the ranks see for themselves whether there is some
            log.warning("%s: %s", self._root, error)

    def folder(self, job: JobId) -> str:
        """For PACELINE_MEMORY_FOLDER; made by the ranks that need it. Empty: there is none."""
        return str(self._root / str(job)) if self._usable() else ""

    def _usable(self) -> bool:
        """One that is somebody else's is not used."""
        try:
            found = self._root.lstat()
        except FileNotFoundError:
            return os.access(self._root.parent, os.W_OK)
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        if private and found.st_uid == os.geteuid():
            return True
        if not self._told:
            log.error("%s is not this agent's own: checkpoints are not kept in memory", self._root)
        self._told = True
        return False

    def hold(self, job: JobId) -> None:
        """A task of it is here."""
        self._running[job] += 1
        if (leaving := self._leaving.pop(job, None)) is not None:
            leaving.cancel()

    def release(self, job: JobId, *, over: bool) -> None:
        """A task of it has ended. `over`: the job does not come back."""
        self._running[job] -= 1
        if self._running[job] > 0:
            return
        del self._running[job]
        if not (self._root / str(job)).exists():
            return
        if over or self._linger_s <= 0:
            self._remove(job)
        else:
            loop = asyncio.get_running_loop()
            self._leaving[job] = loop.call_later(self._linger_s, self._remove, job)

    def sweep(self) -> None:
        """What an agent before this one has left of jobs that are not here now, nor may come back soon."""
        for name in self._names():
            if JobId(int(name)) not in self._running.keys() | self._leaving.keys():
                self._remove(JobId(int(name)))

    def close(self) -> None:
        """Only what running tasks may need stays."""
        for leaving in self._leaving.values():
            leaving.cancel()
        self._leaving.clear()
        self.sweep()
        if not self._running and self._usable():
            shutil.rmtree(self._root, ignore_errors=True)

    def _names(self) -> Collection[str]:
        if not self._usable() or not self._root.exists():
            return ()
        return [name for path in self._root.iterdir() if (name := path.name.removesuffix(_GONE)).isdigit()]

    def _remove(self, job: JobId) -> None:
        """Unlinking is quick in memory, however large it is. By another name first: then nobody, neither a
        rank nor a peer, makes a file in it meanwhile."""
        self._leaving.pop(job, None)
        gone = self._root / f"{job}{_GONE}"
        with contextlib.suppress(OSError):  # it is not there, or one of that name could not be removed
            (self._root / str(job)).rename(gone)
        for folder in (gone, self._root / str(job)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(root: Path) -> bool:
    """One of this user's, whose agent's folder of tasks is gone."""
    try:
        link = (root / _TASKS).lstat()
        return stat.S_ISLNK(link.st_mode) and link.st_uid == os.geteuid() and not (root / _TASKS).exists()
    except OSError:  # none there, or another user's
        return False
