"""`pace submit`: job files in, job numbers out, and the way on."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import output as out
from .options import connection, json_option, open_client

if TYPE_CHECKING:
    from ..documents import Prepared
    from ..settings import Settings

STDIN = "-"


@click.command(short_help="Submit a job file, and follow it if asked.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Such as inputs.lr=0.1.")
@click.option("--name", default="", help="Name the job, instead of what the file says.")
@click.option("-f", "--follow", is_flag=True, help="Show its output until it is over; return its exit code.")
@click.option("--dry-run", is_flag=True, help="Say what would become of them; submit nothing.")
@json_option
@connection
def submit(
    *,
    settings: "Settings",
    files: tuple[str, ...],
    overrides: tuple[str, ...],
    name: str,
    follow: bool,
    dry_run: bool,
    output: str,
) -> int:
    """Submit job files (`-`: standard input). All are checked before the first is sent, and all go or none.

    Relative paths in a file are below its folder, which is also where the job runs unless `code` says
    otherwise.

    \b
    JSON: {"jobs": [{"job", "name", "file", "warnings"}, ...]}; keys of a
    warning: source, line, column, key, text. With --dry-run: as `pace plan`.
    """
    if follow and (len(files) > 1 or output == "json"):
        raise click.UsageError("--follow takes one job, and text")
    prepared = [prepare_file(file, overrides, name) for file in files]
    if dry_run:
        from .plans import show_plan

        show_plan(settings, prepared, 0, output)
        return 0
    with open_client(settings) as client:
        numbers = client.submit_prepared(prepared)
    if output == "json":
        out.show_json({"jobs": [_as_json(*pair) for pair in zip(numbers, prepared, strict=True)]})
        return 0
    for number, job in zip(numbers, prepared, strict=True):
        for caution in job.cautions:
            out.show(out.clean(f"warning: {caution}"), style="yellow", err=True)
        # To a follower stdout is the job's own.
        out.show(f"job {number} ({job.spec.label}) is submitted", err=follow)
    if follow:
        from .follow import exit_code_of
        from .follow import follow as follow_job

        return exit_code_of(follow_job(settings, numbers[0]))
    first = numbers[0]
    out.hint(
        f"next: `pace logs -f {first}`, `pace show {first}`" if len(numbers) == 1 else "next: `pace jobs`"
    )
    return 0


def prepare_file(file: str, overrides: tuple[str, ...], name: str) -> "Prepared":
    from .. import documents

    if file != STDIN:
        return documents.prepare(Path(file), overrides=overrides, name=name)
    from ...spec.job import DOCUMENT_BYTES_MAX

    # One byte more than may be, so that the parser sees that it is too much.
    return documents.prepare_bytes(
        sys.stdin.buffer.read(DOCUMENT_BYTES_MAX + 1), "<stdin>", Path.cwd(), overrides=overrides, name=name
    )


def _as_json(number: int, job: "Prepared") -> dict[str, object]:
    return {
        "job": number,
        "name": job.spec.label,
        "file": job.source,
        "warnings": [
            {
                "source": item.source,
                "line": item.line,
                "column": item.column,
                "key": item.key,
                "text": item.text,
            }
            for item in job.cautions
        ],
    }
