"""What a step must know from the store before it decides; read in the thread that commits."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..spec.ids import JobId
from .core.job import Job
from .core.settings import Settings
from .core.stimuli import Keyed
from .endpoints.stimuli import KeptWish
from .loop_engine import Engine
from .loop_step import Asked
from .records import job_from_row
from .store.base import Store
from .sweeps.driving import SubmitSweep
from .sweeps.rows import trials_from_rows
from .sweeps.study import Trial


class Known(NamedTuple):
    """What Engine.step takes."""

    keys: dict[str, tuple[JobId, ...]]
    finished: dict[JobId, Job]


NOTHING = Known({}, {})


def to_look_up(engine: Engine, store: Store, stimuli: Sequence[Asked]) -> Callable[[], Known] | None:
    """To be called in the thread; None: nothing is needed."""
    keys = {stimulus.key for stimulus in stimuli if isinstance(stimulus, Keyed | SubmitSweep | KeptWish)}
    late = engine.late_jobs(stimuli)
    if not (keys or late):
        return None

    def look_up() -> Known:
        rows = (store.key(key) for key in keys)
        jobs = (store.job(number) for number in late)
        return Known(
            {row.key: row.jobs for row in rows if row is not None},
            {row.job: job_from_row(row) for row in jobs if row is not None},
        )

    return look_up


def read_trials(store: Store, study: int) -> list[Trial]:
    """Raises StoreFailure."""
    return trials_from_rows(*store.trials(study))


def load(store: Store, settings: Settings) -> Engine:
    """The state as of the last commit, with the trials of all sweeps that are live."""
    engine = Engine(store.load(), settings)
    for study in engine.studies.cold_live():
        engine.studies.put(study, read_trials(store, study))
    return engine
