"""Text -> JobSpec: every problem at once, each with its place; and the quick way for canonical JSON.

Whatever comes in, only InvalidDocument comes out.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from typing import Any

from pydantic import ValidationError

from .compat import DROPPED_KEYS, NOT_COMMAND, REFUSED_KEYS, Caution, refusals_of, warnings_of
from .document import DOCUMENT_BYTES_MAX, Document, parse, plain_document
from .expressions import BadExpression, check_expressions
from .model import JobSpec
from .overrides import override
from .parts import DataInput
from .problems import PROBLEMS_MAX, InvalidDocument, Path, Problem, dotted, escaped, nearest, shown
from .validation import problems_of


def parse_job(
    text: str | bytes, source: str, overrides: Sequence[str] = ()
) -> tuple[JobSpec, tuple[Caution, ...]]:
    """The job of a YAML text, and what in it has no effect here. Raises InvalidDocument."""
    document = parse(text, source)
    return job_of(override(document, overrides) if overrides else document)


def job_of(document: Document) -> tuple[JobSpec, tuple[Caution, ...]]:
    """The job of a document, and what in it has no effect here. Raises InvalidDocument."""
    data = document.data
    if not isinstance(data, dict):
        raise InvalidDocument([document.problem((), f"expected a mapping of keys; found {shown(data)}")])
    wrong_type = _other_type(document)
    if wrong_type:
        raise InvalidDocument([wrong_type])
    dropped = [_caution(document, (key,), DROPPED_KEYS[key]) for key in data if key in DROPPED_KEYS]
    plain = _texts_as_written(document, {key: data[key] for key in data if key not in DROPPED_KEYS})
    problems = [
        document.problem((key,), text, at_key=True) for key, text in REFUSED_KEYS.items() if key in data
    ]
    spec = None
    try:
        spec = JobSpec.model_validate({key: value for key, value in plain.items() if key not in REFUSED_KEYS})
    except ValidationError as error:
        problems += problems_of(document, error)
    texts = ((("command",), plain.get("command")), *_variable_texts(plain.get("environment_variables")))
    problems += _expression_problems(document, texts, plain)
    if spec is not None:
        problems += [document.problem(path, text) for path, text in refusals_of(spec)]
    if problems or spec is None:
        raise InvalidDocument(sorted(set(problems), key=lambda p: (p.line, p.column, p.key)))
    return spec, (*dropped, *(_caution(document, path, text) for path, text in warnings_of(spec)))


def parse_canonical(text: str | bytes, source: str = "job") -> JobSpec:
    """The job of a canonical JSON text, checked anew. Raises InvalidDocument."""
    if len(text) > DOCUMENT_BYTES_MAX:
        why = f"{len(text)} bytes; a document may have {DOCUMENT_BYTES_MAX}"
        raise InvalidDocument([Problem(escaped(source), 0, 0, "", why)])
    document = Document(None, source)
    try:
        spec = JobSpec.model_validate_json(text)
    except ValidationError as error:
        raise InvalidDocument(problems_of(document, error)) from error
    texts = ((("command",), spec.command), *_variable_texts(spec.environment_variables))
    problems = [
        *(document.problem(path, why) for path, why in (*refusals_of(spec), *_relative_paths(spec))),
        *_expression_problems(
            document, texts, {"inputs": spec.inputs, "outputs": spec.outputs, "params": spec.params}
        ),
    ]
    if problems:
        raise InvalidDocument(problems)
    return spec


def job_from_data(data: Any, source: str = "job") -> tuple[JobSpec, tuple[Caution, ...]]:
    """The job of a plain mapping, such as one that a program made. Raises InvalidDocument."""
    return job_of(plain_document(data, source))


def _relative_paths(spec: JobSpec) -> Iterable[tuple[Path, str]]:
    """What a client must have made absolute before it sent the job."""
    if spec.code and not spec.code.startswith("/"):
        yield ("code",), f"expected an absolute path; found {shown(spec.code)}"
    for name, value in spec.inputs.items():
        if isinstance(value, DataInput) and not value.is_uri and not value.path.startswith("/"):
            yield ("inputs", name, "path"), f"expected an absolute path; found {shown(value.path)}"


def _other_type(document: Document) -> Problem | None:
    kind = document.data.get("type", "command")
    if not isinstance(kind, str) or kind.lower() == "command":
        return None
    why = NOT_COMMAND.get(kind.lower())
    if why:
        return document.problem(("type",), f"{kind.lower()}: {why}; expected command")
    text = f"expected command; found {shown(kind)}"
    return document.problem(("type",), text, nearest=nearest(kind, ["command"]))


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
    match path:
        case ("tags" | "properties" | "environment_variables", _):
            return True
        case ("environment", "tags" | "properties", _) | ("environment", "version"):
            return True
        case ("outputs", _, "version") | ("placement", "labels" | "prefer", _):
            return True
        case ("placement", "labels" | "prefer", _, int()):
            return True
    return False


def _caution(document: Document, path: Path, text: str) -> Caution:
    source, mark = document.place(path, at_key=True)
    return Caution(source, mark.line, mark.column, dotted(path), text)


def _expression_problems(
    document: Document, texts: Iterable[tuple[Path, Any]], names_of: Mapping[str, Any], params: str = "params"
) -> list[Problem]:
    """What is wrong with expressions, whatever else is wrong. `names_of`: the document's data, in which what
    holds names may be anything; `params`: the key of those of the search space."""
    mappings = (names_of.get(key) for key in ("inputs", "outputs", params))
    names = [mapping if isinstance(mapping, dict) else {} for mapping in mappings]
    found = (
        _at_expression(document, path, bad)
        for path, text in texts
        if isinstance(text, str) and "${{" in text
        for bad in check_expressions(text, *names)
    )
    return list(islice(found, PROBLEMS_MAX))


def _variable_texts(variables: Any) -> list[tuple[Path, Any]]:
    if not isinstance(variables, dict):
        return []
    return [(("environment_variables", name), text) for name, text in variables.items()]


def _at_expression(document: Document, path: Path, bad: BadExpression) -> Problem:
    """Place a problem at the expression itself, where the scalar's source text shows it as it is."""
    problem = document.problem(path, bad.text, nearest=bad.nearest)
    mark = document.values.get(path)
    if mark is None or path in document.sources:
        return problem
    at = document.text.find(bad.raw, mark.start, mark.end)
    if at < 0:
        return problem
    line = document.text.count("\n", 0, at) + 1
    return replace(problem, line=line, column=at - document.text.rfind("\n", 0, at))
