"""Versions of data and of models, as a person reads them."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from . import output as out

if TYPE_CHECKING:
    from ..registry_views import Asset, AssetName


def show_assets(found: "Iterable[Asset]") -> None:
    columns = (
        out.Column("NAME", flex=True),
        out.Column("VERSION", right=True),
        out.Column("ALIASES", flex=True),
        out.Column("TYPE"),
        out.Column("SIZE", right=True),
        out.Column("FRAMEWORK", drop=2),
        out.Column("FROM", flex=True, drop=1),
        out.Column("AGE", right=True, drop=3),
    )
    rows = [
        (
            one.name,
            one.version,
            "deleted" if one.deleted_us else ", ".join(one.aliases),
            one.type,
            size_text(one),
            one.framework,
            one.source,
            out.human_time(max(0, out.now_us() - one.made_us)),
        )
        for one in found
    ]
    out.show_table(out.Table(columns, rows))


def size_text(one: "Asset") -> str:
    if one.value is not None:
        return json.dumps(one.value)[:20]
    if one.url and not one.files:
        return "?"
    files = "1 file" if one.files == 1 else f"{one.files} files"
    return f"{out.human_bytes(one.bytes)} in {files}"


def show_asset(one: "Asset", name: "AssetName") -> None:
    out.show(out.clean(f"{one.kind} {one.reference}  {one.type}"), style="bold")
    lines = {
        "aliases": ", ".join(one.aliases),
        "value": "" if one.value is None else json.dumps(one.value),
        "size": size_text(one),
        "tree": one.tree,
        "file": one.file,
        "url": one.url,
        "etag": one.etag,
        "framework": one.framework,
        "metrics": ", ".join(f"{key} {value:g}" for key, value in sorted(one.metrics.items())),
        "tags": ", ".join(f"{key}={value}" for key, value in sorted(one.tags.items())),
        "about": one.description,
        "from": one.source,
        "made": f"{out.clock(one.made_us)} by {one.made_by}",
    }
    for label, text in lines.items():
        if text:
            out.show(out.wrapped(f"  {label:<10}{out.clean(text)}", 12))
    for part, said in one.signature.items():
        out.show(out.wrapped(f"  {out.clean(part)[:9]:<10}{out.clean(json.dumps(said))}", 12))
    if one.damage:
        out.show(out.wrapped(f"  damaged   {out.clean(one.damage)}", 12), style="bold red")
    for move in name.moves[-10:]:
        line = f"  @{move.alias}: {move.before or 'nothing'} -> {move.after or 'nothing'}"
        out.show(out.clean(f"{line}, by {move.by}, {out.clock(move.at_us)}"), style="dim")
