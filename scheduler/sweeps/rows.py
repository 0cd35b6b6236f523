"""Studies and trials as rows and back: JSON text that the store never looks into.

JSON knows no infinity and no NaN: here they are texts. Trials of a study share their distributions' texts.
"""

import gc
import math
from collections.abc import Iterable
from typing import Final

import msgspec

from ...spec.errors import StoreFailure
from ...spec.ids import JobId, Micros
from ..store.base import StudyBatch, StudyRow, TrialRow, TrialValueRow
from .studies import Changes, Studies
from .study import Fork, Param, Study, Successor, SweepPlan, SweepState, Trial, TrialState


class _Study(msgspec.Struct, omit_defaults=True):
    directions: tuple[str, ...]
    user: str
    made_us: int
    key: str = ""
    document: str = ""
    state: SweepState | None = None
    plan: SweepPlan | None = None
    more: int = 0
    extended_us: int | None = None
    workers: list[JobId] = []
    workers_made: int = 0
    why: str = ""
    ends_as: SweepState | None = None
    ended_us: int | None = None
    user_attrs: dict[str, str] = {}
    system_attrs: dict[str, str] = {}
    distributions: dict[str, str] = {}
    earlier: int = 0
    earlier_note: str = ""


class _Trial(msgspec.Struct, omit_defaults=True):
    params: dict[str, tuple[float | str, str]] = {}
    values: tuple[float | str, ...] = ()
    user_attrs: dict[str, str] = {}
    system_attrs: dict[str, str] = {}
    started_us: int | None = None
    finished_us: int | None = None
    key: str = ""
    claim: str = ""
    fork: Fork | None = None
    successor: Successor | None = None


_encode: Final = msgspec.json.Encoder().encode
_study_of: Final = msgspec.json.Decoder(_Study).decode
_trial_of: Final = msgspec.json.Decoder(_Trial).decode


def study_row(study: Study) -> StudyRow:
    record = _Study(
        study.directions,
        study.user,
        study.made_us,
        study.key,
        study.document,
        study.state,
        study.plan,
        study.more,
        study.extended_us,
        study.workers,
        study.workers_made,
        study.why,
        study.ends_as,
        study.ended_us,
        study.user_attrs,
        study.system_attrs,
        study.distributions,
        study.earlier,
        study.earlier_note,
    )
    return StudyRow(study.id, study.name, study.noted, _encode(record).decode())


def trial_row(study: int, trial: Trial) -> TrialRow:
    record = _Trial(
        {name: (_told(param.value), param.distribution) for name, param in trial.params.items()},
        tuple(map(_told, trial.values)),
        trial.user_attrs,
        trial.system_attrs,
        trial.started_us,
        trial.finished_us,
        trial.key,
        trial.claim,
        trial.fork,
        trial.successor,
    )
    return TrialRow(study, trial.number, trial.job, trial.state.value, trial.noted, _encode(record).decode())


def rows_of(changes: Changes) -> StudyBatch:
    return StudyBatch(
        studies=[study_row(study) for study in changes.studies.values()],
        trials=[trial_row(study, trial) for (study, _), trial in changes.trials.items()],
        values=[
            TrialValueRow(study, number, step, value, version)
            for (study, number, step), (value, version) in changes.values.items()
        ],
        deleted=sorted(changes.deleted),
        last_study=changes.last_study,
    )


def studies_from_rows(rows: Iterable[StudyRow], last_study: int) -> Studies:
    """Without trials. Raises StoreFailure naming the row."""
    return Studies([_study(row) for row in rows], last_study)


def trials_from_rows(rows: Iterable[TrialRow], values: Iterable[TrialValueRow]) -> list[Trial]:
    """Of one study, both in the order of their keys. Raises StoreFailure naming the row."""
    collecting = gc.isenabled()
    gc.disable()  # many new objects, none of them garbage
    try:
        return _trials(rows, values)
    finally:
        if collecting:
            gc.enable()


def _trials(rows: Iterable[TrialRow], values: Iterable[TrialValueRow]) -> list[Trial]:
    shared: dict[str, str] = {}
    trials: list[Trial] = []
    for row in rows:
        if row.number != len(trials):
            raise _damaged(f"trial {len(trials)} of study {row.study}", "it is not there")
        trials.append(_trial(row, shared))
    reported: dict[int, list[tuple[int, int]]] = {}
    for line in values:
        if line.number >= len(trials):
            raise _damaged(f"trial {line.number} of study {line.study}", "only its values are there")
        trial = trials[line.number]
        trial.intermediate[line.step] = line.value
        trial.version = max(trial.version, line.version)
        if not trial.finished:
            reported.setdefault(line.number, []).append((line.version, line.step))
    for number, steps in reported.items():
        trials[number].reported = {step: version for version, step in sorted(steps)}
    return trials


def _study(row: StudyRow) -> Study:
    try:
        record = _study_of(row.record)
    except msgspec.DecodeError as error:
        raise _damaged(f"study {row.study}", error) from error
    return Study(
        row.study,
        row.name,
        record.directions,
        record.user,
        Micros(record.made_us),
        record.key,
        record.document,
        record.state,
        record.plan,
        record.more,
        None if record.extended_us is None else Micros(record.extended_us),
        record.workers,
        record.workers_made,
        record.why,
        record.ends_as,
        None if record.ended_us is None else Micros(record.ended_us),
        record.user_attrs,
        record.system_attrs,
        record.distributions,
        record.earlier,
        record.earlier_note,
        noted=row.version,
    )


def _trial(row: TrialRow, shared: dict[str, str]) -> Trial:
    try:
        record = _trial_of(row.record)
        state = TrialState(row.state)
    except (msgspec.DecodeError, ValueError) as error:
        raise _damaged(f"trial {row.number} of study {row.study}", error) from error
    return Trial(
        row.number,
        state,
        {
            name: Param(float(value), shared.setdefault(distribution, distribution))
            for name, (value, distribution) in record.params.items()
        },
        tuple(map(float, record.values)),
        {},
        record.user_attrs,
        record.system_attrs,
        None if record.started_us is None else Micros(record.started_us),
        None if record.finished_us is None else Micros(record.finished_us),
        record.key,
        record.claim,
        None if row.job is None else JobId(row.job),
        row.version,
        row.version,
        fork=record.fork,
        successor=record.successor,
    )


def _told(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def _damaged(what: str, error: object) -> StoreFailure:
    return StoreFailure(
        f"the store's record of {what} cannot be read: {error}",
        hint="the store was written by another version, or is damaged: restore a backup or use that version",
        what=what,
    )
