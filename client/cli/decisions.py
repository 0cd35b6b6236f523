"""`pace decision`: why a job went where it went, long after."""

from typing import TYPE_CHECKING

import click

from .. import answer_views
from . import output as out
from .options import connection, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings

COLUMNS = (
    out.Column("node", flex=True),
    out.Column("room for", right=True),
    out.Column("fragmentation", right=True),
    out.Column("tie", right=True, drop=1),
    out.Column("chosen", right=True),
)


@click.command(short_help="Take a decision of the past again, and show what it saw.")
@click.argument("seq", type=click.IntRange(1), metavar="ID")
@json_option
@connection
def decision(settings: "Settings", seq: int, output: str) -> None:
    """Take a decision of the past again, and show what it saw: who was ahead, which nodes had room, which was
    the best, and whether the same comes out. ID is the seq of the event, as `pace timeline JOB -o json` has
    it.

    \b
    JSON keys: seq, at_us, kind, job, text, reasons (as in `why`), nodes
    (node_id, node, fits, step, tie, chosen), nodes_fit, nodes_in_service,
    again, instead.
    """
    with open_client(settings) as client:
        found = client.decision(seq)
    if output == "json":
        out.show_json(found)
        return
    for line in decision_lines(found):
        out.show(out.wrapped(line, 5))
    if found.nodes:
        out.show()
        out.show_table(out.Table(COLUMNS, [_row(node) for node in found.nodes]))


def decision_lines(found: answer_views.Decision) -> list[str]:
    lines = [f"decision {found.seq}, {out.clock(found.at_us)}: job {found.job}, {out.clean(found.text)}"]
    lines += [f"  before it: {out.clean(reason.text)}" for reason in found.reasons]
    if found.nodes:
        lines.append(f"  {found.nodes_fit} of {found.nodes_in_service} nodes in service had room")
    if found.again:
        lines.append("  taken again from the history before it: the same")
    else:
        lines.append(f"  taken again from the history before it: {out.clean(found.instead)}")
    return lines


def _row(node: answer_views.SeenNode) -> tuple[str, ...]:
    return (node.node, str(node.fits), str(node.step), str(node.tie), str(node.chosen or "-"))
