"""`pace lineage`: what something was made of, and what was made of it, as a tree, JSON or DOT."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import click

from . import output as out
from .options import connection, open_client

if TYPE_CHECKING:
    from ..registry_views import Lineage
    from ..settings import Settings

LINES_MAX = 500
"""Of a tree in which things stand more than once; JSON and DOT have each once."""


@click.command(short_help="Show what something was made of, and what was made of it.")
@click.argument("reference", metavar="X")
@click.option("--depth", type=click.IntRange(1, 100), help="Steps away at most. [20]")
@click.option(
    "-o", "--output", default="tree", type=click.Choice(["tree", "json", "dot"]), help="How to show it."
)
@connection
def lineage(settings: "Settings", reference: str, depth: int | None, output: str) -> None:
    """Show the lineage of X: a job's number, model:NAME:VERSION, data:NAME@ALIAS, sweep:N, code:TREE ...

    \b
    JSON: {"reference", "nodes": [{"reference", "text"}], "more",
           "edges": [{"source", "target", "relation"}, ...]}.
    DOT: for Graphviz, `pace lineage X -o dot | dot -Tsvg`.
    """
    asked = f"job:{reference}" if reference.isdecimal() else reference
    with open_client(settings) as client:
        found = client.lineage(asked, depth=depth or 0)
    match output:
        case "json":
            out.show_json(found)
        case "dot":
            for line in dot_lines(found):
                click.echo(line)
        case _:
            for line in tree_lines(found):
                out.show(out.clean(line))
    if found.more:
        out.hint("there is more: ask with a smaller --depth, or of a part of it")


def tree_lines(found: "Lineage") -> Iterator[str]:
    """Above all what it was made of, below all that was made of it; what has been told is not told again."""
    texts = {node.reference: node.text for node in found.nodes}
    above: dict[str, list[tuple[str, str]]] = {}
    below: dict[str, list[tuple[str, str]]] = {}
    for edge in found.edges:
        above.setdefault(edge.target, []).append((edge.source, edge.relation))
        below.setdefault(edge.source, []).append((edge.target, edge.relation))
    yield _line(found.reference, texts)
    for title, edges in (("made of", above), ("used by", below)):
        if found.reference in edges:
            yield f"{title}:"
            yield from _branches(found.reference, edges, texts)


def _branches(
    root: str, edges: Mapping[str, list[tuple[str, str]]], texts: Mapping[str, str]
) -> Iterator[str]:
    told = {root}
    waiting = [(other, relation, 1) for other, relation in reversed(edges[root])]
    for _ in range(LINES_MAX):
        if not waiting:
            return
        reference, relation, depth = waiting.pop()
        again = reference in told and bool(edges.get(reference))
        yield f"{'  ' * depth}{relation}: {_line(reference, texts)}{' (see above)' if again else ''}"
        if reference not in told:
            told.add(reference)
            more = edges.get(reference, [])
            waiting += [(other, kind, depth + 1) for other, kind in reversed(more)]
    yield "  ..."


def _line(reference: str, texts: Mapping[str, str]) -> str:
    text = texts.get(reference, "")
    return f"{reference}  ({text})" if text else reference


def dot_lines(found: "Lineage") -> Iterable[str]:
    """A digraph from what was first to what came of it."""
    yield "digraph lineage {"
    yield "  rankdir=LR; node [shape=box];"
    for node in found.nodes:
        bold = ", style=bold" if node.reference == found.reference else ""
        yield f"  {_quoted(node.reference)} [label={_quoted(node.reference, node.text)}{bold}];"
    for edge in found.edges:
        yield f"  {_quoted(edge.source)} -> {_quoted(edge.target)} [label={_quoted(edge.relation)}];"
    yield "}"


def _quoted(*lines: str) -> str:
    safe = (out.clean(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines if line)
    return '"' + "\\n".join(safe) + '"'
