"""The JSON Schemas of jobs, sweeps, deployments and the policy, for editors: made from the models, so they
cannot drift from them.

Descriptions are the fields' docstrings, read from the source here and not by pydantic at import, where
every start of a client would pay for it.
"""

import ast
import inspect
from collections import ChainMap
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from pydantic import BaseModel

from . import (
    cluster_policy,
    code,
    deployment,
    dimensions,
    distribution,
    early_termination,
    model,
    parts,
    placement,
    policies,
    real_dimensions,
    sampling,
    submission,
    sweep,
    work,
)
from .cluster_policy import PolicySpec
from .deployment import DeploymentSpec
from .model import JobSpec
from .sweep import SweepSpec

SCHEMA_ID: Final = "urn:paceline:schema:v1:"
_JOB_PARTS: Final = (parts, code, placement, policies, distribution, submission, work)


def job_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a job file; every key has a description."""
    return _schema(JobSpec, "job", *_JOB_PARTS, model)


def policy_schema() -> dict[str, Any]:
    """The same of a policy file."""
    return _schema(PolicySpec, "policy", parts, cluster_policy)


def sweep_schema() -> dict[str, Any]:
    """The same of a sweep's file."""
    parts_of_it = (dimensions, real_dimensions, sampling, early_termination, sweep)
    return _schema(SweepSpec, "sweep", *_JOB_PARTS, *parts_of_it)


def deployment_schema() -> dict[str, Any]:
    """The same of a deployment's file."""
    return _schema(DeploymentSpec, "deployment", parts, code, placement, deployment)


SCHEMAS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    "job": job_schema,
    "sweep": sweep_schema,
    "policy": policy_schema,
    "deployment": deployment_schema,
}


def _schema(root: type[BaseModel], kind: str, *modules: ModuleType) -> dict[str, Any]:
    """`modules`: where the models are written, those that others inherit from first."""
    schema = root.model_json_schema(by_alias=True, mode="validation")
    docs = _field_docs(modules)
    for name, body in {root.__name__: schema, **schema["$defs"]}.items():
        for key, value in body.get("properties", {}).items():
            value.pop("title", None)  # it only repeats the key
            value["description"] = docs[name][key]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{SCHEMA_ID}{kind}",
        **schema,
        "title": f"Paceline {kind}",
    }


def _field_docs(modules: tuple[ModuleType, ...]) -> dict[str, dict[str, str]]:
    """Class -> key -> the text that stands below the field."""
    docs: dict[str, dict[str, str]] = {}
    for module in modules:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                inherited = (docs.get(base.id, {}) for base in node.bases if isinstance(base, ast.Name))
                docs[node.name] = {**dict(ChainMap(*inherited)), **_docs_of(node)}
    for written in (value for module in modules for value in vars(module).values()):
        if isinstance(written, type) and issubclass(written, BaseModel) and written.__name__ in docs:
            of = docs[written.__name__]
            of |= {info.alias: of[name] for name, info in written.model_fields.items() if info.alias}
    return docs


def _docs_of(node: ast.ClassDef) -> dict[str, str]:
    docs = {}
    for field, doc in zip(node.body, node.body[1:], strict=False):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = inspect.cleandoc(text)
    return docs
