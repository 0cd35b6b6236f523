"""Where a new job belongs: its queue and its pool, by the cluster's policy. Or why it may not be there."""

from msgspec.structs import replace

from ...spec.errors import InvalidRequest, NotFound, PacelineError
from ...spec.ids import Micros
from ...spec.moments import moment_text
from ...spec.problems import nearest
from .amounts import duration_text, milli_gpus_text
from .cluster_policy import ROOT, ClusterPolicy, PoolPolicy, Reservation
from .job import Shape
from .pools import pool_of
from .queues import parent_of, path_of
from .stimuli import NewJob

NAMED_MAX = 5


def admitted(policy: ClusterPolicy, new: NewJob, user: str, now_us: Micros) -> Shape:
    """What it asks, with the queue and the pool that it comes to, and what that pool's jobs have which do not
    say it. Raises NotFound with the nearest name, InvalidRequest where it may not go."""
    queue = _queue(policy, new, user)
    pool = _pool(policy, new, user, queue, now_us)
    shape, limits = new.shape, policy.pools.get(pool_of(pool))
    if limits is not None and limits.timeout_us and not shape.policy.timeout_us:
        shape = replace(shape, policy=replace(shape.policy, timeout_us=limits.timeout_us))
    if queue == shape.queue and pool == shape.demand.pool:
        return shape
    return replace(shape, queue=queue, demand=replace(shape.demand, pool=pool))


def _queue(policy: ClusterPolicy, new: NewJob, user: str) -> str:
    queue = new.shape.queue or policy.default_queue
    if queue not in policy.queues and queue.rpartition("/")[2] == user:
        queue = parent_of(queue)  # the user's own leaf
    if queue != ROOT and queue not in policy.queues:
        raise _unknown("queue", queue, new, [path for path in policy.queues if path])
    for path in path_of(queue):
        allowed = policy.queues[path].users if path in policy.queues else None
        if allowed is not None and user not in allowed:
            text = f"queue {path} is for {_named(allowed)}; {user or 'nobody'} may not submit to it"
            raise InvalidRequest(_of(new, text), hint="`pace queues` lists what there is", queue=path)
    return queue


def _pool(policy: ClusterPolicy, new: NewJob, user: str, queue: str, now_us: Micros) -> str:
    asked = new.shape.demand.pool
    name, _, reserved = asked.partition("/")
    if not policy.pools:
        return ""  # any node, as the client was told
    if not name:
        name = asked = next((name for name, pool in policy.pools.items() if pool.default), "")
        if not name:
            return ""
    pool = policy.pools.get(name)
    if pool is None:
        raise _unknown("pool", name, new, list(policy.pools))
    refusal = _refusal(pool, name, new, user, queue)
    if reserved and not refusal:
        reservation = pool.reservations.get(reserved)
        if reservation is None:
            raise _unknown("reservation", asked, new, [f"{name}/{one}" for one in pool.reservations])
        refusal = _not_for(reservation, f"reservation {asked}", user, queue)
        if now_us >= reservation.to_us:
            refusal = f"reservation {asked} is over since {moment_text(reservation.to_us)}"
    if refusal:
        raise InvalidRequest(_of(new, refusal), hint="`pace pools` lists what there is", pool=name)
    return asked


def _not_for(what: PoolPolicy | Reservation, title: str, user: str, queue: str) -> str:
    if what.users is not None and user not in what.users:
        return f"{title} is for {_named(what.users)}; not for {user or 'nobody'}"
    if what.queues is not None and not set(path_of(queue)) & set(what.queues):
        return f"{title} is for the queues {_named(what.queues)}; not for {queue or 'the root'}"
    return ""


def _refusal(pool: PoolPolicy, name: str, new: NewJob, user: str, queue: str) -> str:
    if refusal := _not_for(pool, f"pool {name}", user, queue):
        return refusal
    need, most = new.shape.demand.per_task, pool.max_gpu_milli_per_job
    asked = new.shape.demand.instance_count_min * need.gpus_milli
    if most is not None and asked > most:
        return f"pool {name} takes jobs of at most {milli_gpus_text(most)}; asked {milli_gpus_text(asked)}"
    longest_us, limit_us = pool.max_timeout_us, new.shape.policy.timeout_us
    if longest_us and limit_us > longest_us:
        longest, limit = duration_text(longest_us), duration_text(limit_us)
        return f"pool {name} takes jobs with a limits.timeout of at most {longest}; asked {limit}"
    return ""


def _unknown(kind: str, name: str, new: NewJob, known: list[str]) -> PacelineError:
    near = nearest(name, known)
    lists = "pace queues" if kind == "queue" else "pace pools"
    hint = f"did you mean {near}?" if near else f"`{lists}` lists what there is"
    return NotFound(_of(new, f"there is no {kind} {name}"), hint=hint, **{kind: name})


def _of(new: NewJob, text: str) -> str:
    return f"job {new.name}: {text}"


def _named(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return (", ".join(names[:NAMED_MAX]) or "nobody") + more
