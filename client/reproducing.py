"""A job run again from what was recorded of it; and, part by part, what is the same and what cannot be.

The new job's document is the old one's: code by its tree, assets by their versions, and where its environment
is built, that with the versions of all packages that it ran with. What was not recorded
(a folder used in place, an input given by its path, the node) is named, with the reason: `same` is true only
of what can be shown to be the same.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..spec.asset_names import LATEST, parse_reference
from ..spec.errors import Conflict, InvalidRequest, PacelineError
from ..spec.ids import JobId
from ..spec.job import JobSpec, parse_canonical
from ..spec.parts import DataInput, Environment, Pinned
from ..spec.stores import shown_url
from . import calls, content_calls, registry_calls, rpc, submit_calls, views
from .looking import seen
from .packing import Calling
from .pinning import loose_lines, pinned_to
from .ran_with import RanWith, ran_with
from .registry_views import AssetName

_SEED: Final = re.compile(r"(?i)(?<![a-z])(?:[a-z]+[_-]?)?seed(?![a-z])")
_SHOWN: Final = 8
_ID_CHARS: Final = 12


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that a job is made of."""

    name: str
    """Such as `code`, `inputs.train`, `environment`, `seed`."""
    same: bool
    """False: it differs, or nobody can tell."""
    text: str
    """What it is; or why it could not be the same."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A job that runs another one again."""

    of: JobId
    job: JobId | None
    """None: nothing was submitted."""
    parts: tuple[Part, ...]


def reproduced(job: int, *, dry_run: bool) -> Calling[Reproduction]:
    """Submit it again, or only say what that would be. Raises NotFound (it, a version, or the checkpoint that
    it began from is gone), Conflict (its code is), InvalidDocument."""
    origin: views.Job = yield calls.job(job)
    if not origin.document:
        raise InvalidRequest(f"the document of job {job} is not there", hint="it was made by another version")
    recorded = parse_canonical(origin.document, f"job {job}")
    ran: tuple[RanWith, ...] = yield from ran_with(origin)
    spec = without_given_versions(recorded)
    spec = pinned_to(spec, ran[0]) if ran else spec
    code = yield from _code(recorded)
    parts = [Part("command", True, "as recorded, with its variables and parameters"), code]
    for name, value in recorded.inputs.items():
        if isinstance(value, DataInput):
            parts.append((yield from _input(f"inputs.{name}", value)))
    parts += [*environment_parts(recorded, spec, ran), seed_part(recorded), *output_parts(recorded, spec)]
    parts += yield from _origin(origin)
    parts.append(Part("resources", True, "as recorded, with retry, limits and checkpoint policy"))
    nodes = yield from _nodes()
    parts += [*driver_parts(ran, nodes), nodes_part(origin, recorded, nodes)]
    made = None
    if not dry_run:
        if not code.same and recorded.code_tree:
            raise Conflict(f"job {job} cannot run again: {code.text}", job=job)
        made = yield from _submitted(origin, spec)
    return Reproduction(origin.job, made, tuple(parts))


def without_given_versions(spec: JobSpec) -> JobSpec:
    """No version is given twice: an output that was registered under a given one gets the next number."""
    outputs = {
        name: one.model_copy(update={"version": ""}) if one.name else one
        for name, one in spec.outputs.items()
    }
    return spec.model_copy(update={"outputs": outputs})


def environment_parts(recorded: JobSpec, spec: JobSpec, ran: Sequence[RanWith]) -> Iterator[Part]:
    """`spec`: what runs now, its environment pinned where that can be."""
    key = recorded.environment_key
    had = f"; it had {ran[0].packages_count} packages" if ran and ran[0].packages_hash else ""
    if isinstance(recorded.environment, Environment) and recorded.environment.is_built:
        yield _built_part(recorded, spec, ran)
    elif recorded.environment_path:
        yield Part("environment", False, f"{key} as it is on the nodes by now{had}")
    elif key:
        which = (
            "what its tag names, or a node maps it to"
            if recorded.container_image
            else "what a node maps it to"
        )
        yield Part("environment", False, f"{key} is {which}, which may be another by now{had}")
    else:
        yield Part("environment", False, f"a node's own interpreter, which may be another by now{had}")
    if ran and ran[0].python:
        text = f"it ran with {ran[0].implementation} {ran[0].python}; a node may have another release of it"
        yield Part("python", False, text)


def _built_part(recorded: JobSpec, spec: JobSpec, ran: Sequence[RanWith]) -> Part:
    loose = loose_lines(recorded)
    others = sum(one.packages_hash != ran[0].packages_hash for one in ran)
    differ = f"; {others} of its {len(ran)} nodes had others" if others else ""
    if spec.environment != recorded.environment:
        lines = f"; {len(loose)} of its requirements named none" if loose else ""
        text = f"{ran[0].packages_count} packages, pinned to the versions that it ran with{lines}{differ}"
        return Part("environment", not others, text)
    if loose:
        why = "what it ran with cannot be pinned" if ran else "what it ran with is not recorded"
        names = ", ".join(loose[:_SHOWN])
        return Part("environment", False, f"{why}, and its requirements name no version of {names}")
    return Part("environment", not others, f"its requirements name all versions{differ}")


def driver_parts(ran: Sequence[RanWith], nodes: Sequence[views.Node]) -> Iterator[Part]:
    """Of a job that had GPUs."""
    then = sorted({one.driver for one in ran if one.gpus})
    if then:
        now = sorted({node.driver_version for node in nodes if node.gpus})
        text = f"{', '.join(then)} then; the nodes with GPUs have {', '.join(now) or 'none'} now"
        yield Part("driver", then == now and len(now) == 1, text)


def seed_part(spec: JobSpec) -> Part:
    """Whether anything that the job is given looks like a seed."""
    given = [
        f"{name}={value}"
        for name, value in (*spec.inputs.items(), *spec.environment_variables.items())
        if _SEED.search(name) and not isinstance(value, DataInput)
    ]
    if given:
        return Part("seed", True, ", ".join(given))
    if _SEED.search(spec.command):
        return Part("seed", True, "named in the command")
    return Part("seed", False, "none among its inputs, variables and command: random numbers may be others")


def output_parts(recorded: JobSpec, spec: JobSpec) -> Iterator[Part]:
    for name, one in recorded.outputs.items():
        if one.version and not spec.outputs[name].version:
            yield Part(
                f"outputs.{name}",
                False,
                f"{one.name}:{one.version} is never given again: it is registered as the next number",
            )


def nodes_part(origin: views.Job, spec: JobSpec, nodes: Sequence[views.Node]) -> Part:
    """Where it ran, and on what."""
    if not origin.tasks:
        return Part("nodes", False, "it never ran")
    known = {node.node_id: node for node in nodes}
    told = dict.fromkeys(_where(task, known.get(task.node_id)) for task in origin.tasks)
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    asked = ", ".join(spec.resources.gpus.model)
    where = f"any node with {asked}" if asked else "any node that fits"
    return Part("nodes", False, f"it ran on {', '.join(list(told)[:_SHOWN])}{more}; now on {where}")


def _where(task: views.Task, node: views.Node | None) -> str:
    if node is None:
        return f"{task.node}, which is not there any more"
    models = sorted({gpu.name for gpu in node.gpus if gpu.index in task.gpu_indices})
    return f"{task.node} ({', '.join(models)})" if models else task.node


def _code(spec: JobSpec) -> Calling[Part]:
    if not spec.code_tree:
        folder = spec.code or "the folder of its task"
        return Part("code", False, f"in {folder} itself, which was not kept and may have changed")
    there = yield content_calls.missing([], tree=spec.code_tree)
    if not there.tree:
        return Part("code", False, f"tree {spec.code_tree[:_ID_CHARS]} is not in the content store any more")
    text = f"tree {spec.code_tree[:_ID_CHARS]} of {spec.code}"
    if spec.code_git is not None and spec.code_git.commit:
        dirty = " with uncommitted changes" if spec.code_git.dirty else ""
        text += f", commit {spec.code_git.commit[:_ID_CHARS]}{dirty}"
    return Part("code", True, text)


def _input(name: str, value: DataInput) -> Calling[Part]:
    pinned = value.pinned
    if pinned is None:
        what = "the URL" if value.is_uri else "the path"
        return Part(name, False, f"{what} {value.path}: what was there is not recorded")
    if not pinned.asset:
        return _url_part(name, pinned, "")
    kind, _, version = pinned.asset.partition(":")
    _, named = yield registry_calls.asset(kind, version)  # raises NotFound where it was deleted
    moved = yield from _moved(kind, pinned, named)
    if pinned.url:
        return _url_part(name, pinned, moved)
    what = f"tree {pinned.tree[:_ID_CHARS]}" if pinned.tree else str(pinned.value)
    return Part(name, True, f"{pinned.asset}, {what}{moved}")


def _moved(kind: str, pinned: Pinned, named: AssetName) -> Calling[str]:
    """What the alias leads to now that was asked for then."""
    asked = parse_reference(pinned.asked)
    if asked is None:
        return ""
    now = named.aliases.get(asked.alias, "")
    if asked.alias == LATEST:
        [newest, *_], _ = yield registry_calls.page(kind, asked.name, limit=1, after="", deleted=False)
        now = newest.version
    if now == pinned.asset.rpartition(":")[2]:
        return f" ({asked})"
    return f" ({asked} then; it leads to {now or 'nothing'} now)"


def _url_part(name: str, pinned: Pinned, moved: str) -> Part:
    url = shown_url(pinned.url)
    where = f"{pinned.asset} at {url}{moved}" if pinned.asset else url
    if not pinned.etag:
        return Part(name, False, f"{where}: its server gave no etag then")
    try:
        etag = seen(pinned.url).etag
    except PacelineError as error:
        return Part(name, False, f"{where}: {error.message}")
    if etag != pinned.etag:
        return Part(name, False, f"{where} has changed: etag {etag or 'none'}, was {pinned.etag}")
    return Part(name, True, f"{where}, etag {etag}")


def _origin(origin: views.Job) -> Calling[list[Part]]:
    """What it came from besides its document."""
    found = yield registry_calls.lineage(f"job:{origin.job}", 1)
    parts = [
        Part("sweep", False, f"it was a trial of {edge.source}, which does not hear of this one")
        for edge in found.edges
        if edge.target == found.reference and edge.source.startswith("sweep:")
    ]
    if origin.parent_job is not None:
        text = f"it goes on from job {origin.parent_job}'s checkpoint of step {origin.parent_step}"
        parts.append(Part("checkpoint", True, text))
    return parts


def _nodes() -> Calling[list[views.Node]]:
    nodes: list[views.Node] = []
    cursor = ""
    while True:
        page, cursor = yield calls.nodes_page(cursor=cursor)
        nodes += page.nodes
        if not cursor:
            return nodes


def _submitted(origin: views.Job, spec: JobSpec) -> Calling[JobId]:
    sent = rpc.Sent(spec.to_json(), f"job {origin.job}")
    key, user = rpc.new_key(), rpc.user_name()
    call: Any = submit_calls.jobs([sent], key=key, user=user, reproduces=origin.job)
    if origin.parent_job is not None and origin.parent_step is not None:
        call = calls.fork(
            origin.parent_job, origin.parent_step, sent, key=key, user=user, reproduces=origin.job
        )
    made = yield call
    return JobId(made[0])
