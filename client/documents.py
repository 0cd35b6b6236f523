"""From what a caller has (a file, a mapping, a JobSpec) to the document that goes over the wire.

Paths become absolute here, below the job file's folder (for mappings and specs: below the working directory),
because only the client knows where they were written. `code` is packed when the job is submitted. A job
without it runs in that same folder, as `python train.py` beside the file would; nodes must see it under the
same path.
A file is looked at with stat before it is read: nothing larger than the bound is.
"""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from ..spec.errors import InvalidRequest
from ..spec.job import DOCUMENT_BYTES_MAX, Caution, job_from_data
from ..spec.submission import Submission
from ..spec.sweep_reading import Spec, TrialFile, document_from_data, parse_document
from .environment_files import read_environment
from .rpc import Sent

JobSource: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Spec"
"""A file's path (text that is not a path is not YAML), a mapping as in a file, or a JobSpec or SweepSpec."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked job or sweep, ready to be sent, and what in it has no effect here."""

    spec: "Spec"
    source: str
    cautions: tuple[Caution, ...] = ()

    @property
    def is_sweep(self) -> bool:
        return self.spec.type == "sweep"

    @property
    def packs(self) -> str:
        """The folder of code that is to be packed; empty: none."""
        return (self.spec.trial if self.spec.type == "sweep" else self.spec).packs

    @property
    def sent(self) -> Sent:
        return Sent(document=self.spec.to_json(), source=self.source)


def sent_jobs(jobs: Sequence[Prepared]) -> list[Sent]:
    """As they go over the wire. Raises InvalidRequest for a sweep, which is submitted otherwise."""
    for one in jobs:
        if one.is_sweep:
            raise InvalidRequest(f"{one.source} is a sweep, not a job", hint="use submit_sweep()")
    return [one.sent for one in jobs]


def planned(prepared: Prepared) -> Prepared:
    """What can be asked of a forecast: of a sweep, one of its trials."""
    if prepared.spec.type == "command":
        return prepared
    values = {name: dimension.longest() for name, dimension in prepared.spec.space.dimensions.items()}
    trial = prepared.spec.trial_job(0, values)
    return Prepared(trial, prepared.source, prepared.cautions)


def prepare(job: JobSource, *, overrides: Sequence[str] = (), name: str = "") -> Prepared:
    """Check one job or sweep. Raises InvalidDocument with all that is wrong, InvalidRequest on an unreadable
    file."""
    if isinstance(job, Submission):
        if overrides:
            raise InvalidRequest(
                f"overrides apply to files and mappings, not to a {type(job).__name__}",
                hint=f"change the {type(job).__name__} itself: spec.model_copy(update=...)",
            )
        prepared = _rooted(job, "job", Path.cwd(), ())
    elif isinstance(job, Mapping):
        read = partial(_trial_file, Path.cwd(), Path())
        spec, cautions = document_from_data(dict(job), "job", overrides, read)
        prepared = _rooted(spec, "job", Path.cwd(), cautions)
    else:
        path = Path(job)
        prepared = _from_text(read_job_file(path), str(path), path.absolute().parent, overrides)
    return _named(prepared, name)


def prepared_sweep(sweep: "JobSource | Prepared", overrides: Sequence[str], name: str) -> Prepared:
    """As `prepare`, unless it is prepared. Raises InvalidRequest for a job."""
    prepared = sweep if isinstance(sweep, Prepared) else prepare(sweep, overrides=overrides, name=name)
    if not prepared.is_sweep:
        raise InvalidRequest(f"{prepared.source} is no sweep: its type is command", hint="use submit()")
    return prepared


def prepare_bytes(
    text: str | bytes, source: str, folder: Path, *, overrides: Sequence[str] = (), name: str = ""
) -> Prepared:
    """Check the job of a YAML text as if it stood in a file in `folder`. Raises InvalidDocument."""
    return _named(_from_text(text, source, folder, overrides), name)


def _named(prepared: Prepared, name: str) -> Prepared:
    if not name:
        return prepared
    named = job_from_data({"command": "true", "name": name}, "--name")[0].name
    return Prepared(prepared.spec.model_copy(update={"name": named}), prepared.source, prepared.cautions)


def read_job_file(path: Path) -> bytes:
    """The bytes of a job file, or of a policy. Raises InvalidRequest when it is none, too large, or not to be
    read."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise InvalidRequest(f"{path} is not a file", hint=_folder_hint(path))
        if info.st_size > DOCUMENT_BYTES_MAX:
            raise _too_large(path, info.st_size)
        with path.open("rb") as file:
            data = file.read(DOCUMENT_BYTES_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise InvalidRequest(
            f"cannot read the file {path}: {getattr(error, 'strerror', None) or error}",
            hint="give the path of a YAML file",
        ) from None
    if len(data) > DOCUMENT_BYTES_MAX:
        raise _too_large(path, len(data))
    return data


def _from_text(text: str | bytes, source: str, folder: Path, overrides: Sequence[str]) -> Prepared:
    read = partial(_trial_file, folder, Path(source).parent)
    spec, cautions = parse_document(text, source, overrides, read)
    return _rooted(spec, source, folder, cautions)


def _trial_file(folder: Path, shown: Path, path: str) -> TrialFile:
    """The job file that a sweep in `folder` names; `shown`: that folder as the user wrote it."""
    found = folder / path
    return TrialFile(read_job_file(found), str(shown / path), os.path.normpath(found.parent))


def _rooted(spec: "Spec", source: str, folder: Path, cautions: tuple[Caution, ...]) -> Prepared:
    # Links are not resolved: nodes may know the link, and not what is behind it.
    where = os.path.normpath(folder)
    rooted = spec.running_in(where).rooted(where)
    work = rooted.trial if rooted.type == "sweep" else rooted
    if (read := read_environment(work.environment, where)) is not work.environment:
        rooted = rooted.with_environment(read)
    return Prepared(rooted, source, cautions)


def _too_large(path: Path, size: int) -> InvalidRequest:
    return InvalidRequest(
        f"{path} has {size} bytes; a job file may have {DOCUMENT_BYTES_MAX}",
        hint="is it a job file? Data belongs beside it, named under `inputs`",
    )


def _folder_hint(path: Path) -> str:
    if not path.is_dir():
        return "a job file is a plain file"
    found: Iterable[Path] = (path / name for name in ("job.yaml", "job.yml"))
    there = next((candidate for candidate in found if candidate.is_file()), None)
    return f"did you mean {there}?" if there else "name the YAML file in it"
