"""`pace model export`: a model folder as the files that another platform takes."""

from pathlib import Path

import click

from . import output as out
from .options import json_option


@click.command(short_help="Write what Triton, KServe or vLLM takes.")
@click.argument("folder", type=click.Path(), metavar="FOLDER")
@click.argument("into", type=click.Path(), metavar="DIR")
@click.option(
    "--to", type=click.Choice(("triton", "kserve", "vllm")), required=True, help="The platform."
)  # fmt: skip
@click.option("--name", default="", help="Of the model, for its clients. Default: the folder's.")
@click.option("--storage-uri", default="", metavar="URI", help="KServe: where the model will lie.")
@click.option("--image", default="", help="KServe: with paceline, for models without a runtime there.")
@json_option
def export(folder: str, into: str, *, to: str, name: str, storage_uri: str, image: str, output: str) -> None:
    """Write what another platform takes of a model folder to DIR, which must be new or empty.

    \b
    JSON: {"files": [PATH, ...], "next": [TEXT, ...] what is left to do}.
    """
    from ...serving.exporters.base import Wish
    from ...serving.exporters.base import export as write
    from ...serving.folder import read_folder

    found = read_folder(Path(folder))
    wish = Wish(found, name or found.path.name, Path(into), storage_uri, image)
    made = write(to, wish)
    if output == "json":
        out.show_json({"files": [str(file) for file in made.files], "next": list(made.next)})
        return
    for file in made.files:
        out.show(out.clean(str(file)))
    for text in made.next:
        out.hint(out.clean(text))
