"""The checkpoints of one run: where they lie, which count, and the two verbs on them. Every method is
collective.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import candidates, folders, manifest
from .candidates import Candidate
from .environment import Environment
from .errors import StorageFailed
from .gang import Gang
from .keeper import Keeper
from .link import ShimLink
from .outcome import Restored, SaveOutcome
from .restoring import Restorer
from .retention import Kept
from .saving import Saver
from .task import Retention, Task, read_acked_seq


class Checkpoints:
    """Joins saving, restoring and keeping over one folder. `task` None: outside Paceline."""

    def __init__(
        self,
        environment: Environment,
        gang: Gang,
        link: ShimLink | None,
        task: Task | None,
        *,
        stop_seen: Callable[[], bool],
        root: Path,
        retention: Retention,
    ) -> None:
        self._environment = environment
        self._gang = gang
        self._task = task
        self._root = root
        self._retention = retention
        self._stop_seen = stop_seen
        self._attempt = environment.attempt if task is not None else 0
        self._bad: set[Path] = set()
        self._continues = False
        self._keeper = Keeper(
            root, retention, self._earlier, self._acked_seq, sweeps_unaccepted=task is not None
        )
        self._saver = Saver(environment, gang, link, root, self._keeper)
        self._restorer = Restorer(environment, gang, link, self._bad.add)

    def save(self, step: int, given: Mapping[str, Any], metrics: Mapping[str, float]) -> SaveOutcome:
        """See Run.save."""
        self._gang.require("save")
        return self._saver.save(self._settled_attempt(), step, given, metrics)

    def restore(self, given: Mapping[str, Any]) -> Restored | None:
        """See Run.restore."""
        self._gang.require("restore")
        self._settled_attempt()
        restored = self._restorer.restore(self._candidates(), given)
        self._continues = restored is not None
        return restored

    def _settled_attempt(self) -> int:
        """Outside Paceline each run is an attempt of its own, one above any that it finds."""
        if self._attempt == 0:
            self._attempt = self._gang.from_first(
                folders.next_attempt(self._root) if self._gang.rank == 0 else 0
            )
        return self._attempt

    def _candidates(self) -> list[Candidate]:
        """The same list at all ranks: the scheduler's, or what rank 0 sees."""
        if self._task is not None:
            return candidates.accepted(self._task)
        listed: list[Candidate] = self._gang.from_first(
            candidates.found(self._root) if self._gang.rank == 0 else []
        )
        return listed

    def _earlier(self) -> list[Kept]:
        """What counts from before this attempt, oldest first. Outside, a run that has not gone on from it
        leaves it alone.
        """
        if self._task is not None:
            before = candidates.accepted(self._task)
        elif self._continues:
            before = [one for one in candidates.found(self._root) if one.attempt < self._attempt]
        else:
            before = []
        return [
            Kept(one.step, one.path, self._metrics_of(one), good=one.path not in self._bad)
            for one in reversed(before)
        ]

    def _metrics_of(self, candidate: Candidate) -> Mapping[str, float]:
        if not self._retention.keep_best:
            return {}
        try:
            return manifest.read(candidate.path, candidate.manifest_hash).metrics
        except StorageFailed:
            return {}  # gone or damaged: it cannot be the best

    def _acked_seq(self) -> int:
        """Nothing once a stop was asked for: this attempt may have a successor, and what is acknowledged from
        then on was perhaps only taken note of.
        """
        folder = self._environment.task_folder
        if folder is None:
            return 0
        return 0 if self._stop_seen() else read_acked_seq(folder)
