"""`pace submit`: job files in, job numbers out, and the way on."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import output as out
from .options import connection, json_option, open_client, open_submitter

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
    """Submit files of jobs and sweeps (`-`: standard input). All are checked before the first is sent, and
    all jobs go or none.

    Relative paths in a file are below its folder, which is also where the job runs unless `code` says
    otherwise.

    \b
    JSON: {"jobs": [{"job", "name", "file", "warnings"}, ...], "sweeps":
    [{"sweep", "name", "file", "warnings"}, ...]}; keys of a warning: source,
    line, column, key, text. With --dry-run: as `pace plan`.
    """
    if follow and (len(files) > 1 or output == "json"):
        raise click.UsageError("--follow takes one file, and text")
    prepared = [prepare_file(file, overrides, name) for file in files]
    if dry_run:
        from .plans import show_plan

        show_plan(settings, prepared, 0, output)
        return 0
    with open_submitter(settings) as client:
        sweeps = [(client.submit_sweep(one), one) for one in prepared if one.is_sweep]
        jobs = [one for one in prepared if not one.is_sweep]
        numbers = list(zip(client.submit_prepared(jobs), jobs, strict=True))
    if output == "json":
        out.show_json(
            {
                "jobs": [{"job": number, **_as_json(job)} for number, job in numbers],
                "sweeps": [{"sweep": number, **_as_json(one)} for number, one in sweeps],
            }
        )
        return 0
    for kind, made in (("sweep", sweeps), ("job", numbers)):
        for number, one in made:
            for caution in one.cautions:
                out.show(out.clean(f"warning: {caution}"), style="yellow", err=True)
            # To a follower stdout is the job's own.
            out.show(f"{kind} {number} ({one.spec.label}) is submitted", err=follow)
    if follow:
        return _follow_sweep(settings, sweeps[0][0]) if sweeps else _follow_job(settings, numbers[0][0])
    out.hint(_next([number for number, _ in numbers], [number for number, _ in sweeps]))
    return 0


def _follow_job(settings: "Settings", number: int) -> int:
    from .follow import exit_code_of, follow

    return exit_code_of(follow(settings, number))


def _follow_sweep(settings: "Settings", number: int) -> int:
    from .sweeps import follow_sweep, show_sweep

    with open_client(settings) as client:
        found = follow_sweep(client, number)
    show_sweep(found)
    return 0 if found.state == "SUCCEEDED" else 1


def _next(jobs: list[int], sweeps: list[int]) -> str:
    """What one may want to do now."""
    if len(jobs) + len(sweeps) > 1:
        return "next: `pace jobs`, `pace sweep list`" if sweeps else "next: `pace jobs`"
    if sweeps:
        return f"next: `pace sweep show -f {sweeps[0]}`, `pace sweep trials {sweeps[0]}`"
    return f"next: `pace logs -f {jobs[0]}`, `pace show {jobs[0]}`"


def prepare_file(file: str, overrides: tuple[str, ...], name: str) -> "Prepared":
    from .. import documents

    if file != STDIN:
        return documents.prepare(Path(file), overrides=overrides, name=name)
    from ...spec.job import DOCUMENT_BYTES_MAX

    # One byte more than may be, so that the parser sees that it is too much.
    return documents.prepare_bytes(
        sys.stdin.buffer.read(DOCUMENT_BYTES_MAX + 1), "<stdin>", Path.cwd(), overrides=overrides, name=name
    )


def _as_json(job: "Prepared") -> dict[str, object]:
    return {
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
