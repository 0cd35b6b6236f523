"""`pace deploy`, `endpoints`, `traffic`, `invoke`, `rollback`, `undeploy`: models that answer requests."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...spec.errors import InvalidRequest
from . import output as out
from .options import connection, json_option, open_client

if TYPE_CHECKING:
    from ..endpoint_views import Deployment, Endpoint
    from ..sdk import Client
    from ..settings import Settings

HISTORY_SHOWN = 10


class Shares(click.ParamType[tuple[str, int]]):
    """DEPLOYMENT=PERCENT."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        name, equals, percent = str(value).partition("=")
        if (
            not name
            or not equals
            or not (percent.isascii() and percent.isdigit() and int(percent[:4]) <= 100)
        ):
            self.fail(f"{value!r} is no share; expected DEPLOYMENT=PERCENT, such as blue=90", param, ctx)
        return name, int(percent)


endpoint_argument = click.argument("name", metavar="ENDPOINT")


@click.command(short_help="Have a model answer requests under an endpoint's name.")
@click.argument("model", required=False, default="")
@click.option("-f", "--file", type=click.Path(), help="A deployment's file; the options below go before it.")
@click.option("--name", "endpoint", default="", help="The endpoint; it is made when there is none.")
@click.option("--deployment", default="", help="Its deployment. [main]")
@click.option("--replicas", type=click.IntRange(1, 1000), help="How many replicas. [1]")
@click.option(
    "--max-replicas", type=click.IntRange(1, 1000), help="As many as the requests need, up to this."
)
@click.option("--engine", type=click.Choice(["auto", "torch", "score", "mlflow", "ray"]), help="[auto]")
@click.option("--code", type=click.Path(), help="A folder with a scoring script, which is packed.")
@click.option("--script", default="", metavar="FILE", help="The scoring script in it. [score.py]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Such as resources.gpus=1.")
@click.option("--no-wait", is_flag=True, help="Return at once, not when it is ready.")
@json_option
@connection
def deploy(*, settings: "Settings", output: str, no_wait: bool, **given: Any) -> int:
    """Have MODEL (NAME:VERSION, NAME@ALIAS, or a folder that every node sees) answer requests.

    A deployment that is there already is replaced replica by replica, without a request lost; if the new one
    is not ready in time, or fails, the old one stays.

    \b
    JSON: the endpoint; its keys as in the SDK's Endpoint.
    Exit code: 1 when it did not become ready, or was taken back.
    """
    from ..endpoint_verbs import read_deployment

    source = _source(given)
    spec, _ = read_deployment(source, given["overrides"])
    with open_client(settings) as client:
        found = client.deploy(spec)
        made = found.of(spec.name)
        assert made is not None
        if not no_wait:
            found = follow(client, found, spec.name, made.revision)
    made = found.of(spec.name)
    well = made is not None and (no_wait or (made.state == "ready" and not made.why))
    if output == "json":
        out.show_json(found)
    else:
        show_endpoint(found)
    return 0 if well else 1


@click.command(short_help="List endpoints, or show all about one.")
@click.argument("name", required=False, default="", metavar="[ENDPOINT]")
@json_option
@connection
def endpoints(settings: "Settings", name: str, output: str) -> None:
    """List endpoints; with a name, all about that one: its deployments, replicas, traffic and story.

    \b
    JSON: {"endpoints": [ENDPOINT, ...]}, or with a name the endpoint; keys as in
    the SDK's Endpoint.
    """
    with open_client(settings) as client:
        if name:
            one = client.endpoint(name)
            if output == "json":
                out.show_json(one)
            else:
                show_endpoint(one)
            return
        found = client.endpoints()
    if output == "json":
        out.show_json({"endpoints": found})
        return
    columns = (
        out.Column("ENDPOINT"),
        out.Column("DEPLOYMENT"),
        out.Column("MODEL", flex=True),
        out.Column("STATE"),
        out.Column("READY", right=True),
        out.Column("TRAFFIC", right=True),
        out.Column("REQUESTS", right=True, drop=1),
        out.Column("URL", flex=True, drop=2),
    )
    rows = [
        (
            found_one.endpoint,
            one.deployment,
            one.model,
            one.state,
            f"{one.ready}/{one.wanted}",
            f"{found_one.traffic.get(one.deployment, 0)} %",
            str(one.requests),
            found_one.url or "-",
        )
        for found_one in found
        for one in found_one.deployments
    ]
    out.show_table(out.Table(columns, rows))


@click.command(short_help="Say which share of the requests each deployment gets.")
@endpoint_argument
@click.argument("shares", nargs=-1, required=True, type=Shares(), metavar="DEPLOYMENT=PERCENT...")
@click.option(
    "--mirror", "copies", multiple=True, type=Shares(), metavar="DEPLOYMENT=PERCENT", help="Copies."
)
@json_option
@connection
def traffic(
    settings: "Settings",
    name: str,
    shares: tuple[tuple[str, int], ...],
    copies: tuple[tuple[str, int], ...],
    output: str,
) -> None:
    """Say which share of the requests each deployment gets; the shares are 100 together.

    With --mirror, that percentage of the requests is also copied to a deployment, whose answers nobody gets.

    \b
    JSON: the endpoint.
    """
    with open_client(settings) as client:
        found = client.set_traffic(name, _unique(shares), mirror=_unique(copies))
    if output == "json":
        out.show_json(found)
    else:
        show_endpoint(found)


@click.command(short_help="Send a request to an endpoint, and print the answer.")
@endpoint_argument
@click.option(
    "--data", required=True, type=click.Path(), metavar="FILE", help="The body; - is standard input."
)
@click.option("--path", default="", help="Of the URL. [/v2/models/ENDPOINT/infer, or /score]")
@click.option("--deployment", default="", help="That one, whatever the traffic.")
@click.option("--timeout", default=60.0, type=click.FloatRange(0.001, 86_400), help="Seconds. [60]")
@connection
def invoke(settings: "Settings", *, name: str, data: str, path: str, deployment: str, timeout: float) -> int:
    """Send a file to an endpoint and print what it answers.

    A body of the Open Inference Protocol's form goes to /v2/models/ENDPOINT/infer, any other to /score.

    Exit code: 1 when the answer is an error.
    """
    from ..invoking import invoke as send

    body = sys.stdin.buffer.read() if data == "-" else _read(data)
    with open_client(settings) as client:
        found = client.endpoint(name)
    answer = send(found, body, path=path, deployment=deployment, timeout_s=timeout)
    text = answer.body if answer.body.endswith(b"\n") else answer.body + b"\n"
    if out.is_terminal():
        click.echo("\n".join(out.clean(line) for line in text.decode("utf-8", "replace").splitlines()))
    else:
        sys.stdout.buffer.write(text)
    if answer.status >= 400:
        click.echo(f"error: {name} answered {answer.status}", err=True)
        return 1
    return 0


@click.command(short_help="Bring an endpoint back to what it was before its last change.")
@endpoint_argument
@json_option
@connection
def rollback(settings: "Settings", name: str, output: str) -> None:
    """Bring an endpoint back to what it was before somebody changed it last: models and traffic.

    \b
    JSON: the endpoint.
    """
    with open_client(settings) as client:
        found = client.rollback(name)
    if output == "json":
        out.show_json(found)
    else:
        show_endpoint(found)


@click.command(short_help="End an endpoint, or one of its deployments.")
@endpoint_argument
@click.argument("deployment", required=False, default="", metavar="[DEPLOYMENT]")
@json_option
@connection
def undeploy(settings: "Settings", name: str, deployment: str, output: str) -> None:
    """End an endpoint, or one deployment that has no traffic. What is being answered is answered yet.

    \b
    JSON: the endpoint.
    """
    with open_client(settings) as client:
        found = client.undeploy(name, deployment)
    if output == "json":
        out.show_json(found)
    else:
        what = f"deployment {deployment} of endpoint {name}" if deployment else f"endpoint {name}"
        out.show(f"{what} ends")


def follow(client: "Client", found: "Endpoint", name: str, revision: int) -> "Endpoint":
    """Until that revision is ready, has failed, or was taken back."""
    told = ""
    with out.working(f"waiting for {name} of {found.endpoint}") as say:
        for seen in client.watch_endpoint(found.endpoint):
            one = seen.of(name)
            if one is None or one.state == "failed":
                return seen
            if one.state == "ready" and one.revision >= revision and (seen.url or one.revision > revision):
                return seen
            now = f"{name} of {found.endpoint}: {one.ready} of {one.wanted} replicas are ready"
            if now != told:
                say(now)
            told = now
    return client.endpoint(found.endpoint)


def show_endpoint(found: "Endpoint") -> None:
    """As a person reads it."""
    state = "  (being deleted)" if found.deleting else ""
    out.show(f"endpoint {found.endpoint}  {found.url or 'does not answer yet'}{state}", style="bold")
    if found.key:
        out.show(f"  key: {found.key}")
    router = f"job {found.router_job}" if found.router_job else "none yet"
    out.show(f"  router: {router}")
    for one in found.deployments:
        _show_deployment(found, one)
    if found.history:
        out.show("  story:")
        for event in found.history[-HISTORY_SHOWN:]:
            out.show(out.wrapped(f"    {out.clock(event.at_us)}  {out.clean(event.text)}", 14))


def _show_deployment(found: "Endpoint", one: "Deployment") -> None:
    share, copies = found.traffic.get(one.deployment, 0), found.mirror.get(one.deployment, 0)
    copied = f", copies of {copies} %" if copies else ""
    out.show(
        out.wrapped(
            f"  {one.deployment}: {out.clean(one.model)}, revision {one.revision}, {one.state},"
            f" {one.ready} of {one.wanted} replicas ready, {share} % of the traffic{copied};"
            f" {one.requests} requests, {one.failures} failed",
            4,
        )
    )
    if one.why:
        out.show(out.wrapped(f"    {out.clean(one.why)}", 6), style="yellow")
    for replica in one.replicas:
        where = f" at {replica.url}" if replica.url else ""
        old = "" if replica.revision == one.revision else f" (revision {replica.revision})"
        out.show(
            f"    job {replica.job}{old}: {replica.state}{where}, {replica.in_flight} requests under way"
        )


def _source(given: dict[str, Any]) -> Any:
    """The file with what the options say, or a mapping of what they say."""
    said: dict[str, Any] = {
        "model": given["model"],
        "endpoint_name": given["endpoint"],
        "name": given["deployment"],
        "engine": given["engine"],
        "instance_count": given["replicas"],
    }
    said = {key: value for key, value in said.items() if value}
    if code := _code(given):
        said["code_configuration"] = code
    if given["max_replicas"]:
        least = given["replicas"] or 1
        said["scale_settings"] = {"min_instances": least, "max_instances": given["max_replicas"]}
    if given["file"]:
        texts = [f"{key}={value}" for key, value in said.items() if not isinstance(value, dict)]
        texts += [
            f"{key}.{below}={value}"
            for key, values in said.items()
            if isinstance(values, dict)
            for below, value in values.items()
        ]
        given["overrides"] = (*texts, *given["overrides"])
        return given["file"]
    for key, option in (("model", "MODEL"), ("endpoint_name", "--name")):
        if key not in said:
            raise click.UsageError(f"{option} is missing; or give a deployment's file with --file")
    return _with_overrides(said, given)


def _code(given: dict[str, Any]) -> dict[str, Any]:
    """The folder is one of here, wherever the file lies."""
    code = {"code": str(Path(given["code"]).absolute())} if given["code"] else {}
    if given["script"] or (code and not given["file"]):
        code["scoring_script"] = given["script"] or "score.py"
    return code


def _with_overrides(said: dict[str, Any], given: dict[str, Any]) -> Any:
    from ...spec.deployment_reading import deployment_from_data

    texts, given["overrides"] = given["overrides"], ()
    return deployment_from_data(said, "the command line", texts)


def _unique(shares: tuple[tuple[str, int], ...]) -> dict[str, int]:
    names = [name for name, _ in shares]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise InvalidRequest(f"{twice} is given twice", hint="one share for each deployment")
    return dict(shares)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"cannot read {path}: {error.strerror}", hint="give the path of a file"
        ) from None
