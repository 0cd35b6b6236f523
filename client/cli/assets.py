"""`pace data` and `pace model`: versions registered, listed, shown, deleted; and aliases moved."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...spec.errors import InvalidRequest, PacelineError
from . import output as out
from .asset_tables import size_text
from .asset_verbs import aliaser, deleter, downloader, lister, shower
from .exports import export
from .options import connection, json_option, open_client

if TYPE_CHECKING:
    from ..registry_views import AssetSource
    from ..settings import Settings

SIGNATURE_BYTES_MAX = 64 << 10


@click.group(short_help="Register data, list and show its versions.")
def data() -> None:
    """Data assets: named versions of files, folders, URLs and literal values.

    A job names one as `inputs: {x: {path: "NAME:VERSION"}}`, or NAME@latest, or NAME@ALIAS.
    """


@click.group(short_help="Register models, list and show versions, move aliases, download.")
def model() -> None:
    """Models: named versions with their framework, signature, metrics and lineage.

    A job names one as `inputs: {x: {type: custom_model, path: "NAME:VERSION"}}`.
    """


def _about(command: Any) -> Any:
    """The options that say something of a version."""
    for option in reversed(
        (
            click.option("--version", default="", help="Its version. [the next number]"),
            click.option(
                "--type", "type_", default="", metavar="TYPE", help="As in job files. [by its files]"
            ),
            click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag; repeatable."),
            click.option("--description", default="", help="For people."),
            click.option("--alias", default="", help="Have this alias lead to it, too."),
        )
    ):
        command = option(command)
    return command


_of_job = click.option(
    "--job", metavar="JOB[:OUTPUT]", help="Of a job's output: OUTPUT where it has several."
)


@data.command(short_help="Register a version of data.")
@click.argument("name")
@click.argument("path", required=False)
@click.option("--value", help="A literal: a number, true, false, or a text.")
@_of_job
@_about
@json_option
@connection
def create(
    settings: "Settings",
    name: str,
    *,
    path: str | None,
    value: str | None,
    job: str | None,
    output: str,
    **about: Any,
) -> None:
    """Register data: a PATH (uploaded), a URL (stays there), a --value, or a --job's output.

    \b
    JSON: the asset; its keys as in the SDK's Asset.
    """
    from ..registry_views import OfJob

    sources: list[AssetSource | None] = [
        _of_path(path) if path is not None else None,
        _of_value(value) if value is not None else None,
        OfJob(*_numbered(job)) if job is not None else None,
    ]
    _register(
        settings, "data", name, _one(sources, "a PATH, a URL, --value or --job"), about=about, output=output
    )


@model.command(short_help="Register a version of a model.")
@click.argument("name")
@click.argument("path", required=False)
@_of_job
@click.option("--checkpoint", metavar="JOB[:STEP]", help="Of a job's checkpoint; the newest without STEP.")
@click.option(
    "--as", "form", type=click.Choice(["safetensors", "torch-export"]), help="Convert --checkpoint."
)
@click.option("--entry", default="", metavar="FILE.py:FUNCTION", help="With --as: it makes the module.")
@click.option(
    "--example", type=click.Path(path_type=Path), help="With --as: a JSON file, what the module takes."
)
@click.option("--sweep", metavar="SWEEP[:OUTPUT]", help="Of a sweep's best trial.")
@click.option("--trial", type=click.IntRange(0), help="Of this trial of --sweep.")
@click.option("--framework", default="", help="What made it, such as `torch 2.9`.")
@click.option("--signature", type=click.Path(path_type=Path), help="A JSON file: inputs, outputs, example.")
@click.option("--metric", "metrics", multiple=True, metavar="KEY=NUMBER", help="A metric; repeatable.")
@_about
@json_option
@connection
def register(
    settings: "Settings",
    name: str,
    *,
    path: str | None,
    job: str | None,
    checkpoint: str | None,
    form: str | None,
    entry: str,
    example: Path | None,
    sweep: str | None,
    trial: int | None,
    output: str,
    **about: Any,
) -> None:
    """Register a model: a PATH (uploaded), a --job's output, a --checkpoint, or a --sweep's best trial.

    With --as, a job converts the checkpoint first, in the code of the job that saved it.

    \b
    JSON: the asset; its keys as in the SDK's Asset.
    """
    from ..registry_views import OfJob

    sources: list[AssetSource | None] = [
        _of_path(path) if path is not None else None,
        OfJob(*_numbered(job)) if job is not None else None,
        _of_checkpoint(checkpoint) if checkpoint is not None else None,
        _of_trial(sweep, trial) if sweep is not None else None,
    ]
    source = _one(sources, "a PATH, --job, --checkpoint or --sweep")
    if form is not None or entry or example is not None:
        source = _converted(settings, source, form, entry, example)
    _register(settings, "model", name, source, about=about, output=output)


model.add_command(export)

for _group, _kind in ((data, "data"), (model, "model")):
    for _make in (lister, shower, aliaser, deleter, downloader):
        _group.add_command(_make(_kind))


def _register(
    settings: "Settings",
    kind: str,
    name: str,
    source: "AssetSource",
    *,
    about: dict[str, Any],
    output: str,
) -> None:
    said = {
        "version": about["version"],
        "type": about["type_"],
        "tags": dict(_pairs(about["tags"])),
        "description": about["description"],
        "alias": about["alias"],
        "framework": about.get("framework", ""),
        "signature": _signature(about.get("signature")),
        "metrics": {key: _number(key, text) for key, text in _pairs(about.get("metrics", ()))},
    }
    with open_client(settings) as client:
        made = client.register(kind, name, source, **said)
    if output == "json":
        out.show_json(made)
        return
    out.show(out.clean(f"{kind} {made.reference} is registered: {size_text(made)}"))
    out.hint(f"next: `pace {kind} show {made.reference}`, `pace lineage {kind}:{made.reference}`")


def _converted(
    settings: "Settings", source: "AssetSource", form: str | None, entry: str, example: Path | None
) -> "AssetSource":
    """The output of a job that has made a model folder of a checkpoint."""
    from ..conversion import OUTPUT, Conversion
    from ..registry_views import OfCheckpoint, OfJob

    if not isinstance(source, OfCheckpoint) or form is None:
        raise click.UsageError("--as goes with --checkpoint, and --entry and --example with --as")
    asked = Conversion(form, entry, example.read_text(encoding="utf-8") if example is not None else "")
    with open_client(settings) as client:
        job = client.convert(source.job, source.step, asked)
        out.show(f"job {job} converts it", err=True)
        done = client.wait(job)
    if done.exit_code != 0:
        raise PacelineError(f"job {job} has not converted it: {done.state}", hint=f"see `pace logs {job}`")
    return OfJob(job, OUTPUT)


def _one(sources: "Iterable[AssetSource | None]", expected: str) -> "AssetSource":
    given = [source for source in sources if source is not None]
    if len(given) != 1:
        raise click.UsageError(f"say once what to register: {expected}")
    return given[0]


def _of_path(text: str) -> "AssetSource":
    from ..registry_views import OfPath, OfUrl

    return OfUrl(text) if "://" in text and not text.startswith("file:") else OfPath(text)


def _of_value(text: str) -> "AssetSource":
    from ...spec.yaml_scalars import plain_scalar
    from ..registry_views import OfValue

    value = plain_scalar(text)
    return OfValue(value if isinstance(value, str | int | float | bool) else text)


def _of_checkpoint(text: str) -> "AssetSource":
    from ..registry_views import OfCheckpoint

    job, step = _numbered(text)
    if step and not step.isdecimal():
        raise click.UsageError(f"{text!r}: expected JOB or JOB:STEP")
    return OfCheckpoint(job, int(step or 0))


def _of_trial(text: str, trial: int | None) -> "AssetSource":
    from ..registry_views import OfTrial

    sweep, name = _numbered(text)
    return OfTrial(sweep, trial, name)


def _numbered(text: str) -> tuple[int, str]:
    """`12:name` -> 12, name."""
    number, _, name = text.partition(":")
    if not (number.isascii() and number.isdigit() and 0 < int(number[:20]) < 2**63):
        raise click.UsageError(f"{text!r}: expected a number, and perhaps a name after a colon")
    return int(number), name


def _pairs(texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{text!r}: expected KEY=VALUE")
        yield key, value


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"{key}={text}: expected a number") from None


def _signature(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(SIGNATURE_BYTES_MAX + 1))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is no JSON of at most {SIGNATURE_BYTES_MAX} bytes: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path} is no JSON object")
    return found
