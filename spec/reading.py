"""Text -> JobSpec: every problem at once, each with its place; and the quick way for canonical JSON.

Whatever comes in, only InvalidDocument comes out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, Generic, TypeVar

from pydantic import ValidationError

from .by_type import types_of
from .compat import DROPPED_KEYS, NOT_COMMAND, REFUSED_KEYS, Caution, refusals_of, warnings_of
from .document import DOCUMENT_BYTES_MAX, Document, parse, plain_document
from .expressions import BadExpression, check_expressions
from .model import JobSpec
from .overrides import override
from .parts import DataInput
from .problems import PROBLEMS_MAX, InvalidDocument, Path, Problem, dotted, escaped, nearest, shown
from .submission import Submission
from .validation import problems_of
from .work import Work

S = TypeVar("S", bound=Submission)


def parse_job(
    text: str | bytes, source: str, overrides: Sequence[str] = ()
) -> tuple[JobSpec, tuple[Caution, ...]]:
    """The job of a YAML text, and what in it has no effect here. Raises InvalidDocument."""
    document = parse(text, source)
    return job_of(override(document, overrides) if overrides else document)


def job_of(document: Document) -> tuple[JobSpec, tuple[Caution, ...]]:
    """The job of a document, and what in it has no effect here. Raises InvalidDocument."""
    return checked(document, JOB)


def parse_canonical(text: str | bytes, source: str = "job") -> JobSpec:
    """The job of a canonical JSON text, checked anew. Raises InvalidDocument."""
    return checked_canonical(text, source, JOB)


def job_from_data(data: Any, source: str = "job") -> tuple[JobSpec, tuple[Caution, ...]]:
    """The job of a plain mapping, such as one that a program made. Raises InvalidDocument."""
    return job_of(plain_document(data, source))


@dataclass(frozen=True, slots=True)
class Kind(Generic[S]):
    """A kind of document: its model, and what has to be right beyond it."""

    model: type[S]
    at: tuple[str, ...]
    """Where the work stands: a command with its code and its variables."""
    work: Callable[[S], Work]
    params: str
    """The key of the mapping from whose names the search space's come."""
    refusals: Callable[[S], Iterable[tuple[Path, str, str]]]
    """Path, text and nearest valid word of what is wrong with the whole."""
    warnings: Callable[[S], Iterable[tuple[Path, str]]]


def _job_refusals(spec: JobSpec) -> Iterator[tuple[Path, str, str]]:
    for path, text in refusals_of(spec):
        yield path, text, ""


def _itself(spec: JobSpec) -> Work:
    return spec


JOB: Final = Kind(JobSpec, (), _itself, "params", _job_refusals, warnings_of)


def checked(document: Document, kind: Kind[S]) -> tuple[S, tuple[Caution, ...]]:
    """What a document says, and what in it has no effect here. Raises InvalidDocument."""
    data = document.data
    if not isinstance(data, dict):
        raise InvalidDocument([document.problem((), f"expected a mapping of keys; found {shown(data)}")])
    wrong_type = other_type(document, kind)
    if wrong_type:
        raise InvalidDocument([wrong_type])
    dropped = [caution(document, (key,), DROPPED_KEYS[key]) for key in data if key in DROPPED_KEYS]
    plain = _texts_as_written(document, {key: data[key] for key in data if key not in DROPPED_KEYS})
    problems = [
        document.problem((key,), text, at_key=True) for key, text in REFUSED_KEYS.items() if key in data
    ]
    spec = None
    try:
        spec = kind.model.model_validate({key: plain[key] for key in plain if key not in REFUSED_KEYS})
    except ValidationError as error:
        problems += problems_of(document, error, kind.model)
    work: Any = plain
    for key in kind.at:
        work = work.get(key)
    if isinstance(work, dict):
        texts = _texts(kind, work.get("command"), work.get("environment_variables"))
        problems += _expression_problems(document, texts, [plain.get(key) for key in _named(kind)])
    if spec is not None:
        problems += [document.problem(path, text, nearest=near) for path, text, near in kind.refusals(spec)]
    if problems or spec is None:
        raise InvalidDocument(sorted(set(problems), key=_in_order))
    return spec, (*dropped, *(caution(document, path, text) for path, text in kind.warnings(spec)))


def checked_canonical(text: str | bytes, source: str, kind: Kind[S]) -> S:
    """What a canonical JSON text says, checked anew. Raises InvalidDocument."""
    if len(text) > DOCUMENT_BYTES_MAX:
        why = f"{len(text)} bytes; a document may have {DOCUMENT_BYTES_MAX}"
        raise InvalidDocument([Problem(escaped(source), 0, 0, "", why)])
    document = Document(None, source)
    try:
        spec = kind.model.model_validate_json(text)
    except ValidationError as error:
        raise InvalidDocument(problems_of(document, error, kind.model)) from error
    problems = [document.problem(path, why, nearest=near) for path, why, near in kind.refusals(spec)]
    problems += [document.problem(path, why) for path, why in _relative_paths(spec, kind)]
    work = kind.work(spec)
    texts = _texts(kind, work.command, work.environment_variables)
    problems += _expression_problems(document, texts, [getattr(spec, key) for key in _named(kind)])
    if problems:
        raise InvalidDocument(problems)
    return spec


def _in_order(problem: Problem) -> tuple[str, int, int, str]:
    """Overrides first, then line by line."""
    return problem.source if problem.line else "", problem.line, problem.column, problem.key


def _relative_paths(spec: S, kind: Kind[S]) -> Iterator[tuple[Path, str]]:
    """What a client must have made absolute before it sent the document."""
    code = kind.work(spec).code
    if code and not code.startswith("/"):
        yield (*kind.at, "code"), f"expected an absolute path; found {shown(code)}"
    for name, value in spec.inputs.items():
        if isinstance(value, DataInput) and value.is_local and not value.path.startswith("/"):
            yield ("inputs", name, "path"), f"expected an absolute path; found {shown(value.path)}"


def other_type(document: Document, kind: Kind[S]) -> Problem | None:
    """What is wrong with the `type` of a mapping."""
    (expected,) = types_of(kind.model)
    found = document.data.get("type", "command")
    word = found.lower() if isinstance(found, str) else ""
    if word == expected:
        return None
    if word in NOT_COMMAND:
        return document.problem(("type",), f"{word}: {NOT_COMMAND[word]}; expected {expected}")
    text = f"expected {expected}; found {shown(found)}"
    return document.problem(("type",), text, nearest=nearest(found, [expected]))


def _texts_as_written(document: Document, data: dict[str, Any]) -> dict[str, Any]:
    """Tags, variables and versions keep the text that stood there: `1.10` is not 1.1."""
    written = [path for path in document.raw if _is_text(path)]
    if not written:
        return data
    data = deepcopy(data)
    for path in written:
        at = data
        for part in path[:-1]:
            at = at[part]  # type: ignore[index]
        if at[path[-1]] is not None:  # type: ignore[index]
            at[path[-1]] = document.raw[path]  # type: ignore[index]
    return data


def _is_text(path: Path) -> bool:
    """True for scalars that are text by their meaning, however they look."""
    match path[1:] if path[:1] == ("trial",) else path:
        case ("tags" | "properties" | "environment_variables", _):
            return True
        case ("environment", "tags" | "properties", _) | ("environment", "version" | "python_version"):
            return True
        case ("outputs", _, "version") | ("placement", "labels" | "prefer", _):
            return True
        case ("placement", "labels" | "prefer", _, int()):
            return True
    return False


def caution(document: Document, path: Path, text: str) -> Caution:
    """Something at `path` that has no effect."""
    source, mark = document.place(path, at_key=True)
    return Caution(source, mark.line, mark.column, dotted(path), text)


def _named(kind: Kind[S]) -> tuple[str, str, str]:
    """The keys of the mappings whose names expressions may use."""
    return "inputs", "outputs", kind.params


def _texts(kind: Kind[S], command: Any, variables: Any) -> Iterator[tuple[Path, Any]]:
    """Those in which expressions are resolved."""
    yield (*kind.at, "command"), command
    if isinstance(variables, dict):
        yield from (((*kind.at, "environment_variables", name), text) for name, text in variables.items())


def _expression_problems(
    document: Document, texts: Iterable[tuple[Path, Any]], mappings: Iterable[Any]
) -> list[Problem]:
    """What is wrong with expressions, whatever else is wrong: all of these may be anything."""
    names = [mapping if isinstance(mapping, dict) else {} for mapping in mappings]
    found = (
        _at_expression(document, path, bad)
        for path, text in texts
        if isinstance(text, str) and "${{" in text
        for bad in check_expressions(text, *names)
    )
    return list(islice(found, PROBLEMS_MAX))


def _at_expression(document: Document, path: Path, bad: BadExpression) -> Problem:
    """Place a problem at the expression itself, where the scalar's source text shows it as it is."""
    problem = document.problem(path, bad.text, nearest=bad.nearest)
    written = document.written(path)
    if written is None:
        return problem
    text, mark = written[0].text, written[1]
    at = text.find(bad.raw, mark.start, mark.end)
    if at < 0:
        return problem
    return replace(problem, line=text.count("\n", 0, at) + 1, column=at - text.rfind("\n", 0, at))
