"""`pace logs`: a job's output, so far or as it comes."""

from typing import TYPE_CHECKING

import click

from . import output as out
from . import stream
from .options import connection, job_argument, open_client

if TYPE_CHECKING:
    from ..settings import Settings


@click.command(short_help="Print a job's output, or follow it.")
@job_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over.")
@click.option("--rank", type=click.IntRange(0), help="Only of this rank, without a prefix.")
@click.option("--attempt", type=click.IntRange(1), help="Of this attempt. [default: the current or last one]")
@click.option("--tail", type=click.IntRange(1), metavar="BYTES", help="Only the last bytes of each rank.")
@connection
def logs(
    *, settings: "Settings", job: int, follow: bool, rank: int | None, attempt: int | None, tail: int | None
) -> None:
    """Print a job's output: stdout and stderr of its ranks, each line after its rank when there are several.

    Bytes pass unchanged into pipes and files; on a terminal, escape sequences other than colours and line
    drawing are shown and not obeyed.
    """
    of_attempt, of_rank, offset = attempt or 0, -1 if rank is None else rank, -(tail or 0)
    if follow:
        from ..settings import check_alive
        from .follow import follow as follow_job

        check_alive(settings)
        follow_job(settings, job, attempt=of_attempt, rank=of_rank, offset=offset)
        return
    with open_client(settings) as client:
        found = client.job(job)
        writer = stream.writer_for(found, of_rank)
        empty = True
        for chunk in client.logs(job, attempt=of_attempt, rank=of_rank, offset=offset):
            writer.write(chunk)
            empty = False
        writer.finish()
    if empty:
        out.hint(f"job {job} is {found.state} and has printed nothing" + ("" if found.is_over else " yet"))
    elif not found.is_over:
        out.hint(f"job {job} goes on: `pace logs -f {job}`")
