"""Where jobs keep images of their checkpoints in this node's memory: a folder for each job, in one of the
agent's own in /dev/shm.

The ranks make both when they need them, and write there (training/images.py); what is in it outlives them and
their shim, so that the next attempt on this node finds it. The agent removes a job's folder when the job is
over, and a while after its last task here ended in any other way: the job may come back, and memory is not
for what may not. With the last of them goes its own. All calls belong to the event loop's thread.
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
LINGER_S: Final = 60.0
"""How long a job that ended badly, or was preempted, has to come back to this node."""


class MemoryFolders:
    """Of one agent."""

    def __init__(self, tasks: Path, linger_s: float = LINGER_S, root: Path = SHARED_MEMORY) -> None:
        """`tasks`: the agent's folder of tasks, which names it."""
        self._root = root / f"{_PREFIX}{agent_mark(tasks)[1:]}"
        self._linger_s = linger_s
        self._running: Counter[JobId] = Counter()
        self._leaving: dict[JobId, asyncio.TimerHandle] = {}
        self._told = False

    def begin(self) -> None:
        """Once, before any task: what killed agents have left empty goes. That is nobody's loss: the
        ranks make it anew.
        """
        for found in self._root.parent.glob(f"{_PREFIX}*"):
            if not found.name.startswith(_OF_A_RUN):
                with contextlib.suppress(OSError):  # not empty, another user's, or gone
                    found.rmdir()

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
        """What an agent before this one has left of jobs that are not here now."""
        for name in self._names():
            if JobId(int(name)) not in self._running:
                self._remove(JobId(int(name)))

    def close(self) -> None:
        """Only what running tasks may need stays."""
        for leaving in self._leaving.values():
            leaving.cancel()
        self.sweep()
        self._leave()

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
        self._leave()

    def _leave(self) -> None:
        with contextlib.suppress(OSError):  # there is another job in it, or it was never made
            self._root.rmdir()
