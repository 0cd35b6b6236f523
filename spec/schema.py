"""The JSON Schema of the job document, for editors: made from the models, so it cannot drift from them."""

from typing import Any, Final

from .model import JobSpec

SCHEMA_ID: Final = "urn:paceline:schema:v1:job"


def job_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a job file; every key has a description."""
    schema = JobSpec.model_json_schema(by_alias=True, mode="validation")
    for model in (schema, *schema["$defs"].values()):
        for key in model.get("properties", {}).values():
            key.pop("title", None)  # it only repeats the key
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **schema,
        "title": "Paceline job",
    }
