"""Text -> JobSpec or SweepSpec, by its `type`: every problem at once, each with its place.

A sweep whose `trial` is the path of a job file needs somebody to read that file; its problems name it.
Whatever comes in, only InvalidDocument comes out. What sweeps need is imported for sweeps only: who reads a
job does not pay for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pydantic_core

from .compat import NOT_COMMAND, Caution
from .document import DOCUMENT_BYTES_MAX, Document, parse, plain_document
from .errors import InvalidRequest
from .model import JobSpec
from .overrides import is_sweep, override
from .problems import InvalidDocument, nearest, shown
from .reading import JOB, checked, checked_canonical

if TYPE_CHECKING:
    from .sweep import SweepSpec

Spec: TypeAlias = "JobSpec | SweepSpec"


@dataclass(frozen=True, slots=True)
class TrialFile:
    """A job file as it was read."""

    text: str | bytes
    source: str
    """Names it in messages."""
    folder: str
    """Where it lies: its relative paths are below."""


TrialReader = Callable[[str], TrialFile]
"""Reads the file that a sweep's `trial` names. Raises InvalidRequest."""


def parse_document(
    text: str | bytes, source: str, overrides: Sequence[str] = (), reader: TrialReader | None = None
) -> tuple[Spec, tuple[Caution, ...]]:
    """The job or sweep of a YAML text, and what in it has no effect here. Raises InvalidDocument."""
    return _spec_of(parse(text, source), overrides, reader)


def document_from_data(
    data: Any, source: str = "job", overrides: Sequence[str] = (), reader: TrialReader | None = None
) -> tuple[Spec, tuple[Caution, ...]]:
    """That of a plain mapping, such as one that a program made. Raises InvalidDocument."""
    return _spec_of(plain_document(data, source), overrides, reader)


def parse_canonical_document(text: str | bytes, source: str = "job") -> Spec:
    """The job or sweep of a canonical JSON text, checked anew. Raises InvalidDocument."""
    data = None
    if len(text) <= DOCUMENT_BYTES_MAX:
        try:
            data = pydantic_core.from_json(text)
        except ValueError:  # the reading of jobs says what is wrong
            data = None
    if is_sweep(data):
        return parse_canonical_sweep(text, source)
    return checked_canonical(text, source, JOB)


def parse_canonical_sweep(text: str | bytes, source: str = "sweep") -> "SweepSpec":
    """The sweep of a canonical JSON text, checked anew. Raises InvalidDocument."""
    from .sweep_checks import SWEEP

    return checked_canonical(text, source, SWEEP)


def _spec_of(
    document: Document, overrides: Sequence[str], reader: TrialReader | None
) -> tuple[Spec, tuple[Caution, ...]]:
    if not is_sweep(document.data):
        document = override(document, overrides) if overrides else document
        _check_type(document)
        return checked(document, JOB)
    from .sweep_checks import SWEEP

    which = [text for text in overrides if text.startswith("trial=")]
    document, cautions = _with_trial(override(document, which) if which else document, reader)
    rest = [text for text in overrides if text not in which]
    spec, found = checked(override(document, rest) if rest else document, SWEEP)
    return spec, (*cautions, *found)


def _with_trial(document: Document, reader: TrialReader | None) -> tuple[Document, tuple[Caution, ...]]:
    """The sweep with its job in place."""
    if reader is None or not isinstance(document.data.get("trial"), str):
        return document, ()
    from .trial_files import inlined

    file = _trial_file(document, reader)
    return inlined(document, parse(file.text, file.source), file.folder)


def _check_type(document: Document) -> None:
    """Of what is no sweep: the reading of jobs alone would name their type only."""
    found = document.data.get("type", "command") if isinstance(document.data, dict) else "command"
    if not isinstance(found, str) or found.lower() not in ("command", *NOT_COMMAND):
        text, valid = f"expected command, sweep; found {shown(found)}", ("command", "sweep")
        raise InvalidDocument([document.problem(("type",), text, nearest=nearest(found, valid))])


def _trial_file(document: Document, reader: TrialReader) -> TrialFile:
    trial = document.data["trial"]
    path = trial.removeprefix("file:").removeprefix("//")
    if path.startswith("azureml:") or "://" in path:
        why = "components are not looked up here; give the path of a job file, or a mapping with its command"
    else:
        try:
            return reader(path)
        except InvalidRequest as error:
            why = f"{error.message}; {error.hint}" if error.hint else error.message
    raise InvalidDocument([document.problem(("trial",), why)])
