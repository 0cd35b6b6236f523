"""Text -> JobSpec or SweepSpec, by its `type`: every problem at once, each with its place.

A sweep whose `trial` is the path of a job file needs somebody to read that file; its problems name it.
Whatever comes in, only InvalidDocument comes out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pydantic_core

from .compat import NOT_COMMAND, Caution
from .document import DOCUMENT_BYTES_MAX, Document, parse, plain_document
from .errors import InvalidRequest
from .model import JobSpec
from .overrides import override, root_of
from .problems import InvalidDocument, nearest, shown
from .reading import JOB, checked, checked_canonical
from .sweep import SweepSpec
from .sweep_checks import SWEEP
from .trial_files import TrialFile, file_of, inlined

Spec = JobSpec | SweepSpec
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
    if root_of(data) is SweepSpec:
        return checked_canonical(text, source, SWEEP)
    return checked_canonical(text, source, JOB)


def parse_canonical_sweep(text: str | bytes, source: str = "sweep") -> SweepSpec:
    """The sweep of a canonical JSON text, checked anew. Raises InvalidDocument."""
    return checked_canonical(text, source, SWEEP)


def _spec_of(
    document: Document, overrides: Sequence[str], reader: TrialReader | None
) -> tuple[Spec, tuple[Caution, ...]]:
    which = [text for text in overrides if text.startswith("trial=")]
    if which:
        document = override(document, which)
    cautions: tuple[Caution, ...] = ()
    if root_of(document.data) is SweepSpec and isinstance(document.data.get("trial"), str):
        document, cautions = inlined(document, _trial_file(document, reader))
    rest = [text for text in overrides if text not in which]
    if rest:
        document = override(document, rest)
    if root_of(document.data) is JobSpec:
        _check_type(document)
        return checked(document, JOB)
    spec, found = checked(document, SWEEP)
    return spec, (*cautions, *found)


def _check_type(document: Document) -> None:
    """Of what is no sweep: the reading of jobs alone would name their type only."""
    found = document.data.get("type", "command") if isinstance(document.data, dict) else "command"
    if not isinstance(found, str) or found.lower() not in ("command", *NOT_COMMAND):
        text, valid = f"expected command, sweep; found {shown(found)}", ("command", "sweep")
        raise InvalidDocument([document.problem(("type",), text, nearest=nearest(found, valid))])


def _trial_file(document: Document, reader: TrialReader | None) -> TrialFile:
    trial = document.data["trial"]
    path = file_of(trial)
    if not path:
        why = "components are not looked up here; give the path of a job file, or a mapping with its command"
    elif reader is None:
        why = f"expected a mapping; found {shown(trial)}, and no files are read here"
    else:
        try:
            return reader(path)
        except InvalidRequest as error:
            why = f"{error.message}; {error.hint}" if error.hint else error.message
    raise InvalidDocument([document.problem(("trial",), why)])
