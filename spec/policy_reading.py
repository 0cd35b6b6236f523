"""Text -> PolicySpec: every problem at once, each with its place; and back, for people.

Whatever comes in, only InvalidDocument comes out.
"""

from typing import Any

from pydantic import ValidationError

from .cluster_policy import PolicySpec, refusals_of
from .document import Document, parse
from .problems import InvalidDocument, shown
from .validation import problems_of
from .writing import to_yaml


def parse_policy(text: str | bytes, source: str) -> PolicySpec:
    """The policy of a YAML text (an empty one: all defaults). Raises InvalidDocument."""
    document = parse(text, source)
    data = {} if document.data is None else document.data
    if not isinstance(data, dict):
        raise InvalidDocument([document.problem((), f"expected a mapping of keys; found {shown(data)}")])
    try:
        spec = PolicySpec.model_validate(data)
    except ValidationError as error:
        raise InvalidDocument(problems_of(document, error, PolicySpec)) from error
    return _checked(spec, document)


def parse_canonical_policy(text: str, source: str) -> PolicySpec:
    """The policy of a canonical JSON text, checked anew. Raises InvalidDocument."""
    document = Document(None, source)
    try:
        spec = PolicySpec.model_validate_json(text)
    except ValidationError as error:
        raise InvalidDocument(problems_of(document, error, PolicySpec)) from error
    return _checked(spec, document)


def policy_yaml(spec: PolicySpec) -> str:
    """A policy as YAML for people, without what is the default anyway; empty where all is."""
    data = _plain(spec.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    return to_yaml(data) if data else ""


def _plain(value: Any) -> Any:
    """Whole numbers as people write them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _checked(spec: PolicySpec, document: Document) -> PolicySpec:
    problems = [document.problem(path, text, nearest=near) for path, text, near in refusals_of(spec)]
    if problems:
        raise InvalidDocument(sorted(problems, key=lambda p: (p.line, p.column, p.key)))
    return spec
