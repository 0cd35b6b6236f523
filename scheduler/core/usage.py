"""What each queue and user has now, and has had: the latter counts half after each half-life.

`queues`, `users` and the claims of both follow from the jobs and are built anew by recovery. `accounts` are
kept in the store, a row for each queue and leaf: they hold what jobs that are over have used. An account is
written when one of its jobs starts or ends; in between it follows from what is in use: time alone writes
nothing.
The decay is Slurm's (PriorityDecayHalfLife), by the exact integral instead of in periods. An account that has
decayed to next to nothing is closed: as many are kept as there are users who count, and not all that there
have ever been.
"""

from dataclasses import dataclass, field
from itertools import islice
from math import exp, expm1, log
from typing import Final, TypeVar

from msgspec import Struct

from ...spec.ids import Micros
from .job import NEVER, Job
from .queues import leaf_of_job, path_of
from .weights import weight_milli

K = TypeVar("K")

LN_2: Final = log(2)
CLOSED_BELOW_GPU_S: Final = 60.0
"""A tenth of what a running GPU is charged ahead, see fair.py."""
CLOSED_AT_ONCE: Final = 1000


@dataclass(slots=True)
class InUse:
    """By placed jobs."""

    gpu_milli: int = 0
    cpu_milli: int = 0
    charge_milli: int = 0
    """What counts of both, see order.py."""
    jobs: int = 0


NOTHING = InUse()


class Account(Struct, frozen=True):
    """Decayed usage as of `at_us`."""

    gpu_s: float = 0.0
    at_us: Micros = NEVER


@dataclass(slots=True)
class Usage:
    queues: dict[str, InUse] = field(default_factory=dict)
    """Of each queue and leaf with placed jobs, all below it together."""
    users: dict[tuple[str, str], InUse] = field(default_factory=dict)
    """Of each queue and user with placed jobs there or below it."""
    claims: dict[tuple[str, str], InUse] = field(default_factory=dict)
    """Of each queue and user (and, without a user, of all): what nodes are kept for."""
    accounts: dict[str, Account] = field(default_factory=dict)

    def take(self, job: Job, at_us: Micros, half_life_us: int) -> None:
        """It is placed."""
        self._add(job, 1, at_us, half_life_us)

    def give_back(self, job: Job, at_us: Micros, half_life_us: int) -> None:
        """It is placed no longer."""
        self._add(job, -1, at_us, half_life_us)

    def claim(self, job: Job, sign: int) -> None:
        """Nodes are kept for it (1), or no longer (-1): the least that it needs counts as if it had it."""
        for path in path_of(leaf_of_job(job)):
            for whose in dict.fromkeys(("", job.user)):
                _put(self.claims, (path, whose), _amounts(job, sign, job.demand.instance_count_min))

    def settle(self, at_us: Micros, half_life_us: int) -> None:
        """The half-life is about to change: what was used until now has decayed by the old one."""
        for path in self.accounts:
            self.accounts[path] = self.account(path, at_us, half_life_us)

    def of(self, path: str) -> InUse:
        return self.queues.get(path, NOTHING)

    def of_user(self, path: str, user: str) -> InUse:
        return self.users.get((path, user), NOTHING)

    def bound(self, path: str, user: str = "") -> InUse:
        """What it has, and what is kept for it; of all users, if none is named."""
        has = self.of_user(path, user) if user else self.of(path)
        kept = self.claims.get((path, user)) if self.claims else None
        if kept is None:
            return has
        return InUse(has.gpu_milli + kept.gpu_milli, has.cpu_milli + kept.cpu_milli, 0, has.jobs + kept.jobs)

    def account(self, path: str, at_us: Micros, half_life_us: int) -> Account:
        """As it stands then."""
        known = self.accounts.get(path)
        if known is None:
            return Account(0.0, at_us)
        passed = at_us - known.at_us
        if passed <= 0:
            return known
        passed_lives = LN_2 * passed / half_life_us
        running = self.of(path).charge_milli / 1000 * half_life_us / 1e6 / LN_2
        return Account(known.gpu_s * exp(-passed_lives) - running * expm1(-passed_lives), at_us)

    def idle(self, at_us: Micros, half_life_us: int) -> list[str]:
        """The accounts that are to be closed, at most CLOSED_AT_ONCE."""
        found = (
            path
            for path in sorted(self.accounts)
            if path not in self.queues and self.account(path, at_us, half_life_us).gpu_s < CLOSED_BELOW_GPU_S
        )
        return list(islice(found, CLOSED_AT_ONCE))

    def _add(self, job: Job, sign: int, at_us: Micros, half_life_us: int) -> None:
        amounts = _amounts(job, sign, len(job.tasks))
        for path in path_of(leaf_of_job(job)):
            self.accounts[path] = self.account(path, at_us, half_life_us)
            _put(self.queues, path, amounts)
            _put(self.users, (path, job.user), amounts)


def _amounts(job: Job, sign: int, count: int) -> tuple[int, int, int, int]:
    need, count = job.demand.per_task, sign * count
    return count * need.gpus_milli, count * need.cpu_milli, count * weight_milli(need), sign


def _put(index: dict[K, InUse], key: K, amounts: tuple[int, int, int, int]) -> None:
    """Entries without jobs go."""
    entry = index.get(key)
    if entry is None:
        entry = index[key] = InUse()
    gpus, cpus, charge, jobs = amounts
    entry.gpu_milli += gpus
    entry.cpu_milli += cpus
    entry.charge_milli += charge
    entry.jobs += jobs
    if not entry.jobs:
        del index[key]
