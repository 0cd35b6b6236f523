"""`pace hold`, `release`, `priority`: a job's place in line, by an admin."""

from typing import TYPE_CHECKING

import click

from ...spec.lifecycle import JobState
from .. import views
from . import output as out
from .options import JOB, connection, job_argument, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings

jobs_argument = click.argument("jobs", type=JOB, nargs=-1, required=True, metavar="JOB...")


@click.command(short_help="Keep jobs from starting until they are released.")
@jobs_argument
@click.option("--why", default="", metavar="TEXT", help="What for; `pace why` says it.")
@json_option
@connection
def hold(settings: "Settings", jobs: tuple[int, ...], why: str, output: str) -> None:
    """Keep jobs from starting until they are released. One that runs goes on, and does not start again.

    \b
    JSON: {"jobs": [JOB, ...]}, as in `pace show`.
    """
    with open_client(settings) as client:
        done = [client.hold(job, why=why) for job in dict.fromkeys(jobs)]
    _tell(done, output, "held")


@click.command(short_help="Let jobs start that were held.")
@jobs_argument
@json_option
@connection
def release(settings: "Settings", jobs: tuple[int, ...], output: str) -> None:
    """Let jobs start that were held; each stands in line where it stood.

    \b
    JSON: {"jobs": [JOB, ...]}, as in `pace show`.
    """
    with open_client(settings) as client:
        done = [client.release(job) for job in dict.fromkeys(jobs)]
    _tell(done, output, "released")


@click.command(short_help="Give a job another priority.", context_settings={"ignore_unknown_options": True})
@job_argument
@click.argument("priority", type=click.IntRange(-1000, 1000), metavar="N")
@json_option
@connection
def priority(settings: "Settings", job: int, priority: int, output: str) -> None:
    """Give a job another priority, -1000 to 1000: higher goes first.

    \b
    JSON: the job, as in `pace show`.
    """
    with open_client(settings) as client:
        done = client.set_priority(job, priority)
    if output == "json":
        out.show_json(done)
    else:
        out.show(f"job {done.job} ({out.clean(done.name)}) has priority {done.priority}")


def _tell(done: list[views.Job], output: str, what: str) -> None:
    if output == "json":
        out.show_json({"jobs": done})
        return
    for job in done:
        runs = "" if job.state is JobState.QUEUED or what != "held" else "; what runs goes on"
        out.show(f"job {job.job} ({out.clean(job.name)}) is {what}{runs}")
