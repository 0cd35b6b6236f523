"""The JSON Schemas agree with the parser on our examples and on Azure's shape, and describe every key."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from paceline.spec.document import parse
from paceline.spec.policy_reading import parse_policy, policy_yaml
from paceline.spec.problems import InvalidDocument
from paceline.spec.schema import SCHEMAS, job_schema, policy_schema, sweep_schema
from paceline.spec.sweep_reading import TrialFile, parse_document
from support.spec_strategies import job_documents
from support.sweep_strategies import sweep_documents

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("**/*.yaml"))
SCHEMA = job_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SWEEP_SCHEMA = sweep_schema()
SWEEP_VALIDATOR = jsonschema.Draft202012Validator(SWEEP_SCHEMA)
POLICY_SCHEMA = policy_schema()
POLICY_VALIDATOR = jsonschema.Draft202012Validator(POLICY_SCHEMA)
DOCS = ROOT / "docs"


def reader(sweep: Path) -> Callable[[str], TrialFile]:
    return lambda path: TrialFile((sweep.parent / path).read_bytes(), path, str(sweep.parent))


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["title"] == "Paceline job"
    jsonschema.Draft202012Validator.check_schema(SWEEP_SCHEMA)
    assert SWEEP_SCHEMA["title"] == "Paceline sweep" and SWEEP_SCHEMA["$id"].endswith(":sweep")
    jsonschema.Draft202012Validator.check_schema(POLICY_SCHEMA)
    assert POLICY_SCHEMA["title"] == "Paceline policy" and POLICY_SCHEMA["$id"].endswith(":policy")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_are_valid_and_without_warnings(path: Path) -> None:
    data = parse(path.read_bytes(), path.name).data
    (SWEEP_VALIDATOR if data.get("type") == "sweep" else VALIDATOR).validate(data)
    _, cautions = parse_document(path.read_bytes(), path.name, (), reader(path))
    assert cautions == ()


@pytest.mark.parametrize("name", ["hello", "conda_on_image", "curated_by_id", "deepspeed", "ray"])
def test_files_in_azures_shape_are_valid(name: str) -> None:
    path = ROOT / "tests" / "spec" / "azure" / f"{name}.yml"
    VALIDATOR.validate(parse(path.read_bytes(), path.name).data)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"command": "x", "nam": "y"},
        {"command": "x", "resources": {"instance_count": 0}},
        {"command": "x", "resources": {"gpus": {"model": "H100"}}},
        {"command": "x", "distribution": {"type": "tensorflow"}},
        {"command": "x", "distribution": {"type": "mpi", "port": 1}},
        {"command": "x", "distribution": {"type": "ray", "process_count_per_instance": 2}},
        {"command": "x", "name": "../x"},
        {"command": "x", "inputs": {"a": {"type": "uri_file"}}},
    ],
)
def test_it_refuses(data: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(data)


def examples(page: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("text", examples("sweep-files.md"))
def test_the_sweeps_of_the_documentation_are_valid(text: str) -> None:
    SWEEP_VALIDATOR.validate(parse(text, "s.yaml").data)
    job = "command: train ${{inputs.lr}}\ninputs: {lr: 0.1}\n"
    _, cautions = parse_document(text, "s.yaml", (), lambda path: TrialFile(job, path, "/jobs"))
    assert cautions == ()


@pytest.mark.parametrize("text", examples("policy.md"))
def test_the_policies_of_the_documentation_are_valid(text: str) -> None:
    POLICY_VALIDATOR.validate(parse(text, "p.yaml").data)
    spec = parse_policy(text, "p.yaml")
    assert parse_policy(policy_yaml(spec), "p.yaml") == spec


@pytest.mark.parametrize(
    "text",
    [
        "queue: {}",
        "queues: {a: {weight: 0}}",
        "queues: {a: {queues: {b: {wieght: 1}}}}",
        "pools: {a: {nodes: [1]}}",
        "pools: {a: {nodes: x, default: 1}}",
        "pools: {a: {nodes: x, maintenance: [{from: 2026-12-01T06:00Z}]}}",
        "pools: {a: {nodes: x, maintenance: [{from: 1, to: 2026-12-01T06:00Z}]}}",
        "order: {preemption: maybe}",
        "order: {class_limits_gpu_hours: [a]}",
        "usage: {half_life_hours: 0}",
    ],
)
def test_both_the_schema_and_the_parser_refuse(text: str) -> None:
    assert not POLICY_VALIDATOR.is_valid(parse(text, "p.yaml").data)
    with pytest.raises(InvalidDocument):
        parse_policy(text, "p.yaml")


@pytest.mark.parametrize("schema", [make() for make in SCHEMAS.values()], ids=SCHEMAS)
def test_every_key_is_described(schema: dict[str, Any]) -> None:
    for body in (schema, *schema["$defs"].values()):
        for key, value in body["properties"].items():
            assert len(value["description"]) > 5, key


def test_descriptions_are_the_fields_own() -> None:
    window = POLICY_SCHEMA["$defs"]["WindowSpec"]
    assert window["properties"].keys() == {"from", "to", "why"} and window["required"] == ["from", "to"]
    assert "with its zone" in window["properties"]["from"]["description"]
    assert SCHEMA["properties"]["$schema"]["description"] == "For editors."
    assert "NVIDIA" in SCHEMA["$defs"]["Gpus"]["properties"]["model"]["description"]


@pytest.mark.parametrize(
    "change",
    [
        {"type": "command"},
        {"trial": {"comand": "x"}},
        {"search_space": {}},
        {"search_space": {"a": {"type": "uniform", "low": 1}}},
        {"search_space": {"a": {"type": "choice", "values": [[1]]}}},
        {"sampling_algorithm": "bayesain"},
        {"sampling_algorithm": {"type": "grid", "rule": "sobol"}},
        {"objective": {"primary_metric": "a", "goal": "up"}},
        {"early_termination": {"type": "median"}},
        {"limits": {"max_total": 3}},
    ],
)
def test_the_schema_of_sweeps_refuses(change: dict[str, Any]) -> None:
    good = {
        "type": "sweep",
        "trial": "train.yaml",
        "search_space": {"a": {"type": "choice", "values": [1, None], "when": {}}},
        "sampling_algorithm": "bayesian",
        "objective": {"primary_metric": "a", "goal": "minimize"},
        "limits": {"max_total_trials": 3},
    }
    SWEEP_VALIDATOR.validate(good)
    assert not SWEEP_VALIDATOR.is_valid({**good, **change})


@settings(max_examples=100)
@given(sweep_documents())
def test_what_the_parser_takes_of_sweeps_the_schema_takes(data: dict[str, Any]) -> None:
    SWEEP_VALIDATOR.validate(data)


@settings(max_examples=100)
@given(job_documents())
def test_what_the_parser_takes_the_schema_takes(data: dict[str, Any]) -> None:
    if "distribution" in data:
        data["distribution"]["type"] = data["distribution"]["type"].lower()
    VALIDATOR.validate(data)
