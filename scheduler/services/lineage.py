"""What something was made of, and what was made of it: read from the store's edges, to any depth.

Upwards only what leads to it, downwards only what it leads to: what else a source was used for is not its
story.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator
from typing import Final

from ...proto.generated import registry_pb2
from ...spec.asset_names import WORD, parse_asset
from ...spec.errors import InvalidRequest
from ...spec.ids import JobId
from ...spec.problems import escaped
from ..loop import Loop
from ..records import job_from_row
from ..registry.assets import Asset
from ..registry.registry import Registry
from ..store.base import EdgeRow, Store
from ..sweeps.studies import Studies
from .lookup import Lookup

NODES_MAX: Final = 2_000
EDGES_MAX: Final = 1_000
"""Of one node."""
RECORDS_MAX: Final = 20
"""Of one job: a gang has one on each of its nodes."""
DEPTH_DEFAULT: Final = 20
DEPTH_MAX: Final = 100

_REFERENCE: Final = re.compile(
    rf"(job|sweep):[1-9]\d{{0,17}}|checkpoint:[1-9]\d{{0,17}}:\d{{1,18}}|code:[0-9a-f]{{64}}"
    rf"|environment:\S{{1,500}}|endpoint:{WORD}|deployment:{WORD}/{WORD}|(data|model):{WORD}(:{WORD})",
    re.ASCII,
)


class Lineage:
    """Reads it."""

    def __init__(self, loop: Loop, store: Store, lookup: Lookup) -> None:
        self._loop, self._store, self._lookup = loop, store, lookup

    async def of(self, asked: str, depth: int) -> registry_pb2.LineageReply:
        """Raises NotFound, InvalidRequest."""
        if not 0 <= depth <= DEPTH_MAX:
            raise InvalidRequest(f"depth is {depth}; expected 0 to {DEPTH_MAX}")
        reference = await self._loop.read_registry(lambda registry: _resolved(registry, asked))
        if reference.startswith("job:"):
            await self._lookup.job(JobId(int(reference[4:])))  # raises NotFound
        depth = depth or DEPTH_DEFAULT
        nodes, edges, more = await asyncio.to_thread(_walk, self._store, reference, depth)
        texts = await self._texts(nodes)
        return registry_pb2.LineageReply(
            reference=reference,
            nodes=[registry_pb2.LineageNode(reference=one, text=texts.get(one, "")) for one in nodes],
            edges=[registry_pb2.LineageEdge(**edge._asdict()) for edge in edges],
            more=more,
        )

    async def _texts(self, nodes: Iterable[str]) -> dict[str, str]:
        """What a person wants to know of each."""
        nodes = list(nodes)
        texts = await self._loop.read_registry(lambda registry: _asset_texts(registry, nodes))
        texts |= await self._loop.read_studies(lambda studies: _sweep_texts(studies, nodes))
        texts |= {one: "interpreter, packages, driver, GPUs" for one in nodes if one.startswith("record:")}
        jobs = {one: JobId(int(one[4:])) for one in nodes if one.startswith("job:")}
        live = await self._loop.read(
            lambda state: {
                number: f"{state.jobs[number].name}, {state.jobs[number].state}"
                for number in jobs.values()
                if number in state.jobs
            }
        )
        over = [number for number in jobs.values() if number not in live]
        rows = await asyncio.to_thread(lambda: [self._store.job(number) for number in over])
        live |= {row.job: f"{row.name}, {row.state}" for row in rows if row is not None}
        return texts | {one: live[number] for one, number in jobs.items() if number in live}


def _resolved(registry: Registry, asked: str) -> str:
    """As edges call it. Raises NotFound, InvalidRequest."""
    kind, _, rest = asked.partition(":")
    if kind in ("data", "model"):
        found = parse_asset(rest)
        if found is not None and found.version:
            registry.named(kind, found.name)
            if found.version in registry.versions[kind, found.name]:
                return asked  # also of one that was deleted
        if found is not None:
            return registry.find(kind, found).ref
    if _REFERENCE.fullmatch(asked) is None:
        raise InvalidRequest(
            f"{escaped(asked[:100])!r} is nothing that has a lineage",
            hint="expected job:N, sweep:N, model:NAME:VERSION, data:NAME@ALIAS, checkpoint:JOB:STEP,"
            " code:TREE, environment:KEY, endpoint:NAME or deployment:NAME/NAME",
        )
    return asked


def _walk(store: Store, start: str, depth: int) -> tuple[list[str], list[EdgeRow], bool]:
    """In a thread."""
    nodes: dict[str, None] = {start: None}
    edges: dict[EdgeRow, None] = {}
    more = False
    for upwards in (True, False):
        seen, line = {start}, [start]
        for _ in range(depth):
            following: list[str] = []
            for one in line:
                of = store.edges(target=one, limit=EDGES_MAX) if upwards else None
                found = list(of if of is not None else store.edges(source=one, limit=EDGES_MAX))
                more = more or len(found) == EDGES_MAX
                found += _records(store, one) if upwards else ()
                for edge in found:
                    other = edge.source if upwards else edge.target
                    if other not in nodes and len(nodes) >= NODES_MAX:
                        more = True
                        continue
                    edges[edge] = None
                    nodes[other] = None
                    if other not in seen:
                        seen.add(other)
                        following.append(other)
            line = following
        more = more or bool(line)
    return list(nodes), list(edges), more


def _records(store: Store, reference: str) -> Iterator[EdgeRow]:
    """What the last attempt of a job ran with: told by its nodes, so that no edge of it is written."""
    row = store.job(JobId(int(reference[4:]))) if reference.startswith("job:") else None
    if row is not None:
        for record in list(dict.fromkeys(task.record for task in job_from_row(row).tasks))[:RECORDS_MAX]:
            if record:
                yield EdgeRow(f"record:{record}", reference, "ran with")


def _asset_texts(registry: Registry, nodes: Iterable[str]) -> dict[str, str]:
    texts = {}
    for one in nodes:
        kind, _, rest = one.partition(":")
        name, _, version = rest.partition(":")
        asset = registry.versions.get((kind, name), {}).get(version)
        if asset is not None:
            texts[one] = _asset_text(asset)
        elif kind == "endpoint" and rest in registry.endpoints:
            texts[one] = "an endpoint"
    return texts


def _asset_text(asset: Asset) -> str:
    gone = f"; deleted by {asset.deleted_by}" if not asset.there else ""
    what = asset.about.framework or asset.about.type
    return f"{what}, by {asset.made_by}{gone}"


def _sweep_texts(studies: Studies, nodes: Iterable[str]) -> dict[str, str]:
    numbers = {one: int(one[6:]) for one in nodes if one.startswith("sweep:")}
    return {one: studies.by_id[number].name for one, number in numbers.items() if number in studies.by_id}
