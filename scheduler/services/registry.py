"""The registry: versions of data and models registered, found, given aliases, deleted; and the lineage.

What is large (copying, hashing) is done before the loop is asked; a version is there when all of it is kept.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc.aio

from ...proto.generated import registry_pb2, registry_pb2_grpc
from ...proto.limits import PAGE_BYTES_MAX, PAGE_DEFAULT, PAGE_MAX
from ...spec.asset_names import Reference, parse_asset
from ...spec.errors import InvalidRequest
from ...spec.problems import escaped
from ..keeping import Keeper
from ..loop import Loop
from ..registry.assets import Asset, Named
from ..registry.ops import DeleteAsset, MoveAlias, Register
from ..registry.registry import Registry
from .asset_sources import Sources, about, check_kind, check_word
from .checks import check_asked, check_user
from .lineage import Lineage

_Context = grpc.aio.ServicerContext[Any, Any]
_NOBODY: Final = "a client"


class RegistryService(registry_pb2_grpc.RegistryServicer):
    """Role: client."""

    def __init__(self, loop: Loop, sources: Sources, keeper: Keeper, lineage: Lineage) -> None:
        self._loop, self._sources, self._keeper, self._lineage = loop, sources, keeper, lineage
        self._registering: dict[str, asyncio.Task[Asset]] = {}
        """By key: a call that is repeated while the first one works waits for that one."""

    async def Register(
        self, request: registry_pb2.RegisterRequest, context: _Context
    ) -> registry_pb2.AssetView:
        _check_register(request)
        task = self._registering.get(request.key)
        if task is None:
            task = self._registering[request.key] = asyncio.create_task(self._register(request))
            task.add_done_callback(lambda _: self._registering.pop(request.key, None))
        asset = await asyncio.shield(task)
        return await self._loop.read_registry(lambda registry: asset_view(registry, asset))

    async def _register(self, request: registry_pb2.RegisterRequest) -> Asset:
        made = await self._loop.read_registry(lambda registry: registry.by_key.get(request.key))
        if made is not None:
            return made
        found = await self._sources.find(request)
        return await self._loop.submit(
            Register(
                request.key,
                request.kind,
                request.name,
                request.version,
                found.kept.content,
                about(request, found),
                found.source,
                request.user or _NOBODY,
                found.edges,
                request.alias,
            )
        )

    async def Get(self, request: registry_pb2.GetAssetRequest, context: _Context) -> registry_pb2.NamedAsset:
        check_kind(request.kind)
        asked = _reference(request.reference)

        def read(registry: Registry) -> tuple[Asset, registry_pb2.AssetView, registry_pb2.NameView]:
            asset = registry.find(request.kind, asked)
            named = registry.names[request.kind, asset.name]
            return asset, asset_view(registry, asset), name_view(named)

        asset, view, name = await self._loop.read_registry(read)
        if asset.content.tree:
            view.damage = await self._keeper.damage(asset.content.tree)
        return registry_pb2.NamedAsset(asset=view, name=name)

    async def List(
        self, request: registry_pb2.ListAssetsRequest, context: _Context
    ) -> registry_pb2.ListAssetsReply:
        check_kind(request.kind)
        limit = request.limit or PAGE_DEFAULT
        if not 1 <= limit <= PAGE_MAX:
            raise InvalidRequest(f"limit is {request.limit}; expected 1 to {PAGE_MAX}")

        def read(registry: Registry) -> registry_pb2.ListAssetsReply:
            if request.name:
                return _versions(registry, request, limit)
            return _names(registry, request, limit)

        return await self._loop.read_registry(read)

    async def SetAlias(
        self, request: registry_pb2.SetAliasRequest, context: _Context
    ) -> registry_pb2.NameView:
        check_asked(request.key, request.user)
        check_kind(request.kind)
        check_word("alias", request.alias)
        to = None
        if request.to:
            sign = "" if request.to.startswith("@") else ":"
            to = _reference(f"{request.name}{sign}{request.to}")
        before = request.before if request.HasField("before") else None
        user = request.user or _NOBODY
        asked = MoveAlias(request.key, request.kind, request.name, request.alias, to, user, before)
        return name_view(await self._loop.submit(asked))

    async def Delete(
        self, request: registry_pb2.DeleteAssetRequest, context: _Context
    ) -> registry_pb2.AssetView:
        check_user(request.user)
        check_kind(request.kind)
        check_word("version", request.version)
        asked = DeleteAsset(request.kind, request.name, request.version, request.user or _NOBODY)
        asset = await self._loop.submit(asked)
        return await self._loop.read_registry(lambda registry: asset_view(registry, asset))

    async def Lineage(
        self, request: registry_pb2.LineageRequest, context: _Context
    ) -> registry_pb2.LineageReply:
        return await self._lineage.of(request.reference, request.depth)


def asset_view(registry: Registry, asset: Asset) -> registry_pb2.AssetView:
    """For a client."""
    content, said = asset.content, asset.about
    named = registry.names[asset.kind, asset.name]
    return registry_pb2.AssetView(
        kind=asset.kind,
        name=asset.name,
        version=asset.version,
        type=said.type,
        tree=content.tree,
        file=content.file,
        url=content.url,
        etag=content.etag,
        value=content.value,
        bytes=content.size_bytes,
        files=content.files,
        framework=said.framework,
        signature=said.signature,
        metrics=said.metrics,
        tags=said.tags,
        description=said.description,
        source=asset.source,
        made_by=asset.made_by,
        made_us=asset.made_us,
        deleted_us=asset.deleted_us or 0,
        deleted_by=asset.deleted_by,
        aliases=sorted(alias for alias, version in named.aliases.items() if version == asset.version),
    )


def name_view(named: Named) -> registry_pb2.NameView:
    """For a client."""
    moves = [
        registry_pb2.AliasMove(
            alias=move.alias, before=move.before, after=move.after, by=move.by, at_us=move.at_us
        )
        for move in named.history
    ]
    return registry_pb2.NameView(kind=named.kind, name=named.name, aliases=named.aliases, moves=moves)


def _check_register(request: registry_pb2.RegisterRequest) -> None:
    check_asked(request.key, request.user)
    check_kind(request.kind)
    check_word("name", request.name)
    if request.version:
        check_word("version", request.version)
    if request.alias:
        check_word("alias", request.alias)


def _reference(text: str) -> Reference:
    found = parse_asset(text)
    if found is None:
        raise InvalidRequest(
            f"{escaped(text[:80])!r} is no reference; expected NAME, NAME:VERSION or NAME@ALIAS"
        )
    return found


def _names(
    registry: Registry, request: registry_pb2.ListAssetsRequest, limit: int
) -> registry_pb2.ListAssetsReply:
    names = sorted(name for kind, name in registry.names if kind == request.kind and name > request.after)
    latest = (registry.latest(request.kind, name) for name in names)
    return _page(registry, (one for one in latest if one is not None), limit, lambda one: one.name)


def _versions(
    registry: Registry, request: registry_pb2.ListAssetsRequest, limit: int
) -> registry_pb2.ListAssetsReply:
    registry.named(request.kind, request.name)
    versions = registry.versions.get((request.kind, request.name), {})
    before = versions[request.after].serial if request.after in versions else 1 << 62
    found = (
        one for one in reversed(versions.values()) if one.serial < before and (one.there or request.deleted)
    )
    return _page(registry, found, limit, lambda one: one.version)


def _page(
    registry: Registry, found: Any, limit: int, called: Callable[[Asset], str]
) -> registry_pb2.ListAssetsReply:
    reply = registry_pb2.ListAssetsReply()
    size = 0
    for asset in found:
        if len(reply.assets) == limit or size > PAGE_BYTES_MAX:
            return reply
        view = asset_view(registry, asset)
        size += view.ByteSize()
        reply.assets.append(view)
        reply.next = called(asset)
    reply.next = ""
    return reply
