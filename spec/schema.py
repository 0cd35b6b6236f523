"""The JSON Schema of the job document, for editors: made from the models, so it cannot drift from them.

Descriptions are the fields' docstrings, read from the source here and not by pydantic at import, where
every start of a client would pay for it.
"""

import ast
import inspect
from collections import ChainMap
from typing import Any, Final

from . import distribution, model, parts, placement, policies
from .model import JobSpec

SCHEMA_ID: Final = "urn:paceline:schema:v1:job"


def job_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a job file; every key has a description."""
    schema = JobSpec.model_json_schema(by_alias=True, mode="validation")
    docs = _field_docs()
    for name, body in {JobSpec.__name__: schema, **schema["$defs"]}.items():
        for key, value in body.get("properties", {}).items():
            value.pop("title", None)  # it only repeats the key
            value["description"] = docs[name][key]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **schema,
        "title": "Paceline job",
    }


def _field_docs() -> dict[str, dict[str, str]]:
    """Class -> key -> the text that stands below the field."""
    docs: dict[str, dict[str, str]] = {}
    for module in (parts, placement, policies, distribution, model):
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                inherited = (docs.get(base.id, {}) for base in node.bases if isinstance(base, ast.Name))
                docs[node.name] = {**dict(ChainMap(*inherited)), **_docs_of(node)}
    for name, info in JobSpec.model_fields.items():
        docs[JobSpec.__name__][info.alias or name] = docs[JobSpec.__name__][name]
    return docs


def _docs_of(node: ast.ClassDef) -> dict[str, str]:
    docs = {}
    for field, doc in zip(node.body, node.body[1:], strict=False):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = inspect.cleandoc(text)
    return docs
