"""`pace cordon`, `drain`, `uncordon`: nodes out of service, and back."""

from typing import TYPE_CHECKING

import click

from .. import views
from . import output as out
from .options import Duration, connection, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings

SHOWN_JOBS = 20

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
@json_option
@connection
def drain(
    *, settings: "Settings", nodes: tuple[str, ...], why: str, deadline_s: float | None, output: str
) -> None:
    """Empty nodes: as `pace cordon`, and each job with a task there is told to save and leave.

    It ends as by `pace preempt`, uses no retry, and goes on from what it saved where there is room. `pace
    nodes` says how many tasks are left, and when a node is drained.

    \b
    JSON: {"nodes": [NODE, ...], "jobs": [NUMBER, ...]}: the nodes as in
    `pace nodes -o json`, and the jobs that were told to leave.
    """
    with open_client(settings) as client:
        done = client.drain(*nodes, why=why, deadline_s=deadline_s or 0.0)
    _tell(done, output)


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
    shown = ", ".join(map(str, jobs[:SHOWN_JOBS]))
    more = f" and {len(jobs) - SHOWN_JOBS} more" if len(jobs) > SHOWN_JOBS else ""
    who = "job" if len(jobs) == 1 else "jobs"
    return f"{who} {shown}{more} {'is' if len(jobs) == 1 else 'are'} told to save and go on elsewhere"
