"""What a process knows of a study: all its trials as of a version, kept up by reading what came after it."""

import threading
from collections.abc import Container
from typing import Any, Final

from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from ..proto.generated import studies_pb2
from ..proto.limits import TRIALS_PER_STUDY_MAX
from ..studies import codecs
from .study_link import StudyLink

_OPEN: Final = frozenset({TrialState.WAITING, TrialState.RUNNING})


class KnownStudy:
    """For many threads. Objects that were handed out never change."""

    def __init__(self, link: StudyLink, study: int) -> None:
        self.study = study
        self._link = link
        self._lock = threading.Lock()
        self._begun = 0
        """Reads, so far."""
        self._done = 0
        """The last of them that came to its end."""
        self._forget()

    def _forget(self) -> None:
        self._version = 0
        self._about: FrozenStudy | None = None
        self._trials: list[FrozenTrial | None] = []
        self._open: set[int] = set()
        """Those that are not finished."""

    @property
    def version(self) -> int:
        """Up to which all is known; 0: nothing was read."""
        return self._version

    @property
    def read(self) -> bool:
        """Something was read already."""
        return self._about is not None

    @property
    def about(self) -> FrozenStudy:
        """As of the last read."""
        assert self._about is not None
        return self._about

    def refresh(self) -> None:
        """All that was committed before this call is known after it. Raises PacelineError."""
        begun = self._begun
        with self._lock:
            if self._done > begun:  # another thread has begun to read after we came, and could
                return
            self._begun += 1
            while self._read():
                pass
            self._done = self._begun

    def finished(self, number: int) -> FrozenTrial | None:
        """If it is known to be finished: then it never changes."""
        trials = self._trials
        trial = trials[number] if number < len(trials) else None
        return trial if trial is not None and trial.state.is_finished() else None

    def trial(self, number: int) -> FrozenTrial:
        """As of the last read. Raises KeyError."""
        with self._lock:
            trial = self._trials[number] if number < len(self._trials) else None
        if trial is None:
            raise KeyError(f"study {self.study} has no trial {number}")
        return trial

    def trials(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """As of the last read, in the order of their numbers."""
        with self._lock:
            if states is None:
                return [trial for trial in self._trials if trial is not None]
            if not any(state in states for state in TrialState if state not in _OPEN):
                found = (self._trials[number] for number in sorted(self._open))
                return [trial for trial in found if trial is not None and trial.state in states]
            return [trial for trial in self._trials if trial is not None and trial.state in states]

    def take(self, changes: Any, since: int) -> None:
        """What came with a write; of no use when another thread has read meanwhile."""
        with self._lock:
            if self._version == since:
                self._put(changes)

    def _read(self) -> bool:
        """True: there is more."""
        request = studies_pb2.ReadStudyRequest(study=self.study, since=self._version)
        reply = self._link.call("Read", request)
        self._put(reply)
        return bool(reply.more)

    def _put(self, reply: Any) -> None:
        if reply.anew:
            self._forget()
        if reply.HasField("study"):
            self._about = codecs.study_from(reply.study)
        for view in reply.trials:
            self._take(view, reply.distributions)
        self._version = reply.version

    def _take(self, view: Any, distributions: Any) -> None:
        number = view.trial
        self._trials += [None] * (number + 1 - len(self._trials))
        trial_id = self.study * TRIALS_PER_STUDY_MAX + number
        trial = codecs.trial_from(view, distributions, trial_id, self._trials[number])
        self._trials[number] = trial
        if trial.state.is_finished():
            self._open.discard(number)
        else:
            self._open.add(number)
