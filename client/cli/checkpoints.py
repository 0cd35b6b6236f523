"""`pace checkpoints`, `checkpoint`, `restore`, `fork`, `preempt`: a job's saved states, and what to do with
them."""

from typing import TYPE_CHECKING

import click

from .. import views
from . import output as out
from .options import connection, job_argument, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings

WAIT_S = 120.0

COLUMNS = (
    out.Column("step", right=True),
    out.Column("attempt", right=True),
    out.Column("state", flex=True),
    out.Column("where", drop=3),
    out.Column("size", right=True),
    out.Column("age", right=True),
    out.Column("stall", right=True, drop=4),
    out.Column("kept as", flex=True, drop=1),
    out.Column("made", flex=True, drop=2),
)


@click.command(short_help="List a job's checkpoints, and what became of them.")
@job_argument
@json_option
@connection
def checkpoints(settings: "Settings", job: int, output: str) -> None:
    """List a job's checkpoints, newest first: those that count, and what became of the others.

    \b
    JSON: {"checkpoints": [{"step", "attempt", "path", "size_bytes",
    "accepted_us", "metrics", "stall_s", "persist_s", "why" (it was made),
    "job" (of a fork's first: whose it is), "kept" (why), "state" (good,
    damaged: ..., removed, set aside), "tiers"}, ...]}.
    """
    with open_client(settings) as client:
        found = client.checkpoints(job)
    if output == "json":
        out.show_json({"checkpoints": found})
    elif not found:
        out.hint(f"job {job} has no checkpoint: its script calls `run.save(step, ...)`")
    else:
        out.show_table(out.Table(COLUMNS, [_row(one) for one in found]))


def _row(one: views.Checkpoint) -> tuple[str, ...]:
    return (
        str(one.step),
        str(one.attempt) if one.job is None else f"{one.attempt} of job {one.job}",
        one.state,
        one.tiers,
        out.human_bytes(one.size_bytes),
        out.human_time(out.now_us() - one.accepted_us),
        f"{one.stall_s * 1000:.0f} ms",
        one.kept,
        one.why,
    )


@click.command(short_help="Have a running job save now.")
@job_argument
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.1, 86_400), default=WAIT_S, show_default=True,
    help="Seconds to wait for it.",
)  # fmt: skip
@json_option
@connection
def checkpoint(settings: "Settings", job: int, timeout_s: float, output: str) -> None:
    """Have a running job save at its next step, and wait until that is on disk.

    The script is asked through `run.should_save(step)`; one that decides by itself when it saves answers
    with its next save. JSON: the checkpoint, as in `pace checkpoints -o json`.
    """
    with open_client(settings) as client:
        made = client.checkpoint(job, timeout_s)
    if output == "json":
        out.show_json(made)
        return
    out.show(
        f"job {job}: checkpoint of step {made.step}, {out.human_bytes(made.size_bytes)}, stalled "
        f"{made.stall_s * 1000:.0f} ms, on disk after {made.persist_s:.2f} s"
    )


@click.command(short_help="Send a job back to a checkpoint.")
@job_argument
@click.option("--step", type=click.IntRange(0), required=True, help="Of the checkpoint to go on from.")
@json_option
@connection
def restore(settings: "Settings", job: int, step: int, output: str) -> None:
    """Send a job that waits or runs back to a checkpoint. What it had saved since does not count any more.

    A running attempt is over at once, and the next one goes on from there. A job that is over stays so: fork
    it. JSON: the job, as `pace show -o json` gives it.
    """
    with open_client(settings) as client:
        found = client.restore(job, step)
    if output == "json":
        out.show_json(found)
        return
    out.show(f"job {job} goes on from the checkpoint of step {step}, now in attempt {found.attempt}")


@click.command(short_help="Start a new job from another's checkpoint.")
@job_argument
@click.option("--from-step", "step", type=click.IntRange(0), required=True, help="Of the checkpoint.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Such as inputs.lr=0.1.")
@click.option("--name", default="", help="Name the job, instead of what its parent is called.")
@json_option
@connection
def fork(
    *, settings: "Settings", job: int, step: int, overrides: tuple[str, ...], name: str, output: str
) -> None:
    """Start a new job with the document of another (but what --set changes), from a checkpoint of that.

    The parent may run or be over; its checkpoint stays with the fork, whatever the parent lets go of. JSON:
    {"job", "parent_job", "parent_step"}.
    """
    with open_client(settings) as client:
        made = client.fork(job, step, overrides=overrides, name=name)
    if output == "json":
        out.show_json({"job": made, "parent_job": job, "parent_step": step})
        return
    out.show(f"job {made} is submitted: a fork of job {job} from step {step}")
    out.hint(f"next: `pace logs -f {made}`, `pace show {made}`")


@click.command(short_help="Have a job save and make way; it goes on later.")
@job_argument
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0, 3600),
    default=0.0,
    help="Seconds until SIGKILL. [default: what its saves take and a margin, at least its own grace_s]",
)
@json_option
@connection
def preempt(settings: "Settings", job: int, grace_s: float, output: str) -> None:
    """Have a job save and make way: its attempt ends, it waits again and goes on from there later.

    The script hears of it through `run.should_save()` and `run.should_stop()`, and by SIGTERM. JSON: the job.
    """
    with open_client(settings) as client:
        found = client.preempt(job, grace_s=grace_s)
    if output == "json":
        out.show_json(found)
        return
    out.show(f"job {job} is asked to save and make way; see it go: `pace timeline {job}`")
