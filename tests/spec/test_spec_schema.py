"""The JSON Schema agrees with the parser on our examples and on Azure's shape, and describes every key."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from paceline.spec.document import parse
from paceline.spec.job import parse_job
from paceline.spec.schema import job_schema
from support.spec_strategies import job_documents

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("**/*.yaml"))
SCHEMA = job_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["title"] == "Paceline job"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_are_valid_and_without_warnings(path: Path) -> None:
    VALIDATOR.validate(parse(path.read_bytes(), path.name).data)
    _, cautions = parse_job(path.read_bytes(), path.name)
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


def test_every_key_is_described() -> None:
    for body in (SCHEMA, *SCHEMA["$defs"].values()):
        for key, value in body["properties"].items():
            assert len(value["description"]) > 5, key
    assert SCHEMA["properties"]["$schema"]["description"] == "For editors."
    assert "NVIDIA" in SCHEMA["$defs"]["Gpus"]["properties"]["model"]["description"]


@settings(max_examples=100)
@given(job_documents())
def test_what_the_parser_takes_the_schema_takes(data: dict[str, Any]) -> None:
    if "distribution" in data:
        data["distribution"]["type"] = data["distribution"]["type"].lower()
    VALIDATOR.validate(data)
