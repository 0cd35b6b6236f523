"""`pace reproduce`: a job again, from what was recorded of it."""

from typing import TYPE_CHECKING

import click

from . import output as out
from .options import connection, job_argument, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings


@click.command(short_help="Run a job again from its recorded code, data and parameters.")
@job_argument
@click.option("--dry-run", is_flag=True, help="Say what would be the same; submit nothing.")
@json_option
@connection
def reproduce(settings: "Settings", job: int, output: str, *, dry_run: bool) -> None:
    """Submit JOB again: its stored code and pinned data, its parameters, environment, command and resources.

    It says what is the same, and what could not be, each with its reason. An environment that
    is built gets the versions of all packages that JOB ran with. What else was another is seen
    when the new job runs: `pace environment NEW --against JOB`.

    \b
    JSON: {"of", "job" (null with --dry-run),
    "parts": [{"name", "same", "text"}, ...]}.
    """
    with open_client(settings) as client:
        found = client.reproduce(job, dry_run=dry_run)
    if output == "json":
        out.show_json(found)
        return
    head = (
        f"job {found.job} is submitted: it reproduces job {job}" if found.job else f"job {job} again would be"
    )
    out.show(head)
    for title, same in (("the same", True), ("not the same, or not known to be", False)):
        parts = [part for part in found.parts if part.same is same]
        if parts:
            out.show(f"{title}:", style="bold")
        for part in parts:
            out.show(out.wrapped(f"  {part.name:<14}{out.clean(part.text)}", 16))
    if found.job is not None:
        out.hint(
            f"next: `pace logs -f {found.job}`; what it ran with that was another, once it runs:"
            f" `pace environment {found.job} --against {job}`"
        )
