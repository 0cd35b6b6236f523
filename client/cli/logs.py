"""`pace logs`: a job's output, so far or as it comes."""

import json
from typing import TYPE_CHECKING, Any

import click

from ...spec.peers import group_text
from . import output as out
from . import stream
from .options import connection, job_argument, open_client
from .timeline import seconds

if TYPE_CHECKING:
    from ..settings import Settings
    from ..views import TimelineEntry


@click.command(short_help="Print a job's output, or follow it.")
@job_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over.")
@click.option("--rank", type=click.IntRange(0), help="Only of this rank, without a prefix.")
@click.option("--attempt", type=click.IntRange(1), help="Of this attempt. [default: the current or last one]")
@click.option("--tail", type=click.IntRange(1), metavar="BYTES", help="Only the last bytes of each rank.")
@click.option("--stacks", is_flag=True, help="Where the ranks were when the job seemed to hang.")
@connection
def logs(
    *,
    settings: "Settings",
    job: int,
    follow: bool,
    rank: int | None,
    attempt: int | None,
    tail: int | None,
    stacks: bool,
) -> None:
    """Print a job's output: stdout and stderr of its ranks, each line after its rank when there are several.

    With --stacks instead, the stack of each rank's main thread, innermost frame first, as it was taken when
    the gang made no step for too long. The ranks' output has them too.

    Bytes pass unchanged into pipes and files; on a terminal, escape sequences other than colours and line
    drawing are shown and not obeyed.
    """
    if stacks:
        _show_stacks(settings, job, rank, attempt)
        return
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


def _show_stacks(settings: "Settings", job: int, rank: int | None, attempt: int | None) -> None:
    with open_client(settings) as client:
        entries = client.timeline(job).entries
    looks = [each for each in entries if each.kind == "RanksInspected" and attempt in (None, each.attempt)]
    start_us = entries[0].at_us if entries else 0
    shown = False
    for entry in looks:
        for look in json.loads(entry.body)["ranks"]:
            if rank in (None, look["rank"]):
                shown = True
                out.show(out.clean(_head(entry, start_us, look)), style="bold")
                for frame in look["stack"].splitlines() or ["(no stack)"]:
                    out.show(f"    {out.clean(frame)}")
                for group in look.get("groups", ()):
                    out.show(f"    {out.clean(_collectives(group))}", style="dim")
    if not shown:
        out.hint(f"job {job}: no stacks were taken" + (f" in attempt {attempt}" if attempt else ""))


def _collectives(group: dict[str, Any]) -> str:
    """What torch's flight recorder says of one process group."""
    last = f"has begun no. {group['last']}, {group['last_name']}"
    waits = f"waits in no. {group['waiting']}, {group['waiting_name']}"
    return f"{group_text(group['group'])}: {last}; {waits if group['waiting'] else 'all have ended'}"


def _head(entry: "TimelineEntry", start_us: int, look: dict[str, Any]) -> str:
    how = f", by {look['how']}" if look["how"] else ""
    step = look["step"] if look["step"] >= 0 else look["steps"]
    return (
        f"rank {look['rank']}, attempt {entry.attempt}, {seconds(entry.at_us - start_us)}: step "
        f"{step}, {look['still_us'] / 1e6:.1f} s ago, {look['state']}{how}"
    )
