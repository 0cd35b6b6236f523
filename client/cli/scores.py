"""`pace score`: a model over all rows of some data, as a job."""

from typing import TYPE_CHECKING, Any

import click

from . import output as out
from .options import connection, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings


@click.command(short_help="Have a model answer all rows of some data, as a job.")
@click.argument("model")
@click.option("--data", required=True, help="Rows: NAME:VERSION of data, or a path that every node sees.")
@click.option("--name", required=True, help="Under which the answers are registered, as data.")
@click.option("--instances", default=1, type=click.IntRange(1, 1000), help="How many share the rows. [1]")
@click.option("--engine", default="auto", type=click.Choice(["auto", "torch", "score", "mlflow", "ray"]))
@click.option("--gpus", default=0.0, type=click.FloatRange(0, 1024), help="Of each instance. [0]")
@click.option("-f", "--follow", is_flag=True, help="Show its output until it is over; return its exit code.")
@json_option
@connection
def score(*, settings: "Settings", follow: bool, output: str, **given: Any) -> int:
    """Have MODEL (NAME:VERSION, NAME@ALIAS, or a folder) answer all rows of some data.

    Rows are lines of JSON. Instances share them; one that fails or is lost costs only the part that it was
    at. The answers are an asset when all of them are there.

    \b
    JSON: {"job": N}.
    """
    from ..scoring import scoring_job
    from .follow import exit_code_of
    from .follow import follow as follow_job

    model, data, name = given.pop("model"), given.pop("data"), given.pop("name")
    gpus = given["gpus"]
    given["gpus"] = int(gpus) if gpus == int(gpus) else gpus
    with open_client(settings) as client:
        job = client.submit(scoring_job(model, data, name, **given))
        if output == "json":
            out.show_json({"job": job})
        else:
            out.show(f"job {job} scores {model} on {data}", err=follow)
    return exit_code_of(follow_job(settings, job)) if follow else 0
