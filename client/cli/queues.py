"""`pace queues`, `quota`, `pools`: what everybody may have, has, and waits for."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from ...spec.errors import NotFound
from ...spec.moments import moment_text
from ...spec.problems import nearest
from .. import policy_views
from . import output as out
from .options import connection, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings

QUEUE_COLUMNS = (
    out.Column("queue", flex=True),
    out.Column("weight", right=True, drop=4),
    out.Column("GPUs", right=True),
    out.Column("min", right=True),
    out.Column("max", right=True),
    out.Column("cpus", right=True, drop=2),
    out.Column("jobs", right=True, drop=3),
    out.Column("waiting", right=True),
    out.Column("GPU-hours", right=True, drop=1),
    out.Column("next", right=True),
)
QUOTA_COLUMNS = (
    out.Column("queue", flex=True),
    out.Column("what"),
    out.Column("of"),
    out.Column("in use", right=True),
    out.Column("guaranteed", right=True),
    out.Column("at most", right=True),
)
NODES_SHOWN = 8
POOL_COLUMNS = (
    out.Column("pool", flex=True),
    out.Column("nodes", right=True),
    out.Column("GPUs free", right=True),
    out.Column("cpus free", right=True),
    out.Column("waiting", right=True),
    out.Column("for", flex=True),
)


@click.command(short_help="Show the tree of queues: quotas, use, whose turn it is.")
@json_option
@connection
def queues(settings: "Settings", output: str) -> None:
    """Show the tree of queues, and below each the users with jobs in it.

    GPUs, cpus, jobs: in use. min and max: what is guaranteed, and the most. GPU-hours: used, decayed by the
    policy's half-life. next: whose turn it is among those with waiting jobs.

    \b
    JSON: {"queues": [QUEUE, ...]}; keys of a QUEUE: path (empty: the root),
    declared (false: a user's leaf), weight, share, guaranteed, max,
    max_per_user, users (null: everybody), in_use, waiting, used_gpu_hours,
    rank (null: none waits), user_in_use. Amounts: gpu_milli, cpu_milli, jobs.
    """
    with open_client(settings) as client:
        found = client.queues()
    if output == "json":
        out.show_json({"queues": found})
        return
    out.show_table(out.Table(QUEUE_COLUMNS, [_queue_row(queue) for queue in found]))


@click.command(short_help="Show what a user or a queue may have, and has.")
@click.argument("name", default="", metavar="[USER|QUEUE]")
@json_option
@connection
def quota(settings: "Settings", name: str, output: str) -> None:
    """Show what a user (you, if nobody is named) or a queue may have at most, and has.

    \b
    JSON: {"user": TEXT or null, "queues": [QUEUE, ...]} as in `pace queues`,
    of those with a limit or a guarantee; user_in_use is the user's.
    """
    from ..rpc import user_name

    with open_client(settings) as client:
        found = client.queues(user=name or user_name())
    chosen = [queue for queue in found if name and queue.path == name and queue.declared]
    user = None if chosen else name or user_name()
    shown = chosen or [queue for queue in found if queue.declared and _may(queue, user or "")]
    if name and not chosen and not _known(found, name):
        near = nearest(name, [queue.path for queue in found if queue.path])
        hint = f"did you mean {near}?" if near else "`pace queues` lists what there is"
        raise NotFound(f"there is no queue {name}, and no user of that name has jobs", hint=hint)
    if output == "json":
        out.show_json({"user": user, "queues": shown})
        return
    rows = [row for queue in shown for row in _quota_rows(queue, user)]
    if not rows:
        out.show(f"no limits and no guarantees for {out.clean(user or name)}")
        return
    out.show_table(out.Table(QUOTA_COLUMNS, rows))


@click.command(short_help="Show the pools of nodes: what is free, who may use them.")
@json_option
@connection
def pools(settings: "Settings", output: str) -> None:
    """Show the pools of nodes, which a job asks for with `compute: NAME`.

    \b
    JSON: {"pools": [POOL, ...]}; keys of a POOL: name, node_names, labels,
    users, queues (null: all), max_gpu_milli_per_job, timeout_us (of jobs that
    say none), max_timeout_us, default, nodes,
    connected, gpus, gpus_free, cpu_milli, cpu_milli_free, waiting,
    maintenance: [{"from_us", "to_us", "why"}, ...], reservations: [{"name",
    "from_us", "to_us", "nodes", "node_names", "users", "queues", "why"}, ...].
    """
    with open_client(settings) as client:
        found = client.pools()
    if output == "json":
        out.show_json({"pools": found})
        return
    if not found:
        out.hint("no pools: jobs go to any node that fits; `pace policy apply` makes some")
        return
    out.show_table(out.Table(POOL_COLUMNS, [_pool_row(pool) for pool in found]))
    for pool in found:
        for line in _window_lines(pool, out.now_us()):
            out.show(out.wrapped(out.clean(line), 2))


def _queue_row(queue: policy_views.Queue) -> tuple[str, ...]:
    names = queue.path.split("/") if queue.path else []
    name = "  " * max(0, len(names) - 1) + (names[-1] if names else "(all)")
    return (
        name if queue.declared else f"{name} (user)",
        f"{queue.weight:g}",
        _gpus(queue.in_use.gpu_milli),
        _first_said(queue.guaranteed),
        _first_said(queue.max),
        _gpus(queue.in_use.cpu_milli),
        str(queue.in_use.jobs or 0),
        str(queue.waiting),
        f"{queue.used_gpu_hours:.1f}",
        "-" if queue.rank is None else str(queue.rank),
    )


def _quota_rows(queue: policy_views.Queue, user: str | None) -> Iterator[tuple[str, ...]]:
    path = queue.path or "(all)"
    for what, key in (("GPUs", "gpu_milli"), ("cpus", "cpu_milli")):
        least, most = getattr(queue.guaranteed, key), getattr(queue.max, key)
        if least is not None or most is not None:
            yield path, what, "all", _gpus(getattr(queue.in_use, key)), _gpus(least), _gpus(most)
    whose = user or "each user"
    if queue.max_per_user.gpu_milli is not None:
        has = _gpus(queue.user_in_use.gpu_milli) if user else "-"
        yield path, "GPUs", whose, has, "-", _gpus(queue.max_per_user.gpu_milli)
    if queue.max_per_user.jobs is not None:
        has = str(queue.user_in_use.jobs or 0) if user else "-"
        yield path, "jobs", whose, has, "-", str(queue.max_per_user.jobs)


def _may(queue: policy_views.Queue, user: str) -> bool:
    return queue.users is None or user in queue.users


def _known(found: Sequence[policy_views.Queue], user: str) -> bool:
    """The scheduler knows users by what waits, runs, or is named by the policy."""
    return any(
        (not queue.declared and queue.path.rpartition("/")[2] == user) or user in (queue.users or ())
        for queue in found
    )


def _pool_row(pool: policy_views.Pool) -> tuple[str, ...]:
    return (
        f"{pool.name} (default)" if pool.default else pool.name,
        str(pool.nodes) if pool.connected == pool.nodes else f"{pool.connected} of {pool.nodes}",
        f"{pool.gpus_free} of {pool.gpus}" if pool.gpus else "-",
        f"{_gpus(pool.cpu_milli_free)} of {_gpus(pool.cpu_milli)}",
        str(pool.waiting),
        "; ".join(_rules(pool)) or "all",
    )


def _rules(pool: policy_views.Pool) -> Iterator[str]:
    if pool.users is not None:
        yield f"users {', '.join(pool.users) or 'none'}"
    if pool.queues is not None:
        yield f"queues {', '.join(pool.queues) or 'none'}"
    if pool.max_gpu_milli_per_job is not None:
        yield f"jobs of up to {pool.max_gpu_milli_per_job / 1000:g} GPUs"
    if pool.max_timeout_us is not None:
        yield f"for up to {out.human_time(pool.max_timeout_us)}"
    if pool.timeout_us not in (None, pool.max_timeout_us):
        yield f"usually {out.human_time(pool.timeout_us or 0)}"


def _window_lines(pool: policy_views.Pool, now_us: int) -> Iterator[str]:
    """Of those that are not over."""
    for window in sorted(pool.maintenance, key=lambda window: window.from_us):
        why = f" ({window.why})" if window.why else ""
        span = f"from {moment_text(window.from_us)} to {moment_text(window.to_us)}"
        if window.from_us <= now_us < window.to_us:
            yield f"{pool.name} is under maintenance until {moment_text(window.to_us)}{why}"
        elif now_us < window.from_us:
            yield f"{pool.name} is under maintenance {span}{why}"
    for one in sorted(pool.reservations, key=lambda one: one.from_us):
        if now_us < one.to_us:
            yield _reserved_line(pool.name, one, begun=one.from_us <= now_us)


def _reserved_line(pool: str, one: policy_views.Reservation, *, begun: bool) -> str:
    """`fast/exam: n1, n2 are reserved for users ann until 2026-12-01 10:00 UTC (grading)`."""
    whom = [] if one.users is None else [f"users {', '.join(one.users)}"]
    whom += [] if one.queues is None else [f"queues {', '.join(one.queues)}"]
    names = ", ".join(one.node_names[:NODES_SHOWN]) or "no node"
    more = len(one.node_names) - NODES_SHOWN
    names += f" and {more} more" if more > 0 else ""
    lacks = f" ({len(one.node_names)} of {one.nodes})" if len(one.node_names) < one.nodes else ""
    until = moment_text(one.to_us)
    span = f"until {until}" if begun else f"from {moment_text(one.from_us)} to {until}"
    verb = "are" if len(one.node_names) > 1 else "is"
    why = f" ({one.why})" if one.why else ""
    return f"{pool}/{one.name}: {names}{lacks} {verb} reserved for {'; '.join(whom)} {span}{why}"


def _first_said(amount: policy_views.Quota) -> str:
    """GPUs, or where nothing is said of them, cpus."""
    if amount.gpu_milli is None and amount.cpu_milli is not None:
        return f"{_gpus(amount.cpu_milli)} cpu{'' if amount.cpu_milli == 1000 else 's'}"
    return _gpus(amount.gpu_milli)


def _gpus(milli: int | None) -> str:
    """Thousandths as people write them."""
    return "-" if milli is None else f"{milli / 1000:g}"
