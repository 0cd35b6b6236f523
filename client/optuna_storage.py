"""`paceline.StudyStorage`: Optuna's storage interface over the scheduler's studies.

    study = optuna.create_study(storage=paceline.StudyStorage(), study_name="lr", load_if_exists=True)

What a call has written is committed when it returns. Finished trials are kept here, and of the others only
what has changed is read. A scheduler that restarts meanwhile is waited for, and nothing is made twice.
"""

import copy
import os
import threading
import uuid
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

try:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
    from optuna.storages import BaseStorage
    from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
    from optuna.study._frozen import FrozenStudy
    from optuna.study._study_direction import StudyDirection
    from optuna.trial import FrozenTrial, TrialState
except ModuleNotFoundError as error:
    if error.name != "optuna":
        raise
    raise ModuleNotFoundError(
        "paceline.StudyStorage needs Optuna: pip install 'paceline[sweeps]'", name="optuna"
    ) from None

from ..proto.generated import common_pb2, studies_pb2
from ..proto.limits import PAGE_MAX, TRIALS_PER_STUDY_MAX
from ..spec.errors import Conflict, InvalidRequest, NotFound
from ..studies import codecs
from .optuna_cache import KnownStudy
from .rpc import new_key, user_name
from .study_link import StudyLink

_log = optuna.logging.get_logger(__name__)


class StudyStorage(BaseStorage):
    """Takes what `Client` takes. For many threads; may be pickled; a forked process makes its own connection.

    Beside Optuna's own errors a call may raise a PacelineError: Unavailable, LimitExceeded, or Conflict for
    what only the scheduler may do to the trials of a sweep that it drives.
    """

    def __init__(self, scheduler: str | None = None, **options: Any) -> None:
        """Find the scheduler as `Client` does. Raises Unavailable when none is known, InvalidRequest."""
        self._link = StudyLink(scheduler=scheduler, **options)
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._studies: dict[int, KnownStudy] = {}

    def __getstate__(self) -> StudyLink:
        return self._link

    def __setstate__(self, link: StudyLink) -> None:
        self._link = link
        self._begin()

    # --- studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        name = f"{DEFAULT_STUDY_NAME_PREFIX}{uuid.uuid4()}" if study_name is None else study_name
        request = studies_pb2.CreateStudyRequest(
            key=new_key(), name=name, directions=codecs.directions_to(directions), user=user_name()
        )
        try:
            view = self._link.call("Create", request)
        except Conflict as taken:
            raise DuplicatedStudyError(taken.message) from taken
        _log.info(f"A new study created in Paceline with name: {name}")
        return int(view.study)

    def delete_study(self, study_id: int) -> None:
        with _translated():
            self._link.call("Delete", studies_pb2.DeleteStudyRequest(study=study_id), gone_is_done=True)
        with self._lock:
            self._studies.pop(study_id, None)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        attr = studies_pb2.SetStudyAttr(attr=codecs.attr_to(key, value))
        self._write(study_id, studies_pb2.StudyOp(study_attr=attr))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        attr = studies_pb2.SetStudyAttr(attr=codecs.attr_to(key, value), system=True)
        self._write(study_id, studies_pb2.StudyOp(study_attr=attr))

    def get_study_id_from_name(self, study_name: str) -> int:
        with _translated():
            return int(self._link.call("Find", studies_pb2.FindStudyRequest(name=study_name)).study)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._named(study_id).study_name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return list(self._named(study_id).directions)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._read(study_id).about.user_attrs

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._read(study_id).about.system_attrs

    def get_all_studies(self) -> list[FrozenStudy]:
        found: list[FrozenStudy] = []
        cursor = ""
        while True:
            page = common_pb2.Page(limit=PAGE_MAX, cursor=cursor)
            reply = self._link.call("List", studies_pb2.ListStudiesRequest(page=page))
            found += map(codecs.study_from, reply.studies)
            cursor = reply.next_cursor
            if not cursor:
                return found

    # --- trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        new = (
            studies_pb2.NewTrial(state=codecs.state_to(TrialState.RUNNING))
            if template_trial is None
            else codecs.trial_to(template_trial)
        )
        op = studies_pb2.StudyOp(create_trial=studies_pb2.CreateTrial(key=new_key(), trial=new))
        return _trial_id(study_id, self._write(study_id, op).trial)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        study, number = _split(trial_id)
        param = codecs.param_to(param_name, param_value_internal, distribution)
        op = studies_pb2.StudyOp(param=studies_pb2.SetTrialParam(trial=number, param=param))
        try:
            self._write(study, op)
        except InvalidRequest as refused:
            raise ValueError(refused.message) from refused

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        study, number = _split(trial_id)
        message = studies_pb2.SetTrialState(
            trial=number,
            state=codecs.state_to(state),
            values=None if values is None else studies_pb2.Objectives(values=values),
            claim=new_key(),
        )
        op = studies_pb2.StudyOp(state=message)
        known = self._known(study)
        since = known.version
        if not (since and state.is_finished()):
            return bool(self._write(study, op).changed)
        # Whoever tells a trial reads it next: it comes with the reply, and never changes again.
        with _translated():
            request = studies_pb2.WriteStudyRequest(study=study, ops=[op], since=since)
            reply = self._link.call("Write", request)
        known.take(reply.changes, since)
        return bool(reply.replies[0].changed)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        study, number = _split(trial_id)
        message = studies_pb2.SetIntermediate(trial=number, step=step, value=intermediate_value)
        self._write(study, studies_pb2.StudyOp(intermediate=message))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._set_trial_attr(trial_id, key, value, system=False)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._set_trial_attr(trial_id, key, value, system=True)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        trial_id = _trial_id(study_id, trial_number)
        self.get_trial(trial_id)
        return trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        study, number = _split(trial_id)
        return self._known(study).finished(number) or self._read(study).trial(number)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = self._read(study_id).trials(states)
        return copy.deepcopy(trials) if deepcopy else trials

    def close(self) -> None:
        """Close the connection, when no other thread uses it; the next call opens another."""
        self._link.close()

    # --- inside

    def _set_trial_attr(self, trial_id: int, key: str, value: Any, *, system: bool) -> None:
        study, number = _split(trial_id)
        attr = codecs.attr_to(key, value)
        message = studies_pb2.SetTrialAttr(trial=number, attr=attr, system=system)
        self._write(study, studies_pb2.StudyOp(trial_attr=message))

    def _write(self, study: int, op: studies_pb2.StudyOp) -> Any:
        with _translated():
            return self._link.call("Write", studies_pb2.WriteStudyRequest(study=study, ops=[op])).replies[0]

    def _read(self, study: int) -> KnownStudy:
        known = self._known(study)
        with _translated():
            known.refresh()
        return known

    def _named(self, study: int) -> FrozenStudy:
        """A study's name and directions never change."""
        known = self._known(study)
        return (known if known.read else self._read(study)).about

    def _known(self, study: int) -> KnownStudy:
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            return self._studies.setdefault(study, KnownStudy(self._link, study))


def _trial_id(study: int, number: int) -> int:
    return study * TRIALS_PER_STUDY_MAX + number


def _split(trial_id: int) -> tuple[int, int]:
    return divmod(trial_id, TRIALS_PER_STUDY_MAX)


@contextmanager
def _translated() -> Iterator[None]:
    """Optuna's errors for what they stand for."""
    try:
        yield
    except NotFound as missing:
        raise KeyError(missing.message) from missing
    except Conflict as refused:
        if refused.fields.get("state") != "finished":
            raise
        raise UpdateFinishedTrialError(refused.message) from refused
