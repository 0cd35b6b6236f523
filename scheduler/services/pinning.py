"""Inputs that name an asset or a URL, made what they mean now: the version is chosen when a job is accepted.

What is at a URL that is not registered, the client has seen: the scheduler opens no URL.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from ...content.expiry import GRACE_S
from ...content.paths import safe_relative
from ...content.store import ContentStore
from ...content.times import FRESH_S
from ...spec.errors import Conflict, InvalidRequest, NotFound, PacelineError
from ...spec.job import JobSpec
from ...spec.parts import DataInput, Pinned
from ...spec.problems import InvalidDocument, Problem
from ...spec.stores import Seen, shown_url, why_not_fetched
from ...spec.sweep import SweepSpec
from ...spec.work import Work
from ..loop import Loop
from ..registry.assets import Asset
from ..registry.registry import Registry

S = TypeVar("S", JobSpec, SweepSpec)

_KNOWN_MAX = 10_000

_TYPES = ("uri_file", "uri_folder", "mltable", "mlflow_model", "custom_model", "triton_model")


class Pinning:
    """Of what comes to the scheduler from outside."""

    def __init__(self, loop: Loop, content: ContentStore) -> None:
        self._loop, self._content = loop, content
        self._known: OrderedDict[str, float] = OrderedDict()
        """Trees that were seen to be there, and when."""

    async def pinned(self, specs: Sequence[S]) -> list[S]:
        """The same with their inputs' assets found; what they refer to stays from now on. Raises
        InvalidDocument, naming the input and the nearest name, and Conflict where code is gone."""
        found = await self._found(specs) if any(_named(spec) for spec in specs) else list(specs)
        await self._keep(found)
        return found

    async def _found(self, specs: Sequence[S]) -> list[S]:
        def read(registry: Registry) -> list[S]:
            made: dict[int, S] = {}
            for spec in specs:
                if id(spec) not in made:
                    made[id(spec)] = _pinned(registry, spec)
            return [made[id(spec)] for spec in specs]

        return await self._loop.read_registry(read)

    async def _keep(self, specs: Sequence[JobSpec | SweepSpec]) -> None:
        since_s = time.monotonic() - FRESH_S
        code = {tree for spec in specs if (tree := _work(spec).code_tree)}
        asked = [
            tree
            for tree in dict.fromkeys((*code, *(tree for spec in specs for tree in _others_of(spec))))
            if self._known.get(tree, since_s) <= since_s
        ]
        if not asked:
            return
        there = await asyncio.to_thread(lambda: {tree for tree in asked if self._has(tree)})
        for tree in sorted(code.intersection(asked) - there):
            raise Conflict(
                f"the code that was packed (tree {tree[:12]}) is not in the content store any more",
                hint="submit the folder again, and it is packed anew",
                tree=tree,
            )
        self._known |= dict.fromkeys(there, time.monotonic())
        while len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)

    def _has(self, hash_: str) -> bool:
        """Of a tree, or of a blob such as a git diff. Half of the grace is long enough for a round to see who
        refers to it, and of a large tree not all files are looked at at each submit."""
        return self._content.has_tree(hash_, GRACE_S / 2) or not self._content.missing([hash_])


def _work(spec: JobSpec | SweepSpec) -> Work:
    return spec.trial if isinstance(spec, SweepSpec) else spec


def _others_of(spec: JobSpec | SweepSpec) -> Iterator[str]:
    """What it refers to in the content store besides its code."""
    git = _work(spec).code_git
    if git is not None and git.diff:
        yield git.diff
    for value in spec.inputs.values():
        if isinstance(value, DataInput) and value.pinned is not None and value.pinned.tree:
            yield value.pinned.tree


def _named(spec: JobSpec | SweepSpec) -> bool:
    return any(
        isinstance(value, DataInput)
        and (value.reference is not None or value.pinned is not None or value.is_url)
        for value in spec.inputs.values()
    )


def _pinned(registry: Registry, spec: S) -> S:
    if not _named(spec):
        return spec
    inputs: dict[str, Any] = {}
    problems = []
    for name, value in spec.inputs.items():
        try:
            inputs[name] = _found(registry, value) if isinstance(value, DataInput) else value
        except PacelineError as error:
            near = str(error.fields.get("nearest", ""))
            text = error.message.partition("; did you mean")[0]
            problems.append(Problem("job", 0, 0, f"inputs.{name}.path", text, nearest=near))
    if problems:
        raise InvalidDocument(problems, hint="`pace data list` and `pace model list` say what there is")
    return spec.model_copy(update={"inputs": inputs})


def _found(registry: Registry, value: DataInput) -> DataInput:
    reference = value.reference
    if reference is None:
        return value.model_copy(update={"pinned": _seen(value) if value.is_url else None})
    try:
        asset = registry.find(value.kind, reference)
    except NotFound:
        other = "data" if value.kind == "model" else "model"
        if (other, reference.name) not in registry.names:
            raise
        types = "custom_model or mlflow_model" if other == "model" else "uri_folder or uri_file"
        raise NotFound(
            f"{reference.name} is no {value.kind} but a {other}: say `type: {types}`"
            if other == "model"
            else f"{reference.name} is no model but data: say `type: {types}`"
        ) from None
    if asset.content.url and value.mode != "direct" and (why := why_not_fetched(asset.content.url)):
        raise InvalidRequest(f"{asset.ref} is at {shown_url(asset.content.url)}: {why}; or say mode: direct")
    return value.model_copy(
        update={
            "type": asset.about.type if asset.about.type in _TYPES else value.type,
            "path": f"azureml:{asset.name}:{asset.version}",
            "pinned": _pin(asset, str(reference) if reference.alias else _asked_before(value, asset)),
        }
    )


def _asked_before(value: DataInput, asset: Asset) -> str:
    """Of a document that was pinned before: a job that is run again, or forked."""
    return value.pinned.asked if value.pinned is not None and value.pinned.asset == asset.ref else ""


def _pin(asset: Asset, asked: str) -> Pinned:
    content = asset.content
    file = content.file if asset.about.type == "uri_file" else ""
    return Pinned(
        asset=asset.ref,
        asked=asked,
        tree=content.tree,
        file=file,
        url=content.url,
        etag=content.etag,
        bytes=content.size_bytes if content.url else 0,
        files=content.files if content.url else 0,
        value=json.loads(content.value) if content.value else None,
    )


def _seen(value: DataInput) -> Pinned:
    """Raises InvalidRequest where nobody has looked."""
    pinned, url = value.pinned, value.path
    if pinned is None or pinned.url != url or pinned.files < 1:
        raise InvalidRequest(
            f"nobody has said what is at {shown_url(url)}: a client looks when it submits; or register it,"
            " or say mode: direct"
        )
    seen = Seen(url, pinned.etag, pinned.bytes, pinned.files)
    file = safe_relative(seen.file) if seen.file and value.kind == "data" else ""
    return Pinned(url=url, etag=seen.etag, bytes=seen.bytes, files=seen.files, file=file)
