"""How long runs lasted that are over: the experience that predict.py goes by.

Beside the state, as workload.py: it follows from the jobs that this scheduler has seen end, and after a start
from the newest that the store has. Durations are of a gang of the size that was asked for, in microseconds,
lines and queues not counted; the newest of each kind are kept: those of a name or user, of which there are
many, as tuples that nobody changes.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeVar

from ...spec.ids import Micros
from .job import Job

K = TypeVar("K")
Durations = tuple[int, ...]

NAME_RUNS_MAX: Final = 32
USER_RUNS_MAX: Final = 128
ALL_RUNS_MAX: Final = 512
NAMES_MAX: Final = 4096
USERS_MAX: Final = 1024
LOADED_MAX: Final = 2000
"""So many jobs that were over before the scheduler's start are looked at."""


@dataclass(slots=True)
class Runs:
    names: dict[tuple[str, str], Durations] = field(default_factory=dict)
    """By user and job name; those that were learnt of longest ago are forgotten first."""
    users: dict[str, Durations] = field(default_factory=dict)
    all: deque[int] = field(default_factory=lambda: deque(maxlen=ALL_RUNS_MAX))

    def learn(self, job: Job) -> None:
        """It is over, or its last attempt is."""
        ran_us = attained_us(job, Micros(0))
        if ran_us <= 0:
            return
        _add(self.names, (job.user, job.name), ran_us, NAME_RUNS_MAX, NAMES_MAX)
        _add(self.users, job.user, ran_us, USER_RUNS_MAX, USERS_MAX)
        self.all.append(ran_us)

    def copy(self) -> "Runs":
        return Runs(dict(self.names), dict(self.users), self.all.copy())


def attained_us(job: Job, now_us: Micros) -> int:
    """What its attempts have run so far, as if by a gang of the size that was asked for."""
    tasks_us = job.course.rate.node_us
    if job.placed:
        tasks_us += max(0, now_us - job.course.attempt_us) * len(job.tasks)
    return tasks_us // job.demand.instance_count


def _add(kept: dict[K, Durations], key: K, ran_us: int, runs_max: int, keys_max: int) -> None:
    known = kept.pop(key, ())
    kept[key] = (*known[1 - runs_max :], ran_us)
    if len(kept) > keys_max:
        del kept[next(iter(kept))]
