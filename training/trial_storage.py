"""The study as a sweep's worker holds it: in memory, as Optuna's own, so that looking into it costs no call.

What the worker writes to its own trial goes to the scheduler together: with the end of the trial and the
request for the next one in a single call; while a trial runs, at the latest SEND_S after it was written. What
others have done comes back with each call.
"""

import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ..proto.generated import studies_pb2
from ..proto.limits import OPS_MAX
from ..studies import codecs
from .study_calls import StudyCalls

SEND_S: Final = 0.05
"""A trial that was interrupted sooner may be given other values when it is taken up again."""
_Op = studies_pb2.StudyOp


class TrialStorage(InMemoryStorage):
    """`take` a trial, run it, and `take` the next; `close` sends the rest. A trial's id is its number."""

    def __init__(self, calls: StudyCalls, about: studies_pb2.StudyView) -> None:
        super().__init__()
        self._calls = calls
        directions = [StudyDirection[direction.upper()] for direction in about.directions]
        self.study_id = super().create_new_study(directions, about.name)
        self._own: int | None = None
        self._version = 0
        self._turn = threading.Lock()
        """Of the one call that is under way."""
        self._unsent: list[_Op] = []
        self._since_s = 0.0
        """When the first of them was written."""
        self._unsent_lock = threading.Lock()
        self._news = threading.Event()
        """There may be something unsent."""
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._sender = threading.Thread(target=self._send_late, name="paceline-trial", daemon=True)
        self._sender.start()

    def take(self) -> int | None:
        """The number of the trial that is this worker's next; None: there is none for it. One that was
        interrupted comes with its params. Raises PacelineError."""
        with self._turn:
            reply = self._send(_Op(take_trial=studies_pb2.TakeTrial()))
            taken = reply.replies[-1]
            self._own = taken.trial if taken.changed else None
        return self._own

    def sync(self) -> None:
        """All that was written is there, and what others have written is here. Raises PacelineError."""
        with self._turn:
            self._send()

    def close(self) -> None:
        """Send what is unsent. Raises PacelineError."""
        self._closing.set()
        self._news.set()
        self._sender.join()
        with self._turn:
            if self._unsent:
                self._send()

    # --- Optuna's, as in memory, and noted

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        param = codecs.param_to(param_name, param_value_internal, distribution)
        self._later(_Op(param=studies_pb2.SetTrialParam(trial=trial_id, param=param)))

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        changed = super().set_trial_state_values(trial_id, state, values)
        message = studies_pb2.SetTrialState(
            trial=trial_id,
            state=codecs.state_to(state),
            values=None if values is None else studies_pb2.Objectives(values=values),
            claim=uuid.uuid4().hex,
        )
        self._later(_Op(state=message))
        return changed

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        message = studies_pb2.SetIntermediate(trial=trial_id, step=step, value=intermediate_value)
        self._later(_Op(intermediate=message))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)
        self._later(_Op(trial_attr=studies_pb2.SetTrialAttr(trial=trial_id, attr=codecs.attr_to(key, value))))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_system_attr(trial_id, key, value)
        attr = studies_pb2.SetTrialAttr(trial=trial_id, attr=codecs.attr_to(key, value), system=True)
        self._later(_Op(trial_attr=attr))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        super().set_study_user_attr(study_id, key, value)
        self._later(_Op(study_attr=studies_pb2.SetStudyAttr(attr=codecs.attr_to(key, value))))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        super().set_study_system_attr(study_id, key, value)
        self._later(_Op(study_attr=studies_pb2.SetStudyAttr(attr=codecs.attr_to(key, value), system=True)))

    # --- inside

    def _later(self, op: _Op) -> None:
        with self._unsent_lock:
            if not self._unsent:
                self._since_s = time.monotonic()
            self._unsent.append(op)
            many = len(self._unsent) >= OPS_MAX // 2
        if not self._news.is_set():  # to set it wakes the sender
            self._news.set()
        if many:
            self.sync()

    def _send_late(self) -> None:
        """What is not sent otherwise. A failure is the next caller's."""
        while self._news.wait() and not self._closing.is_set():
            self._news.clear()
            while (left_s := self._left_s()) is not None:
                if self._closing.wait(left_s):
                    return
                try:
                    self._send_if_late()
                except Exception as error:  # noqa: BLE001 - whoever writes next hears of it
                    self._failure = error
                    return

    def _left_s(self) -> float | None:
        """Until what is unsent must be sent; None: nothing is."""
        with self._unsent_lock:
            return max(0.0, self._since_s + SEND_S - time.monotonic()) if self._unsent else None

    def _send_if_late(self) -> None:
        with self._turn:
            if self._left_s() == 0.0:
                self._send()

    def _send(self, *more: _Op) -> Any:
        """In one's turn."""
        if self._failure is not None:
            raise self._failure
        with self._unsent_lock:
            ops = list(self._unsent)
        since = self._version
        if ops or more:
            request = studies_pb2.WriteStudyRequest(study=self._calls.study, ops=(*ops, *more), since=since)
            reply = self._calls.call("Write", request)
            self._take_in(reply.changes)
        else:
            reply = self._calls.call(
                "Read", studies_pb2.ReadStudyRequest(study=self._calls.study, since=since)
            )
            self._take_in(reply)
        with self._unsent_lock:
            del self._unsent[: len(ops)]
            self._since_s = time.monotonic()
        return reply

    def _take_in(self, changes: Any) -> None:
        """Trials by their numbers: those of a reply are in the order of their changes."""
        pages = [changes]
        while pages[-1].more:
            request = studies_pb2.ReadStudyRequest(study=self._calls.study, since=pages[-1].version)
            pages.append(self._calls.call("Read", request))
        if any(page.anew for page in pages):
            raise RuntimeError("the scheduler's store was put back to an earlier state")
        with self._lock:
            for page in pages:
                if page.HasField("study"):
                    info = self._studies[self.study_id]
                    info.user_attrs = codecs.attrs_from(page.study.user_attrs)
                    info.system_attrs = codecs.attrs_from(page.study.system_attrs)
            views = [(view, page.distributions) for page in pages for view in page.trials]
            for view, distributions in sorted(views, key=lambda one: int(one[0].trial)):
                self._put(view, distributions)
        self._version = pages[-1].version

    def _put(self, view: Any, distributions: Any) -> None:
        trials = self._studies[self.study_id].trials
        number = view.trial
        known = trials[number] if number < len(trials) else None
        if known is not None and (known.state.is_finished() or number == self._own):
            return  # of its own trial this worker knows more
        trial: FrozenTrial = codecs.trial_from(view, distributions, number, known)
        if known is None:
            super().create_new_trial(self.study_id, trial)
        else:
            self._set_trial(number, trial)
            self._update_cache(number, self.study_id)
        first = self._studies[self.study_id].param_distribution
        for name, distribution in trial.distributions.items():
            first.setdefault(name, distribution)
