"""What a checked policy document means for decisions."""

from ..spec.cluster_policy import Amount, PolicySpec, PoolSpec, QueueSpec, UserAmount, each_queue
from ..spec.moments import moment_us
from .core import cluster_policy as core
from .core.settings import GPU_HOUR_US, Order


def core_policy(spec: PolicySpec) -> core.ClusterPolicy:
    """The queues and the pools by their paths, amounts in thousandths, times in microseconds."""
    queues = {"/".join(names): _queue(queue) for names, queue in each_queue(spec.queues)}
    if spec.max_per_user != UserAmount():
        queues = {core.ROOT: core.QueuePolicy(max_per_user=_user_amount(spec.max_per_user)), **queues}
    order = spec.order
    return core.ClusterPolicy(
        queues=queues,
        default_queue=spec.default_queue,
        pools={name: _pool(pool) for name, pool in spec.pools.items()},
        half_life_us=round(spec.usage.half_life_hours * core.HOUR_US),
        order=Order(
            class_limits_us=tuple(round(limit * GPU_HOUR_US) for limit in order.class_limits_gpu_hours),
            patience_us=round(order.patience_hours * core.HOUR_US),
            lifted_percent=order.lifted_percent,
            preemption=order.preemption,
            min_run_us=round(order.min_run_minutes * core.HOUR_US / 60),
            defragment=order.defragment,
        ),
        document=spec.to_json(),
    )


def _queue(spec: QueueSpec) -> core.QueuePolicy:
    return core.QueuePolicy(
        spec.weight, _amount(spec.guaranteed), _amount(spec.max), _user_amount(spec.max_per_user), spec.users
    )


def _pool(spec: PoolSpec) -> core.PoolPolicy:
    most = _milli(spec.max_gpus_per_job)
    windows = tuple(core.Window(moment_us(one.from_), moment_us(one.to), one.why) for one in spec.maintenance)
    reservations = {
        name: core.Reservation(
            moment_us(one.from_), moment_us(one.to), one.nodes, one.users, one.queues, one.why
        )
        for name, one in spec.reservations.items()
    }
    longest_us = round((spec.max_timeout_hours or 0) * core.HOUR_US)
    usual_us = round((spec.defaults.timeout_hours or 0) * core.HOUR_US) or longest_us
    return core.PoolPolicy(
        spec.nodes,
        spec.labels,
        spec.users,
        spec.queues,
        most,
        spec.default,
        windows,
        reservations,
        usual_us,
        longest_us,
    )


def _amount(spec: Amount) -> core.Amount:
    return core.Amount(_milli(spec.gpus), _milli(spec.cpus))


def _user_amount(spec: UserAmount) -> core.UserAmount:
    return core.UserAmount(_milli(spec.gpus), spec.jobs)


def _milli(amount: float | None) -> int | None:
    return None if amount is None else round(amount * 1000)
