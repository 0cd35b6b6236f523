"""An admin puts a policy in force: what changes by it, in words."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from ...spec.errors import Conflict
from ...spec.ids import JobId, Micros
from ...spec.moments import moment_text
from .admin_stimuli import ApplyPolicy
from .amounts import cpus_text, duration_text, milli_gpus_text
from .cluster_policy import (
    Amount,
    ClusterPolicy,
    PoolPolicy,
    QueuePolicy,
    Reservation,
    UserAmount,
    Window,
)
from .effects import Plan
from .policy_events import PolicyChanged
from .pools import pool_of
from .reservations import whom_text
from .settings import GPU_HOUR_US, Order
from .state import ClusterState

CHANGES_MAX: Final = 50
"""Told of one change of policy."""

Words = Mapping[str, str]


def on_apply_policy(
    state: ClusterState, asked: ApplyPolicy, now_us: Micros, known: tuple[JobId, ...] | None
) -> Plan[tuple[JobId, ...]]:
    """Answer: no jobs. The policy that is in force already is no event. Raises Conflict."""
    if known is not None or asked.policy == state.policy:
        return Plan(())
    check_kept(state, asked.policy)
    changes = policy_changes(state.policy, asked.policy)
    return Plan((), (PolicyChanged(now_us, asked.by, asked.policy, changes),))


def check_kept(state: ClusterState, policy: ClusterPolicy) -> None:
    """Whatever waits or runs keeps its queue and its pool. Raises Conflict."""
    queues = Counter(job.shape.queue for job in state.jobs.values())
    pools = Counter(pool_of(job.demand.pool) for job in state.jobs.values())
    for kind, counts, known in (("queue", queues, policy.queues), ("pool", pools, policy.pools)):
        for name, count in sorted(counts.items()):
            if name and name not in known:
                are = "jobs wait or run" if count > 1 else "job waits or runs"
                raise Conflict(
                    f"{kind} {name} is gone by this policy, and {count} {are} there",
                    hint="keep it until they are over, or cancel them: `pace jobs --active`",
                    jobs=count,
                )


def policy_changes(old: ClusterPolicy, new: ClusterPolicy) -> tuple[str, ...]:
    """`queue research: weight 1 -> 2`; at most CHANGES_MAX lines, and then how many more there are."""
    lines = [
        *_differences("queue", _queue_words(old), _queue_words(new)),
        *_differences("pool", _pool_words(old), _pool_words(new)),
        *_differences("", {"": _other_words(old)}, {"": _other_words(new)}),
    ]
    more = len(lines) - CHANGES_MAX
    return (*lines[:CHANGES_MAX], f"and {more} more") if more > 0 else tuple(lines)


def amount_text(amount: Amount) -> str:
    """`16 GPUs, 64 cpus`; empty where nothing is said."""
    parts = []
    if amount.gpu_milli is not None:
        parts.append(milli_gpus_text(amount.gpu_milli))
    if amount.cpu_milli is not None:
        parts.append(cpus_text(amount.cpu_milli))
    return ", ".join(parts)


def user_amount_text(amount: UserAmount) -> str:
    parts = [] if amount.gpu_milli is None else [milli_gpus_text(amount.gpu_milli)]
    if amount.jobs is not None:
        parts.append(f"{amount.jobs} job{'' if amount.jobs == 1 else 's'}")
    return ", ".join(parts)


def _differences(kind: str, old: Mapping[str, Words], new: Mapping[str, Words]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        title = f"{kind} {name or '(root)'}" if kind else ""
        if name not in new:
            yield f"{title}: removed"
            continue
        words, before = new[name], old.get(name)
        if before is None:
            said = ", ".join(f"{key} {word}" for key, word in words.items() if word)
            yield f"{title}: new" + (f", {said}" if said else "")
            continue
        changed = [
            f"{key} {before[key] or 'none'} -> {word or 'none'}"
            for key, word in words.items()
            if word != before[key]
        ]
        if changed:
            yield f"{title}: {', '.join(changed)}" if title else ", ".join(changed)


def _queue_words(policy: ClusterPolicy) -> dict[str, Words]:
    return {path: _words_of_queue(queue) for path, queue in policy.queues.items()}


def _words_of_queue(queue: QueuePolicy) -> Words:
    return {
        "weight": f"{queue.weight:g}",
        "guaranteed": amount_text(queue.guaranteed),
        "max": amount_text(queue.max),
        "max_per_user": user_amount_text(queue.max_per_user),
        "users": _names(queue.users),
    }


def _pool_words(policy: ClusterPolicy) -> dict[str, Words]:
    return {name: _words_of_pool(pool) for name, pool in policy.pools.items()}


def _words_of_pool(pool: PoolPolicy) -> Words:
    most = pool.max_gpu_milli_per_job
    return {
        "nodes": _names(pool.nodes),
        "labels": " ".join(f"{name}={value}" for name, value in sorted(pool.labels.items())),
        "users": _names(pool.users),
        "queues": _names(pool.queues),
        "max_gpus_per_job": "" if most is None else f"{most / 1000:g}",
        "max_timeout": duration_text(pool.max_timeout_us) if pool.max_timeout_us else "",
        "defaults.timeout": duration_text(pool.timeout_us) if pool.timeout_us else "",
        "default": "yes" if pool.default else "",
        "maintenance": "; ".join(_window_text(window) for window in pool.maintenance),
        "reservations": "; ".join(
            f"{name} ({whom_text(one)}) of {one.nodes} from {_window_text(one)}"
            for name, one in pool.reservations.items()
        ),
    }


def _window_text(window: Window | Reservation) -> str:
    why = f" ({window.why})" if window.why else ""
    return f"{moment_text(window.from_us)} to {moment_text(window.to_us)}{why}"


def _other_words(policy: ClusterPolicy) -> Words:
    order = policy.order or Order()
    return {
        "default_queue": policy.default_queue,
        "usage.half_life": duration_text(policy.half_life_us),
        "order.class_limits_gpu_hours": " ".join(f"{us / GPU_HOUR_US:g}" for us in order.class_limits_us),
        "order.min_run": duration_text(order.min_run_us),
        "order.patience": duration_text(order.patience_us),
        "order.lifted_percent": str(order.lifted_percent),
        "order.preemption": "on" if order.preemption else "off",
        "order.defragment": "on" if order.defragment else "off",
    }


def _names(names: tuple[str, ...] | None) -> str:
    return "" if names is None else " ".join(names) or "nobody"
