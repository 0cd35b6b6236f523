"""`pace cordon`, `drain`, `uncordon`: nodes out of service, and back."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from .. import views
from . import output as out
from .main import EXIT_FAILED
from .options import Duration, connection, json_option, open_client

if TYPE_CHECKING:
    from ..base import WaitTimedOut
    from ..settings import Settings

SHOWN_MAX = 20

nodes_argument = click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
why_option = click.option(
    "--why", default="", metavar="TEXT", help="What for; `pace why` and `pace nodes` say it."
)


@click.command(short_help="Place no new tasks on nodes; what runs there goes on.")
@nodes_argument
@why_option
@json_option
@connection
def cordon(settings: "Settings", nodes: tuple[str, ...], why: str, output: str) -> None:
    """Place no new tasks on nodes (names or ids, as `pace nodes` has them). What runs there goes on.

    It stays so over restarts of the scheduler and of the agent, until `pace uncordon`. Jobs that no other
    node could run wait for it.

    \b
    JSON: {"nodes": [NODE, ...], "jobs": [NUMBER, ...]}: the nodes as in
    `pace nodes -o json`, and the jobs that were told to leave: none.
    """
    with open_client(settings) as client:
        done = client.cordon(*nodes, why=why)
    _tell(done, output)


@click.command(short_help="Empty nodes: what runs there saves and goes on elsewhere.")
@nodes_argument
@why_option
@click.option(
    "--deadline",
    "deadline_s",
    type=Duration(),
    help="The most that a job is given to save, as `90 s` or `10 min`. "
    "[default: what its saves take and a margin, at least its own grace_s]",
)
@click.option("--wait", is_flag=True, help="Wait until nothing runs there any more, and say who still does.")
@click.option(
    "--timeout", "timeout_s", type=Duration(), help="With --wait: the longest wait, as `90 s` or `10 min`."
)
@json_option
@connection
def drain(
    *,
    settings: "Settings",
    nodes: tuple[str, ...],
    why: str,
    deadline_s: float | None,
    wait: bool,
    timeout_s: float | None,
    output: str,
) -> int:
    """Empty nodes: as `pace cordon`, and each job with a task there is told to save and leave.

    It ends as by `pace preempt`, uses no retry, and goes on from what it saved where there is room. `pace
    nodes` says how many tasks are left, and when a node is drained. With --wait the exit code is 0 when all
    are, and 1 when the time is over before, or somebody has put one back.

    \b
    JSON: {"nodes": [NODE, ...], "jobs": [NUMBER, ...]}: the nodes as in
    `pace nodes -o json`, and the jobs that were told to leave. With --wait
    also "drained": BOOL, and "held_by": [NUMBER, ...]: jobs with tasks left.
    """
    if timeout_s is not None and not wait:
        raise click.UsageError("--timeout is for --wait")
    with open_client(settings) as client:
        if not wait:
            _tell(client.drain(*nodes, why=why, deadline_s=deadline_s or 0.0), output)
            return 0
        looks = client.watch_drain(*nodes, why=why, deadline_s=deadline_s or 0.0, timeout_s=timeout_s)
        done, late = _last_of(looks)
    drained = late is None and all(node.cordon is not None for node in done.nodes)
    if output == "json":
        out.show_json({**views.to_json(done), "drained": drained, "held_by": done.held_by})
    elif late is None:
        _tell(done, output)
    if late is not None:
        raise late
    return 0 if drained else EXIT_FAILED


@click.command(short_help="Put nodes back into service.")
@nodes_argument
@json_option
@connection
def uncordon(settings: "Settings", nodes: tuple[str, ...], output: str) -> None:
    """Put nodes back into service that were cordoned or drained.

    \b
    JSON: {"nodes": [NODE, ...], "jobs": []}.
    """
    with open_client(settings) as client:
        done = client.uncordon(*nodes)
    _tell(done, output)


def _last_of(looks: Iterator[views.Cordoned]) -> "tuple[views.Cordoned, WaitTimedOut | None]":
    """How the nodes stand in the end, each step told on the way; and the error where time was over."""
    from ..base import WaitTimedOut

    done = next(looks)
    try:
        while done.tasks_left:
            out.show(_left(done), err=True)
            done = next(looks)
    except WaitTimedOut as late:
        return done, late
    return done, None


def _left(done: views.Cordoned) -> str:
    """`3 tasks left on n1, n2: of jobs 4, 7`."""
    tasks = "1 task" if done.tasks_left == 1 else f"{done.tasks_left} tasks"
    busy = [node.name for node in done.nodes if node.cordon is not None and node.cordon.tasks_left]
    jobs = "job" if len(done.held_by) == 1 else "jobs"
    return f"{tasks} left on {_named(map(out.clean, busy))}: of {jobs} {_named(map(str, done.held_by))}"


def _named(names: Iterable[str]) -> str:
    those = tuple(names)
    more = f" and {len(those) - SHOWN_MAX} more" if len(those) > SHOWN_MAX else ""
    return ", ".join(those[:SHOWN_MAX]) + more


def _tell(done: views.Cordoned, output: str) -> None:
    if output == "json":
        out.show_json(done)
        return
    for node in done.nodes:
        out.show(f"{out.clean(node.name)} {_stands(node)}")
    if done.jobs:
        out.show(out.wrapped(_moves(done.jobs), 2))
    if any(node.cordon is not None and node.cordon.drains and node.cordon.tasks_left for node in done.nodes):
        out.hint("see them go: `pace nodes`")


def _stands(node: views.Node) -> str:
    if node.cordon is None:
        return f"is in service{'' if node.reason is None else f', but {out.clean(node.reason.text)}'}"
    left, drains = node.cordon.tasks_left, node.cordon.drains
    if not left:
        return "is drained" if drains else "is cordoned"
    tasks = "1 task" if left == 1 else f"{left} tasks"
    return f"is draining: {tasks} left" if drains else f"is cordoned; what runs there goes on: {tasks}"


def _moves(jobs: tuple[int, ...]) -> str:
    who = "job" if len(jobs) == 1 else "jobs"
    return (
        f"{who} {_named(map(str, jobs))} {'is' if len(jobs) == 1 else 'are'} told to save and go on elsewhere"
    )
