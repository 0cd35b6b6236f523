"""The registry: what is in memory, and the one place that changes it.

Held by loop_engine.Engine and changed only inside a step; `take_changes` gives what the step's batch writes.
If the batch is not committed, the engine is thrown away with all of this. Edges are only written here: the
lineage grows with the history of jobs and is read from the store.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ...spec.asset_names import LATEST, Reference
from ...spec.errors import LimitExceeded, NotFound
from ...spec.ids import JobId, Micros
from ...spec.problems import nearest
from .assets import AliasMove, Asset, AssetKey, Edge, Endpoint, Named, Outputs, job_ref

ASSETS_MAX: Final = 100_000
ALIASES_MAX: Final = 100
"""Of one name."""
HISTORY_MAX: Final = 200
"""Moves of a name's aliases; older ones are forgotten."""


@dataclass(slots=True)
class Changes:
    """What a step has changed, to be written. None: it goes."""

    names: dict[AssetKey, Named] = field(default_factory=dict)
    assets: dict[tuple[str, str, str], Asset] = field(default_factory=dict)
    edges: dict[Edge, None] = field(default_factory=dict)
    endpoints: dict[str, Endpoint | None] = field(default_factory=dict)
    outputs: dict[JobId, Outputs | None] = field(default_factory=dict)

    @property
    def none(self) -> bool:
        return not (self.names or self.assets or self.edges or self.endpoints or self.outputs)


class Registry:
    """All that is registered."""

    def __init__(
        self,
        names: Sequence[Named] = (),
        assets: Sequence[Asset] = (),
        endpoints: Sequence[Endpoint] = (),
        outputs: Sequence[Outputs] = (),
    ) -> None:
        self.names: dict[AssetKey, Named] = {(one.kind, one.name): one for one in names}
        self.versions: dict[AssetKey, dict[str, Asset]] = {}
        """By name, in the order in which they were registered, with those that were deleted."""
        self.by_key: dict[str, Asset] = {}
        self.endpoints: dict[str, Endpoint] = {one.name: one for one in endpoints}
        self.outputs: dict[JobId, Outputs] = {one.job: one for one in outputs}
        self.count = 0
        self._changes = Changes()
        for asset in sorted(assets, key=lambda one: one.serial):
            self._keep(asset)

    # --- reading

    def named(self, kind: str, name: str) -> Named:
        """Raises NotFound, with the nearest name."""
        found = self.names.get((kind, name))
        if found is None:
            near = nearest(name, (other for of_kind, other in self.names if of_kind == kind))
            guess = f"; did you mean {near!r}?" if near else ""
            raise NotFound(
                f"there is no {kind} named {name!r}{guess}", hint=f"see `pace {kind} list`", nearest=near
            )
        return found

    def find(self, kind: str, asked: Reference) -> Asset:
        """A version that is there. Raises NotFound, with the nearest."""
        named = self.named(kind, asked.name)
        versions = self.versions.get((kind, asked.name), {})
        version = asked.version or self.aliased(named, asked.alias)
        found = versions.get(version)
        if found is None:
            there = [one.version for one in versions.values() if one.there]
            near = nearest(version, there) or (there[-1] if there else "")
            guess = f"; did you mean {asked.name}:{near}?" if near else ""
            raise NotFound(f"{kind} {asked.name} has no version {version!r}{guess}", nearest=near)
        if not found.there:
            raise NotFound(
                f"{found.ref} was deleted by {found.deleted_by}", hint=f"see `pace {kind} show {asked.name}`"
            )
        return found

    def aliased(self, named: Named, alias: str) -> str:
        """The version that an alias leads to. Raises NotFound."""
        if alias == LATEST:
            latest = self.latest(named.kind, named.name)
            if latest is None:
                raise NotFound(f"all versions of {named.kind} {named.name} were deleted")
            return latest.version
        version = named.aliases.get(alias)
        if version is None:
            near = nearest(alias, (*named.aliases, LATEST))
            guess = f"; did you mean {named.name}@{near}?" if near else ""
            raise NotFound(f"{named.kind} {named.name} has no alias {alias!r}{guess}", nearest=near)
        return version

    def latest(self, kind: str, name: str) -> Asset | None:
        """The one that was registered last, of those that are there."""
        versions = self.versions.get((kind, name), {})
        return next((one for one in reversed(versions.values()) if one.there), None)

    def users(self, asset: Asset) -> Iterator[str]:
        """Aliases and endpoints for which a version must stay, in words."""
        named = self.names[asset.kind, asset.name]
        yield from (
            f"alias {alias!r}" for alias, version in named.aliases.items() if version == asset.version
        )
        yield from (f"endpoint {one.name!r}" for one in self.endpoints.values() if asset.ref in one.uses)

    # --- changes

    def check_room(self, more: int) -> None:
        """Raises LimitExceeded where there may not be so many more versions."""
        if self.count + more > ASSETS_MAX:
            raise LimitExceeded(f"{self.count} versions are registered", hint="delete some", limit=ASSETS_MAX)

    def check_alias(self, named: Named, alias: str) -> None:
        """Raises LimitExceeded where the name may not have this one, too."""
        if alias not in named.aliases and len(named.aliases) >= ALIASES_MAX:
            raise LimitExceeded(
                f"{named.kind} {named.name} has {len(named.aliases)} aliases",
                hint="remove one",
                limit=ALIASES_MAX,
            )

    def add(self, asset: Asset, number: int | None) -> None:
        """A new version; `number`: where its name is one. Its serial is the name's next."""
        key = (asset.kind, asset.name)
        named = self.names.get(key) or Named(*key)
        next_number = named.next_number if number is None else max(named.next_number, number + 1)
        self._put_name(replace(named, next_number=next_number, next_serial=asset.serial + 1))
        self._keep(asset)
        self._changes.assets[asset.kind, asset.name, asset.version] = asset

    def bury(self, asset: Asset, by: str, now_us: Micros) -> Asset:
        """Delete a version: its name stays taken."""
        buried = replace(asset, deleted_us=now_us, deleted_by=by)
        self.versions[asset.kind, asset.name][asset.version] = buried
        self.by_key[asset.key] = buried
        self.count -= 1
        self._changes.assets[asset.kind, asset.name, asset.version] = buried
        return buried

    def move(self, named: Named, move: AliasMove) -> Named:
        """An alias leads elsewhere from now on."""
        aliases = {alias: version for alias, version in named.aliases.items() if alias != move.alias}
        if move.after:
            aliases[move.alias] = move.after
        moved = replace(named, aliases=aliases, history=(*named.history, move)[-HISTORY_MAX:])
        self._put_name(moved)
        return moved

    def connect(self, edges: Iterable[Edge]) -> None:
        """Lines of the lineage, and those to the checkpoints that they name; one that is there stays."""
        for edge in edges:
            self._changes.edges[edge] = None
            if edge.source.startswith("checkpoint:"):
                job = job_ref(int(edge.source.split(":")[1]))
                self._changes.edges[Edge(job, edge.source, "saved")] = None

    def put_endpoint(self, endpoint: Endpoint) -> None:
        """A new one, or one as it is from now on."""
        self.endpoints[endpoint.name] = self._changes.endpoints[endpoint.name] = endpoint

    def drop_endpoint(self, name: str) -> None:
        """Where it is there."""
        if self.endpoints.pop(name, None) is not None:
            self._changes.endpoints[name] = None

    def put_outputs(self, outputs: Outputs) -> None:
        self.outputs[outputs.job] = self._changes.outputs[outputs.job] = outputs

    def drop_outputs(self, job: JobId) -> None:
        """Where something is waited for."""
        if self.outputs.pop(job, None) is not None:
            self._changes.outputs[job] = None

    def take_changes(self) -> Changes:
        """Since the last call."""
        changes, self._changes = self._changes, Changes()
        return changes

    def _put_name(self, named: Named) -> None:
        key = (named.kind, named.name)
        self.names[key] = self._changes.names[key] = named

    def _keep(self, asset: Asset) -> None:
        self.versions.setdefault((asset.kind, asset.name), {})[asset.version] = asset
        self.by_key[asset.key] = asset
        self.count += asset.there
