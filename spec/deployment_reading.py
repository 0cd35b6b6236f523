"""Text -> DeploymentSpec: every problem at once, each with its place.

Whatever comes in, only InvalidDocument comes out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from .deployment import DeploymentSpec
from .document import Document, parse, plain_document
from .overrides import override
from .problems import InvalidDocument, shown
from .validation import problems_of


def parse_deployment(text: str | bytes, source: str, overrides: Sequence[str] = ()) -> DeploymentSpec:
    """The deployment of a YAML text. Raises InvalidDocument."""
    return _spec_of(parse(text, source), overrides)


def deployment_from_data(
    data: Any, source: str = "deployment", overrides: Sequence[str] = ()
) -> DeploymentSpec:
    """That of a plain mapping. Raises InvalidDocument."""
    return _spec_of(plain_document(data, source), overrides)


def parse_canonical_deployment(text: str, source: str = "deployment") -> DeploymentSpec:
    """That of a canonical JSON text, checked anew. Raises InvalidDocument."""
    try:
        return DeploymentSpec.model_validate_json(text)
    except ValidationError as error:
        raise InvalidDocument(problems_of(Document(None, source), error, DeploymentSpec)) from error


def _spec_of(document: Document, overrides: Sequence[str]) -> DeploymentSpec:
    if not isinstance(document.data, dict):
        raise InvalidDocument(
            [document.problem((), f"expected a mapping of keys; found {shown(document.data)}")]
        )
    document = replace(document, data={"type": "deployment", **document.data})
    document = override(document, overrides) if overrides else document
    try:
        return DeploymentSpec.model_validate(document.data)
    except ValidationError as error:
        raise InvalidDocument(problems_of(document, error, DeploymentSpec)) from error
