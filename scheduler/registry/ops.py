"""What may be asked of the registry, and how it is decided: checked whole first, then applied.

A call whose reply was lost may come again: what it made carries its key, so that nothing is made twice and
the answer is the same.
"""

from dataclasses import dataclass
from typing import Final

from ...spec.asset_names import LATEST, Reference
from ...spec.errors import Conflict, InvalidRequest, PacelineError
from ...spec.ids import JobId, Micros
from .assets import About, AliasMove, Asset, Content, Edge, Named, Outputs
from .registry import Registry

NUMBER_DIGITS_MAX: Final = 15
"""A longer version is a text, although it has digits alone."""


@dataclass(frozen=True, slots=True)
class Register:
    """A new version. Answer: the Asset. Raises Conflict when the version was ever given, LimitExceeded."""

    key: str
    kind: str
    name: str
    version: str
    """Empty: the next number."""
    content: Content
    about: About
    source: str
    user: str
    edges: tuple[tuple[str, str], ...] = ()
    """What it was made of, and how: (reference, relation)."""
    alias: str = ""
    """Leads there from now on, too."""


@dataclass(frozen=True, slots=True)
class MoveAlias:
    """Answer: the Named. Raises NotFound; Conflict when the alias is not where `before` says."""

    key: str
    kind: str
    name: str
    alias: str
    to: Reference | None
    """None: the alias goes."""
    user: str
    before: str | None = None
    """The version that it leads to now; empty: there is none; None: whatever it is."""


@dataclass(frozen=True, slots=True)
class DeleteAsset:
    """Answer: the Asset as it was buried. Raises NotFound; Conflict while it is used."""

    kind: str
    name: str
    version: str
    user: str


@dataclass(frozen=True, slots=True)
class Collected:
    """The named outputs of a job that has succeeded: all are registered, or none. Answer: None."""

    job: JobId
    assets: tuple[Register, ...]
    refused: str = ""
    """Why none can be; empty: they can."""


RegistryStimulus = Register | MoveAlias | DeleteAsset | Collected


def on_registry(registry: Registry, asked: RegistryStimulus, now_us: Micros) -> object:
    """Raises what the stimulus says; nothing has changed then."""
    match asked:
        case Register():
            return _register(registry, asked, now_us)
        case MoveAlias():
            return _move(registry, asked, now_us)
        case DeleteAsset():
            return _delete(registry, asked, now_us)
        case Collected():
            _collected(registry, asked, now_us)
    return None


def _register(registry: Registry, asked: Register, now_us: Micros) -> Asset:
    before = registry.by_key.get(asked.key)
    if before is not None:
        return before
    registry.check_room(1)
    _check_new(registry, asked)
    return _add(registry, asked, now_us)


def _add(registry: Registry, asked: Register, now_us: Micros) -> Asset:
    named = _named(registry, asked)
    version = asked.version or str(named.next_number)
    number = int(version) if version.isdecimal() and len(version) <= NUMBER_DIGITS_MAX else None
    asset = Asset(
        asked.kind,
        asked.name,
        version,
        named.next_serial,
        asked.content,
        asked.about,
        asked.source,
        asked.user,
        now_us,
        asked.key,
    )
    registry.add(asset, number)
    registry.connect(Edge(source, asset.ref, relation) for source, relation in asked.edges)
    if asked.alias:
        _lead(registry, asked, asset, now_us)
    return asset


def _check_new(registry: Registry, asked: Register) -> None:
    taken = registry.versions.get((asked.kind, asked.name), {}).get(asked.version)
    if taken is not None:
        was = "" if taken.there else ", and was deleted; versions are never given again"
        raise Conflict(
            f"{taken.ref} was registered by {taken.made_by}{was}",
            hint="name another version, or none: the next number is taken",
            version=asked.version,
        )
    if asked.alias:
        _check_alias(asked.alias)
        registry.check_alias(_named(registry, asked), asked.alias)


def _named(registry: Registry, asked: Register) -> Named:
    return registry.names.get((asked.kind, asked.name)) or Named(asked.kind, asked.name)


def _check_alias(alias: str) -> None:
    if alias == LATEST:
        raise InvalidRequest(f"the alias {LATEST!r} leads to the newest version by itself")


def _lead(registry: Registry, asked: Register, asset: Asset, now_us: Micros) -> None:
    named = registry.names[asked.kind, asked.name]
    before = named.aliases.get(asked.alias, "")
    registry.move(named, AliasMove(asked.alias, before, asset.version, asked.user, now_us, asked.key))


def _move(registry: Registry, asked: MoveAlias, now_us: Micros) -> Named:
    named = registry.named(asked.kind, asked.name)
    if any(move.key == asked.key for move in named.history):
        return named
    _check_alias(asked.alias)
    stands = named.aliases.get(asked.alias, "")
    if asked.before is not None and asked.before != stands:
        raise Conflict(
            f"{asked.name}@{asked.alias} leads to {stands or 'nothing'}, not to {asked.before or 'nothing'}"
            f"{_last_move(named, asked.alias)}",
            hint="look at what it leads to now, and ask again",
            stands=stands,
        )
    to = registry.find(asked.kind, asked.to).version if asked.to is not None else ""
    if to:
        registry.check_alias(named, asked.alias)
    return registry.move(named, AliasMove(asked.alias, stands, to, asked.user, now_us, asked.key))


def _last_move(named: Named, alias: str) -> str:
    last = next((move for move in reversed(named.history) if move.alias == alias), None)
    return f": {last.by} has moved it" if last is not None else ""


def _delete(registry: Registry, asked: DeleteAsset, now_us: Micros) -> Asset:
    buried = registry.versions.get((asked.kind, asked.name), {}).get(asked.version)
    if buried is not None and not buried.there:
        return buried
    asset = registry.find(asked.kind, Reference(asked.name, asked.version))
    users = list(registry.users(asset))
    if users:
        raise Conflict(
            f"{asset.ref} is used by {', '.join(users[:10])}",
            hint="move the alias, or take the deployment away, first",
            users=len(users),
        )
    return registry.bury(asset, asked.user, now_us)


def _collected(registry: Registry, asked: Collected, now_us: Micros) -> None:
    """What was told already is told again after a crash of the caller's."""
    stands = registry.outputs.get(asked.job)
    if stands is None or stands.refused:
        return
    refused = asked.refused or _why_none(registry, asked.assets)
    if refused:
        registry.put_outputs(Outputs(asked.job, refused=refused))
        return
    for each in asked.assets:
        _add(registry, each, now_us)
    registry.drop_outputs(asked.job)


def _why_none(registry: Registry, assets: tuple[Register, ...]) -> str:
    given = [(one.kind, one.name, one.version) for one in assets if one.version]
    if len(set(given)) < len(given):
        return "two outputs are to be the same version"
    try:
        registry.check_room(len(assets))
        for each in assets:
            _check_new(registry, each)
    except PacelineError as refusal:
        return refusal.message
    return ""
