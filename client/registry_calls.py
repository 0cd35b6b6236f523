"""The verbs on data, models and the lineage: each request once, and how its reply becomes a view; see
calls.py."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..proto.generated import registry_pb2
from ..spec.errors import InvalidRequest
from ..spec.ids import Micros
from ..spec.stores import Seen
from .calls import PAGE
from .registry_views import (
    AliasMove,
    Asset,
    AssetName,
    AssetSource,
    Lineage,
    LineageEdge,
    LineageNode,
    OfCheckpoint,
    OfJob,
    OfTrial,
    OfUrl,
    OfValue,
)
from .rpc import Call

REGISTER_S = 600.0
"""All of it is copied and hashed meanwhile; a call that is repeated goes on with the same."""


@dataclass(frozen=True, slots=True)
class About:
    """What is said of a version when it is registered."""

    version: str = ""
    type: str = ""
    framework: str = ""
    signature: Mapping[str, Any] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    alias: str = ""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Of an OfPath, once its tree is in the content store."""

    tree: str
    path: str


Ready = AssetSource | Uploaded | Seen


def register(kind: str, name: str, source: Ready, said: About, *, key: str, user: str) -> Call[Asset]:
    request = registry_pb2.RegisterRequest(
        key=key,
        user=user,
        kind=kind,
        name=name,
        version=said.version,
        type=said.type,
        framework=said.framework,
        signature=json.dumps(dict(said.signature)) if said.signature else "",
        metrics=said.metrics,
        tags=said.tags,
        description=said.description,
        alias=said.alias,
    )
    _add_source(request, source)
    return Call(lambda stubs: stubs.registry.Register, request, to_asset, REGISTER_S)


def asset(kind: str, reference: str) -> Call[tuple[Asset, AssetName]]:
    request = registry_pb2.GetAssetRequest(kind=kind, reference=reference)
    return Call(
        lambda stubs: stubs.registry.Get, request, lambda reply: (to_asset(reply.asset), to_name(reply.name))
    )


def page(
    kind: str, name: str, *, limit: int, after: str, deleted: bool
) -> Call[tuple[tuple[Asset, ...], str]]:
    request = registry_pb2.ListAssetsRequest(
        kind=kind, name=name, limit=min(limit, PAGE), after=after, deleted=deleted
    )
    return Call(
        lambda stubs: stubs.registry.List,
        request,
        lambda reply: (tuple(map(to_asset, reply.assets)), reply.next),
    )


def set_alias(
    kind: str, name: str, alias: str, to: str, before: str | None, *, key: str, user: str
) -> Call[AssetName]:
    request = registry_pb2.SetAliasRequest(
        key=key, user=user, kind=kind, name=name, alias=alias, to=to, before=before
    )
    return Call(lambda stubs: stubs.registry.SetAlias, request, to_name)


def delete(kind: str, name: str, version: str, *, user: str) -> Call[Asset]:
    request = registry_pb2.DeleteAssetRequest(kind=kind, name=name, version=version, user=user)
    return Call(lambda stubs: stubs.registry.Delete, request, to_asset)


def lineage(reference: str, depth: int) -> Call[Lineage]:
    request = registry_pb2.LineageRequest(reference=reference, depth=depth)
    return Call(lambda stubs: stubs.registry.Lineage, request, _to_lineage)


def _add_source(request: registry_pb2.RegisterRequest, source: Ready) -> None:
    match source:
        case OfJob(job, output):
            request.output.job, request.output.output = job, output
        case OfCheckpoint(job, step):
            request.checkpoint.job, request.checkpoint.step = job, step
        case OfTrial(sweep, trial, output):
            request.trial.sweep, request.trial.output = sweep, output
            if trial is not None:
                request.trial.trial = trial
        case Uploaded(tree, path):
            request.tree.tree, request.tree.path = tree, path
        case Seen(url, etag, size, files):
            request.url.url, request.url.etag = url, etag
            request.url.bytes, request.url.files = size, files
        case OfValue(value):
            request.value = json.dumps(value)
        case OfUrl():
            raise InvalidRequest(f"nobody has looked at {source.url}")
        case _:
            raise InvalidRequest(f"{source} has not been uploaded")


def to_asset(view: registry_pb2.AssetView) -> Asset:
    return Asset(
        view.kind,
        view.name,
        view.version,
        view.type,
        view.tree,
        view.file,
        view.url,
        view.etag,
        json.loads(view.value) if view.value else None,
        view.bytes,
        view.files,
        view.framework,
        json.loads(view.signature) if view.signature else {},
        dict(view.metrics),
        dict(view.tags),
        view.description,
        view.source,
        view.made_by,
        Micros(view.made_us),
        Micros(view.deleted_us) if view.deleted_us else None,
        view.deleted_by,
        tuple(view.aliases),
        view.damage,
    )


def to_name(view: registry_pb2.NameView) -> AssetName:
    moves = (
        AliasMove(move.alias, move.before, move.after, move.by, Micros(move.at_us)) for move in view.moves
    )
    return AssetName(view.kind, view.name, dict(view.aliases), tuple(moves))


def _to_lineage(reply: registry_pb2.LineageReply) -> Lineage:
    return Lineage(
        reply.reference,
        tuple(LineageNode(node.reference, node.text) for node in reply.nodes),
        tuple(LineageEdge(edge.source, edge.target, edge.relation) for edge in reply.edges),
        reply.more,
    )
