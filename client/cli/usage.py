"""`pace usage`: who has used how many GPU hours, and what came of them."""

import time
from typing import TYPE_CHECKING

import click

from .. import answer_views
from . import output as out
from .options import Moment, connection, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings

TELL_S = 2.0

NONE_SAID = {"queue": "(default)", "project": "(none)", "user": "(nobody)"}


@click.command(short_help="Sum up GPU hours by user, queue or project.")
@click.option("--by", type=click.Choice(["user", "queue", "project"]), default="user", show_default=True)
@click.option(
    "--since",
    "since_us",
    type=Moment(),
    default=None,
    metavar="TIME",
    help="A day (2026-11-01), a time, or how long ago (`7 d`).  [default: the first job]",
)
@json_option
@connection
def usage(*, settings: "Settings", by: str, since_us: int | None, output: str) -> None:
    """Sum up GPU hours by user, queue or project (`experiment_name`), from the ledgers of all jobs, those
    that run included.

    productive is what ranks trained and kept, lost is what had to be done again, other went into starts,
    stalls of saves and gangs that hung. They add up to allocated. `pace timeline JOB` has one job's ledger.

    \b
    JSON keys: by, since_us (null: from the first job on), until_us, jobs
    (that were looked at), rows (name, jobs, allocated_gpu_hours,
    productive_gpu_hours, lost_gpu_hours, other_gpu_hours,
    allocated_cpu_hours).
    """
    with open_client(settings) as client:
        found = client.usage(by, since_us=since_us or 0, on_progress=_Progress())
    if output == "json":
        out.show_json(found)
        return
    if not found.rows:
        out.hint("no job has held anything in that time")
        return
    columns = (
        out.Column(by, flex=True),
        out.Column("jobs", right=True),
        out.Column("GPU hours", right=True),
        out.Column("productive", right=True),
        out.Column("lost", right=True, drop=1),
        out.Column("other", right=True, drop=2),
        out.Column("cpu hours", right=True, drop=3),
    )
    out.show_table(out.Table(columns, [_row(by, row) for row in found.rows]))


class _Progress:
    """Says how far it is, when it takes longer than a person waits without a word."""

    def __init__(self) -> None:
        self._told_s = time.monotonic()

    def __call__(self, so_far: answer_views.UsageSoFar) -> None:
        if time.monotonic() - self._told_s >= TELL_S:
            self._told_s = time.monotonic()
            out.hint(f"{so_far.jobs_read} of {so_far.jobs} jobs are read ...")


def _row(by: str, row: answer_views.UsageRow) -> tuple[str, ...]:
    return (
        row.name or NONE_SAID[by],
        str(row.jobs),
        hours(row.allocated_gpu_hours),
        _share(row.productive_gpu_hours, row.allocated_gpu_hours),
        _share(row.lost_gpu_hours, row.allocated_gpu_hours),
        _share(row.other_gpu_hours, row.allocated_gpu_hours),
        hours(row.allocated_cpu_hours),
    )


def hours(value: float) -> str:
    if 0 < value < 0.005:
        return "<0.01"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _share(part: float, whole: float) -> str:
    return f"{hours(part)} ({part / whole:.0%})" if whole else "-"
