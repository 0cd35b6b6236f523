"""What is to be registered, and from where: a job's output, a checkpoint, a trial, a tree, a URL, a value."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...proto.codecs import job_id_of
from ...proto.generated import registry_pb2
from ...spec.asset_names import EXPECTED, KINDS, is_word
from ...spec.errors import Conflict, InvalidRequest, LimitExceeded, NotFound
from ...spec.ids import JobId
from ...spec.job import JobSpec
from ...spec.problems import escaped, nearest
from ...spec.stores import Seen
from ..core.checkpoints import checkpoint_of
from ..core.copies import is_good
from ..core.job import Checkpoint, Job
from ..keeping import Keeper, Kept
from ..loop import Loop
from ..registry.assets import About, Content, job_ref
from ..sweeps.best import best_trials
from ..sweeps.study import Study, Trial
from .documents import Documents
from .lookup import Lookup
from .starts import output_folders

TYPES: Final = {
    "data": ("uri_folder", "uri_file", "mltable", "literal"),
    "model": ("custom_model", "mlflow_model", "triton_model"),
}
SIGNATURE_CHARACTERS_MAX: Final = 64 << 10
VALUE_CHARACTERS_MAX: Final = 10_000
TEXT_CHARACTERS_MAX: Final = 10_000
ENTRIES_MAX: Final = 1_000
URL_CHARACTERS_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class Found:
    """What a source leads to, once it is kept."""

    kept: Kept
    source: str
    edges: tuple[tuple[str, str], ...] = ()
    metrics: Mapping[str, float] | None = None


class Sources:
    """Finds and keeps them."""

    def __init__(
        self, loop: Loop, lookup: Lookup, documents: Documents, keeper: Keeper, storage: Path
    ) -> None:
        self._loop, self._lookup, self._documents = loop, lookup, documents
        self._keeper, self._storage = keeper, storage

    async def find(self, request: registry_pb2.RegisterRequest) -> Found:
        """Raises NotFound, Conflict, InvalidRequest, LimitExceeded, StoreFailure."""
        match request.WhichOneof("source"):
            case "output":
                return await self._output(job_id_of(request.output.job), request.output.output)
            case "checkpoint":
                return await self._checkpoint(job_id_of(request.checkpoint.job), request.checkpoint.step)
            case "trial":
                return await self._trial(request.trial)
            case "tree":
                return Found(await self._keeper.look(request.tree.tree), request.tree.path)
            case "url":
                return _of_url(request.url)
            case "value":
                return _of_value(request)
        raise InvalidRequest(
            "it does not say what to register", hint="a job's output, a checkpoint, a path ..."
        )

    async def _output(self, number: JobId, name: str) -> Found:
        job = await self._lookup.job(number)
        if not job.over:
            raise Conflict(
                f"job {number} is {job.state}; its outputs are registered when it is over",
                hint="give the output a `name` in the job file, and that is done by itself",
                job=number,
            )
        output, folder = self._folder(job, await self._spec(number), name)
        kept = await self._keeper.keep(folder)
        ref = f"{job_ref(number)}"
        return Found(kept, f"{ref} outputs.{output}", ((ref, f"outputs.{output}"),))

    def _folder(self, job: Job, spec: JobSpec, name: str) -> tuple[str, Path]:
        folders = output_folders(self._storage, job.number, job.attempt, spec)
        if not name and len(folders) == 1:
            [name] = folders
        if name not in folders:
            near = nearest(name, folders)
            have = f"it has {', '.join(folders)}" if folders else "it has none"
            guess = f"; did you mean {near!r}?" if near else ""
            raise NotFound(f"job {job.number} has no output {name!r}: {have}{guess}", job=job.number)
        return name, Path(folders[name])

    async def _checkpoint(self, number: JobId, step: int) -> Found:
        job = await self._lookup.job(number)
        chosen = checkpoint_of(job, step) if step else newest_of(job)
        kept = await self._keeper.keep(Path(chosen.path))
        ref = f"checkpoint:{number}:{chosen.step}"
        return Found(kept, ref, ((ref, "weights"),), dict(chosen.metrics))

    async def _trial(self, asked: registry_pb2.SweepTrialSource) -> Found:
        wanted = asked.trial if asked.HasField("trial") else None
        study, trial, metrics = await self._loop.read_study(
            asked.sweep, lambda study: (study.id, *_chosen(study, wanted))
        )
        if trial.job is None:
            raise Conflict(f"trial {trial.number} of sweep {study} has no job")
        spec = await self._spec(trial.job)
        if spec.outputs:
            found = await self._output(trial.job, asked.output)
        else:
            found = await self._checkpoint(trial.job, 0)
        edges = (*found.edges, (f"sweep:{study}", "trial"))
        return Found(found.kept, f"sweep:{study} trial {trial.number}, {found.source}", edges, metrics)

    async def _spec(self, number: JobId) -> JobSpec:
        spec = (await self._documents.of_jobs([number])).get(number)
        if spec is None:
            raise NotFound(f"the document of job {number} cannot be read by this version", job=number)
        return spec


def newest_of(job: Job) -> Checkpoint:
    """Raises NotFound."""
    good = [one for one in job.course.checkpoints if is_good(one) and one.job is None]
    if not good:
        raise NotFound(f"job {job.number} has no good checkpoint", job=job.number)
    return max(good, key=lambda one: (one.step, one.attempt))


def about(request: registry_pb2.RegisterRequest, found: Found) -> About:
    """What the request and the files say. Raises InvalidRequest, LimitExceeded."""
    kept = found.kept
    metrics = {**(found.metrics or {}), **request.metrics}
    texts = (request.framework, request.description, *request.tags, *request.tags.values(), *metrics)
    if max(len(metrics), len(request.tags)) > ENTRIES_MAX or max(map(len, texts)) > TEXT_CHARACTERS_MAX:
        raise LimitExceeded(
            f"at most {ENTRIES_MAX} metrics and tags, and texts of {TEXT_CHARACTERS_MAX} characters"
        )
    return About(
        _type(request, kept),
        request.framework or kept.framework,
        _signature(request.signature) or kept.signature,
        {name: value for name, value in metrics.items() if math.isfinite(value)},
        dict(request.tags),
        request.description,
    )


def check_word(what: str, text: str) -> None:
    """Raises InvalidRequest."""
    if not is_word(text):
        raise InvalidRequest(f"{escaped(text[:80])!r} is no {what}; expected {EXPECTED}")


def check_kind(kind: str) -> None:
    """Raises InvalidRequest."""
    if kind not in KINDS:
        raise InvalidRequest(f"there is no kind {escaped(kind[:40])!r}; expected {' or '.join(KINDS)}")


def _type(request: registry_pb2.RegisterRequest, kept: Kept) -> str:
    known = TYPES[request.kind]
    if request.type:
        if request.type not in known:
            raise InvalidRequest(
                f"a {request.kind} is no {escaped(request.type[:40])!r}; expected {', '.join(known)}"
            )
        return request.type
    if request.kind == "model":
        return "mlflow_model" if kept.mlflow else "custom_model"
    if kept.content.value:
        return "literal"
    return "uri_file" if kept.content.file else "uri_folder"


def _signature(text: str) -> str:
    if not text:
        return ""
    try:
        said = json.loads(text) if len(text) <= SIGNATURE_CHARACTERS_MAX else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise InvalidRequest(
            f"the signature is not a JSON object of at most {SIGNATURE_CHARACTERS_MAX} characters"
        )
    return text


def _of_url(asked: registry_pb2.UrlSource) -> Found:
    if "://" not in asked.url or not asked.url.isprintable() or len(asked.url) > URL_CHARACTERS_MAX:
        raise InvalidRequest(f"{escaped(asked.url[:200])!r} is no URL")
    if asked.url.startswith("file:"):
        raise InvalidRequest("a file: URL is a path", hint="give the path itself: its files are uploaded")
    content = Content(
        file=Seen(asked.url, asked.etag, asked.bytes, asked.files).file,
        url=asked.url,
        etag=asked.etag[:1000],
        size_bytes=asked.bytes,
        files=asked.files,
    )
    return Found(Kept(content), asked.url)


def _of_value(request: registry_pb2.RegisterRequest) -> Found:
    if request.kind != "data":
        raise InvalidRequest("a model is no literal value")
    try:
        value = json.loads(request.value) if len(request.value) <= VALUE_CHARACTERS_MAX else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, str | int | float | bool) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise InvalidRequest("a literal value is the JSON of a text, a number or a truth value")
    return Found(Kept(Content(value=request.value)), "a literal value")


def _chosen(study: Study, wanted: int | None) -> tuple[Trial, dict[str, float]]:
    """Raises NotFound, Conflict."""
    if wanted is None:
        best = best_trials(study, 2)
        if len(best) != 1:
            raise Conflict(
                f"study {study.id} has {'no complete trial' if not best else 'several best trials'}",
                hint="say which one",
            )
        trial = best[0]
    else:
        trial = study.trial(wanted)
    names = [one.metric for one in study.plan.objectives] if study.plan else []
    return trial, dict(zip(names, trial.values, strict=False))
