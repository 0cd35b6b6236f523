"""What a queue and a user may have at most, and what a queue may have back from those who borrow.

Limits hold for what is placed, at each queue on the way from the root to the job's leaf. A guarantee is met,
where nothing is free, from queues that have more than their own: where the ways of the two jobs part, a queue
on the one's side is within its guarantee with the new job, and each queue on the other's side has more than
its own (or has none). So nobody reclaims what would be reclaimed from them in turn.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ...spec.ids import JobId
from .amounts import cpu_text, cpus_text, milli_gpus_text
from .cluster_policy import NO_AMOUNT, ROOT, QueuePolicy
from .job import Job
from .queues import cpu_milli_of, gpu_milli_of, leaf_of_job, path_of
from .reason import Reason
from .state import ClusterState

HOLDERS_MAX = 2
NO_QUEUE = QueuePolicy()


class Limit(NamedTuple):
    """One limit on the way to a job's leaf, in thousandths (of jobs, too)."""

    queue: str
    user: str
    """Empty: of all users together."""
    what: str
    """gpus, cpus or jobs."""
    has: int
    asked: int
    """By each task; of jobs, by all."""
    most: int

    @property
    def room(self) -> int | None:
        """Tasks that fit below it; None: as many as you like."""
        left = max(0, self.most - self.has)
        if self.what == "jobs":
            return None if left else 0
        return left // self.asked if self.asked else None


def limits_of(state: ClusterState, job: Job) -> list[Limit]:
    """All that there are, outermost first."""
    found: list[Limit] = []
    if not state.policy.queues:
        return found
    gpus, cpus = gpu_milli_of(job, 1), cpu_milli_of(job, 1)
    for path in path_of(leaf_of_job(job)):
        queue = state.policy.queues.get(path)
        if queue is None:
            continue
        most, each = queue.max, queue.max_per_user
        has, user_has = state.usage.bound(path), state.usage.bound(path, job.user)
        if most.gpu_milli is not None:
            found.append(Limit(path, "", "gpus", has.gpu_milli, gpus, most.gpu_milli))
        if most.cpu_milli is not None:
            found.append(Limit(path, "", "cpus", has.cpu_milli, cpus, most.cpu_milli))
        if each.gpu_milli is not None:
            found.append(Limit(path, job.user, "gpus", user_has.gpu_milli, gpus, each.gpu_milli))
        if each.jobs is not None:
            found.append(Limit(path, job.user, "jobs", 1000 * user_has.jobs, 1000, 1000 * each.jobs))
    return found


class Quota(NamedTuple):
    """A limit, a guarantee or both on the way to a job's leaf, in thousandths (of jobs, too)."""

    queue: str
    user: str
    """Empty: of all users together."""
    what: str
    """gpus, cpus or jobs."""
    has: int
    asked: int
    """By all tasks that the job asks for."""
    guaranteed: int | None
    most: int | None


def quotas_of(state: ClusterState, job: Job) -> list[Quota]:
    """All that it counts towards, outermost first."""
    count = job.demand.instance_count
    asked = {"gpus": gpu_milli_of(job, count), "cpus": cpu_milli_of(job, count), "jobs": 1000}
    found: list[Quota] = []
    for path in path_of(leaf_of_job(job)):
        queue = state.policy.queues.get(path, NO_QUEUE)
        least, most, each = queue.guaranteed, queue.max, queue.max_per_user
        has, user_has = state.usage.bound(path), state.usage.bound(path, job.user)
        rows = (
            ("", "gpus", has.gpu_milli, least.gpu_milli, most.gpu_milli),
            ("", "cpus", has.cpu_milli, least.cpu_milli, most.cpu_milli),
            (job.user, "gpus", user_has.gpu_milli, None, each.gpu_milli),
            (job.user, "jobs", 1000 * user_has.jobs, None, None if each.jobs is None else 1000 * each.jobs),
        )
        found += [
            Quota(path, user, what, had, asked[what], guaranteed, at_most)
            for user, what, had, guaranteed, at_most in rows
            if asked[what] and (guaranteed is not None or at_most is not None)
        ]
    return found


def tasks_allowed(state: ClusterState, job: Job) -> int:
    """How many more of its tasks the limits have room for, at most what it may have."""
    queues, usage = state.policy.queues, state.usage
    if not queues:
        return job.demand.instance_count_max
    rooms: list[int] = []
    gpus, cpus = job.demand.per_task.gpus_milli, job.demand.per_task.cpu_milli
    for path in path_of(leaf_of_job(job)):
        queue = queues.get(path)
        if queue is None:
            continue
        most, each = queue.max, queue.max_per_user
        if gpus and most.gpu_milli is not None:
            rooms.append(max(0, most.gpu_milli - usage.bound(path).gpu_milli) // gpus)
        if cpus and most.cpu_milli is not None:
            rooms.append(max(0, most.cpu_milli - usage.bound(path).cpu_milli) // cpus)
        if gpus and each.gpu_milli is not None:
            rooms.append(max(0, each.gpu_milli - usage.bound(path, job.user).gpu_milli) // gpus)
        if each.jobs is not None and usage.bound(path, job.user).jobs >= each.jobs:
            rooms.append(0)
    return min(rooms, default=job.demand.instance_count_max)


def is_allowed(state: ClusterState, job: Job) -> bool:
    """The least that it needs is within all limits; what is placed already moves within them."""
    return not state.policy.queues or job.placed or tasks_allowed(state, job) >= job.demand.instance_count_min


def limit_reason(state: ClusterState, job: Job) -> Reason | None:
    """The limit that keeps a waiting job back: the one that leaves the least room. None: none does."""
    least = job.demand.instance_count_min
    tight = [limit for limit in limits_of(state, job) if limit.room is not None and limit.room < least]
    if not tight:
        return None
    limit = min(tight, key=lambda one: one.room or 0)
    asked = limit.asked if limit.what == "jobs" else limit.asked * least
    text = f"{_subject(limit)} has {limit.has / 1000:g} of at most {_amount(limit.what, limit.most)}"
    fields: dict[str, str | int] = {
        "queue": limit.queue,
        "user": limit.user,
        "what": limit.what,
        "has": limit.has,
        "most": limit.most,
        "asked": asked,
    }
    if asked > limit.most:
        text = (
            f"never: {_subject(limit)} may have at most {_amount(limit.what, limit.most)}, "
            f"asked {_amount(limit.what, asked)}"
        )
        return Reason("never", text, "ask for less, or have the limit raised: `pace policy`", fields)
    text += f", asked {_amount(limit.what, asked)}; {_holders(state, limit)}"
    return Reason("limit", text, "it starts by itself when they are over", fields)


class Reclaim:
    """What one job may take back: ask `may_take` of each victim in turn, `take` those that are chosen."""

    def __init__(self, state: ClusterState, job: Job) -> None:
        self.state, self.job = state, job
        self.claimed: set[JobId] = set()
        """Who is stopped for the guarantee, and not because the job goes first anyway."""
        self._entitled = self._find_entitled()
        self._gone: dict[str, list[int]] = {}
        """GPUs and cpus, by queue, of those that leave."""
        for number in state.placed if self._entitled else ():
            if (stop := state.jobs[number].course.stop) is not None and stop.for_job is not None:
                self.take(state.jobs[number])

    @property
    def entitled(self) -> str:
        """The innermost queue of its own that has room for the job within its guarantee; empty: none."""
        return max(self._entitled, key=len, default="")

    def may_take(self, victim: Job) -> bool:
        """It borrows, as seen from a queue that has its guarantee to claim."""
        if not self._entitled:
            return False
        own, other = path_of(leaf_of_job(self.job)), path_of(leaf_of_job(victim))
        shared = sum(a == b for a, b in zip(own, other, strict=False))
        if not self._entitled.intersection(own[shared:]):
            return False
        return all(self._borrows(path) for path in other[shared:])

    def take(self, victim: Job) -> None:
        amounts = gpu_milli_of(victim, len(victim.tasks)), cpu_milli_of(victim, len(victim.tasks))
        for path in path_of(leaf_of_job(victim)):
            sums = self._gone.setdefault(path, [0, 0])
            sums[:] = [had + more for had, more in zip(sums, amounts, strict=True)]

    def takes_all(self, victims: Iterable[Job]) -> bool:
        """One after the other: whether each may be taken; if so, they are."""
        tried = Reclaim(self.state, self.job)
        self.claimed = set()
        for victim in victims:
            if not tried.may_take(victim):
                return False
            tried.take(victim)
            self.claimed.add(victim.number)
        return True

    def why(self, victim: Job) -> str:
        """What a victim is told; empty: it is not stopped for a guarantee."""
        if victim.number not in self.claimed:
            return ""
        own, queue = self.entitled, self.state.policy.queues[self.entitled]
        guaranteed = queue.guaranteed
        if self.job.demand.per_task.on_gpu:
            amount = _amount("gpus", guaranteed.gpu_milli or 0)
        else:
            amount = _amount("cpus", guaranteed.cpu_milli or 0)
        return f"queue {own} has {amount} guaranteed, and job {self.job.number} claims them"

    def _find_entitled(self) -> frozenset[str]:
        if not self.state.policy.queues:
            return frozenset()
        count = self.job.demand.instance_count_min
        gpus, cpus = gpu_milli_of(self.job, count), cpu_milli_of(self.job, count)
        found = []
        for path in path_of(leaf_of_job(self.job)):
            queue, has = self.state.policy.queues.get(path), self.state.usage.bound(path)
            with_job = has.gpu_milli + gpus, has.cpu_milli + cpus
            if queue is not None and _within(queue, *with_job, on_gpu=gpus > 0):
                found.append(path)
        return frozenset(found)

    def _borrows(self, path: str) -> bool:
        """More than it (with those below it) is guaranteed, without what was taken: of GPUs, if those are
        wanted, else of cpus."""
        guaranteed, has = self.state.tree.guaranteed.get(path, NO_AMOUNT), self.state.usage.of(path)
        gone = self._gone.get(path, (0, 0))
        if self.job.demand.per_task.on_gpu:
            return has.gpu_milli - gone[0] > (guaranteed.gpu_milli or 0)
        return has.cpu_milli - gone[1] > (guaranteed.cpu_milli or 0)


def _within(queue: QueuePolicy, gpu_milli: int, cpu_milli: int, *, on_gpu: bool) -> bool:
    """So much is within its guarantee: of GPUs, if those are wanted, else of cpus; and of the other, where
    that is said."""
    gpus, cpus = queue.guaranteed.gpu_milli, queue.guaranteed.cpu_milli
    if (gpus if on_gpu else cpus) is None:
        return False
    return (gpus is None or gpu_milli <= gpus or not on_gpu) and (cpus is None or cpu_milli <= cpus)


def _subject(limit: Limit) -> str:
    queue = f"queue {limit.queue}" if limit.queue != ROOT else "the cluster"
    if not limit.user:
        return queue
    where = f" in {queue}" if limit.queue != ROOT else ""
    return f"user {limit.user}{where}"


def _amount(what: str, amount: int) -> str:
    if what == "gpus":
        return milli_gpus_text(amount)
    if what == "cpus":
        return cpus_text(amount)
    return f"{amount // 1000} job{'' if amount == 1000 else 's'}"


def _holders(state: ClusterState, limit: Limit) -> str:
    """Who has the most of it: `job 812 holds 8, job 7 holds 4`."""
    held: list[tuple[int, JobId]] = []
    for job in (state.jobs[number] for number in state.placed):
        within = limit.queue in path_of(leaf_of_job(job))
        if within and (not limit.user or job.user == limit.user):
            amounts = {"gpus": gpu_milli_of(job, len(job.tasks)), "cpus": cpu_milli_of(job, len(job.tasks))}
            held.append((-amounts.get(limit.what, 1000), job.number))
    largest = sorted(held)[:HOLDERS_MAX]
    if not largest:
        return "nodes are kept for others that wait"
    if limit.what == "jobs":
        if len(largest) == 1:
            return f"job {largest[0][1]} runs"
        return f"jobs {' and '.join(str(job) for _, job in largest)} run"
    return ", ".join(f"job {job} holds {cpu_text(-amount)}" for amount, job in largest)
