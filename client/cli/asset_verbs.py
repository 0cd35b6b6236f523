"""The verbs that `pace data` and `pace model` have alike: list, show, alias, delete, download."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import output as out
from .asset_tables import show_asset, show_assets, size_text
from .options import connection, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings


def lister(kind: str) -> click.Command:
    @click.command(name="list", short_help="List names, or the versions of one.")
    @click.argument("name", required=False)
    @click.option("--deleted", is_flag=True, help="With versions that were deleted.")
    @json_option
    @connection
    def list_(settings: "Settings", name: str | None, output: str, *, deleted: bool) -> None:
        """List all names with their latest version, or all versions of NAME, the newest first.

        \b
        JSON: {"assets": [ASSET, ...]}; keys as in the SDK's Asset.
        """
        with open_client(settings) as client:
            found = list(client.assets(kind, name or "", deleted=deleted))
        if output == "json":
            out.show_json({"assets": found})
            return
        show_assets(found)

    return list_


def shower(kind: str) -> click.Command:
    @click.command(short_help="Show all about one version.")
    @click.argument("reference", metavar="NAME[:VERSION|@ALIAS]")
    @json_option
    @connection
    def show(settings: "Settings", reference: str, output: str) -> int:
        """Show one version (the latest where only NAME is given), and its name's aliases.

        \b
        JSON: {"asset": ASSET, "name": NAME}; keys as in the SDK's Asset and AssetName.
        Exit code: 1 when some of its files are not there any more.
        """
        with open_client(settings) as client:
            found, name = client.asset(kind, reference)
        if output == "json":
            out.show_json({"asset": found, "name": name})
        else:
            show_asset(found, name)
        return 1 if found.damage else 0

    return show


def deleter(kind: str) -> click.Command:
    @click.command(short_help="Delete a version that nothing uses.")
    @click.argument("reference", metavar="NAME:VERSION")
    @connection
    def delete(settings: "Settings", reference: str) -> None:
        """Delete a version. One that an alias or a deployment uses is refused; no version is given twice."""
        name, version = _versioned(reference)
        with open_client(settings) as client:
            client.delete_asset(kind, name, version)
        out.show(f"{kind} {out.clean(reference)} is deleted")

    return delete


def aliaser(kind: str) -> click.Command:
    @click.command(short_help="Have an alias lead to a version.")
    @click.argument("reference", metavar="NAME@ALIAS")
    @click.argument("to", required=False, metavar="VERSION|@ALIAS")
    @click.option("--if", "before", metavar="VERSION", help="Only if it leads there now; `none`: nowhere.")
    @click.option("--remove", is_flag=True, help="The alias goes.")
    @json_option
    @connection
    def alias(
        settings: "Settings", reference: str, to: str | None, before: str | None, output: str, *, remove: bool
    ) -> None:
        """Have NAME@ALIAS lead to a version, in one step: readers see the one before, or the new one.

        \b
        JSON: the name with its aliases and their moves.
        """
        name, sign, word = reference.partition("@")
        if not sign or remove == (to is not None):
            raise click.UsageError("expected NAME@ALIAS and either a version or --remove")
        expected = "" if before == "none" else before
        with open_client(settings) as client:
            found = client.set_alias(kind, name, word, to or "", before=expected)
        if output == "json":
            out.show_json(found)
            return
        move = next(one for one in reversed(found.moves) if one.alias == word)
        out.show(out.clean(f"{name}@{word}: {move.before or 'nothing'} -> {move.after or 'nothing'}"))

    return alias


def downloader(kind: str) -> click.Command:
    @click.command(short_help="Write a version's files into a folder.")
    @click.argument("reference", metavar="NAME[:VERSION|@ALIAS]")
    @click.argument("to", metavar="FOLDER", type=click.Path(path_type=Path))
    @click.option(
        "--as",
        "form",
        default="files",
        type=click.Choice(["files", "mlflow"] if kind == "model" else ["files"]),
        help="mlflow: a folder that MLflow reads. [files]",
    )
    @json_option
    @connection
    def download(settings: "Settings", reference: str, to: Path, form: str, output: str) -> None:
        """Write a version's files into FOLDER, which must be new. Each file is verified.

        \b
        JSON: the asset; its keys as in the SDK's Asset.
        """
        with open_client(settings) as client:
            mlflow = form == "mlflow"
            found = client.download_mlflow(reference, to) if mlflow else client.download(kind, reference, to)
        if output == "json":
            out.show_json(found)
            return
        out.show(out.clean(f"{kind} {found.reference} is in {to}: {size_text(found)}"))

    return download


def _versioned(reference: str) -> tuple[str, str]:
    from ...spec.asset_names import parse_reference

    found = parse_reference(reference)
    if found is None or not found.version:
        raise click.UsageError(f"{reference!r}: expected NAME:VERSION")
    return found.name, found.version
