"""The registry as rows and back: JSON text that the store never looks into."""

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import msgspec

from ...spec.errors import StoreFailure
from ..store.base import AssetNameRow, AssetRow, EdgeRow, EndpointRow, Loaded, OutputsRow, RegistryBatch
from .assets import Asset, Endpoint, Named, Outputs
from .registry import Changes, Registry

T = TypeVar("T")

_encode: Final = msgspec.json.Encoder().encode


def rows_of(changes: Changes) -> RegistryBatch:
    return RegistryBatch(
        names=[AssetNameRow(*key, _text(named)) for key, named in changes.names.items()],
        assets=[AssetRow(*key, _text(asset)) for key, asset in changes.assets.items()],
        edges=[EdgeRow(edge.source, edge.target, edge.relation) for edge in changes.edges],
        endpoints=[EndpointRow(name, _text(one)) for name, one in changes.endpoints.items() if one],
        endpoints_deleted=[name for name, one in changes.endpoints.items() if one is None],
        outputs=[OutputsRow(job, _text(one)) for job, one in changes.outputs.items() if one],
        outputs_deleted=[job for job, one in changes.outputs.items() if one is None],
    )


def registry_from_rows(loaded: Loaded) -> Registry:
    """Raises StoreFailure naming the row."""
    return Registry(
        _each(Named, loaded.asset_names, lambda row: f"{row.kind} {row.name}"),
        _each(Asset, loaded.assets, lambda row: f"{row.kind}:{row.name}:{row.version}"),
        _each(Endpoint, loaded.endpoints, lambda row: f"endpoint {row.name}"),
        _each(Outputs, loaded.outputs, lambda row: f"the outputs of job {row.job}"),
    )


def _text(one: Named | Asset | Endpoint | Outputs) -> str:
    return _encode(one).decode()


def _each(
    kind: type[T],
    rows: "Iterable[AssetNameRow | AssetRow | EndpointRow | OutputsRow]",
    called: "Callable[..., str]",
) -> list[T]:
    decode = msgspec.json.Decoder(kind).decode
    made = []
    for row in rows:
        try:
            made.append(decode(row.record))
        except msgspec.DecodeError as error:
            raise StoreFailure(
                f"the store's record of {called(row)} cannot be read: {error}",
                hint="the store was written by another version, or is damaged: restore a backup or use that"
                " version",
            ) from error
    return made
