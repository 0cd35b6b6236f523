"""`promote`: what the best trial of a sweep has left, put together in a folder of the user's.

Files are linked where both lie on one file system, else copied. The folder appears when all of it is there.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..spec.errors import Conflict, InvalidRequest, NotFound
from .sweep_views import Sweep, Trial
from .views import Checkpoint, Job, to_json

DOCUMENT: Final = "promoted.json"
_MANIFEST: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class Promoted:
    """What promoted.json says. Paths of `outputs` and `checkpoint` are below `folder`."""

    sweep: int
    name: str
    trial: int
    job: int
    params: Mapping[str, Any]
    values: Mapping[str, float]
    """By metric: the objectives."""
    outputs: Mapping[str, str]
    checkpoint: str
    """Its folder; empty: the job has saved none."""
    step: int | None
    """Of the checkpoint."""
    git_commit: str
    """Of the job's code, as its checkpoint has it; empty: nobody knows."""
    promoted_us: int
    folder: str


def chosen(sweep: Sweep) -> int:
    """The trial to promote where nobody says which. Raises Conflict."""
    if not sweep.best:
        raise Conflict(f"sweep {sweep.sweep} has no complete trial yet", hint="name one with --trial")
    if len(sweep.best) > 1:
        numbers = ", ".join(str(one.number) for one in sweep.best[:20])
        raise Conflict(
            f"sweep {sweep.sweep} has {len(sweep.best)} trials that no other dominates: {numbers}",
            hint="say which one: --trial N",
        )
    return sweep.best[0].number


def with_job(sweep: Sweep, number: int, found: Sequence[Trial]) -> tuple[Trial, int]:
    """The trial of that number, and the job whose files they are. `found`: that trial, or none. Raises
    NotFound, Conflict."""
    if not found:
        raise NotFound(f"sweep {sweep.sweep} has no trial {number}")
    trial = found[0]
    if trial.state not in ("COMPLETE", "PRUNED"):
        raise Conflict(
            f"trial {number} of sweep {sweep.sweep} is {trial.state}: {trial.why or 'not over yet'}"
        )
    if trial.job is None:
        raise Conflict(f"trial {number} of sweep {sweep.sweep} had no job in it: it is {trial.why}")
    return trial, trial.job


def carry_out(sweep: Sweep, trial: Trial, job: Job, to: str | os.PathLike[str]) -> Promoted:
    """Raises Conflict where something is in the way, InvalidRequest where the files are not seen here."""
    into = Path(to).absolute()
    if into.exists() and not (into.is_dir() and not any(into.iterdir())):
        raise Conflict(f"{into} is there already", hint="name a folder that is new, or empty")
    checkpoint = max(
        (one for one in job.checkpoints if one.good), key=lambda one: (one.step, one.attempt), default=None
    )
    sources = {f"outputs/{name}": Path(path) for name, path in job.outputs.items()}
    if checkpoint is not None:
        sources["checkpoint"] = Path(checkpoint.path)
    if not sources:
        raise Conflict(
            f"trial {trial.number} (job {job.job}) has left nothing: no outputs and no checkpoint",
            hint="declare `outputs` in the document, or save with run.save(step, ...)",
        )
    for source in sources.values():
        if not source.is_dir():
            where = f"; it was uploaded to {checkpoint.url}" if checkpoint and checkpoint.url else ""
            raise InvalidRequest(
                f"{source} is not on this machine{where}",
                hint="run this where the scheduler's storage folder is mounted",
            )
    promoted = _promoted(sweep, trial, job, checkpoint, into)
    part = into.with_name(f".{into.name}.{os.getpid()}.part")
    try:
        for below, source in sources.items():
            shutil.copytree(source, part / below, symlinks=True, copy_function=_link)
        (part / DOCUMENT).write_text(json.dumps(to_json(promoted), indent=1) + "\n", encoding="utf-8")
        part.replace(into)
    except (OSError, shutil.Error) as error:
        raise Conflict(f"cannot put it together in {into}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return promoted


def _promoted(sweep: Sweep, trial: Trial, job: Job, checkpoint: Checkpoint | None, into: Path) -> Promoted:
    return Promoted(
        sweep.sweep,
        sweep.name,
        trial.number,
        job.job,
        dict(trial.params),
        dict(zip((one.metric for one in sweep.objectives), trial.values, strict=False)),
        {name: f"outputs/{name}" for name in job.outputs},
        "checkpoint" if checkpoint is not None else "",
        checkpoint.step if checkpoint is not None else None,
        _git_commit(Path(checkpoint.path)) if checkpoint is not None else "",
        time.time_ns() // 1000,
        str(into),
    )


def _git_commit(checkpoint: Path) -> str:
    try:
        return str(json.loads((checkpoint / _MANIFEST).read_bytes()).get("git_commit", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
