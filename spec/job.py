"""The job document's front door: read it, check it, change it, write it.

The models are in model.py, what Azure's keys mean here in compat.py, reading and placing of errors in
reading.py. Importing this costs pydantic; `paceline.spec` itself does not.
"""

from .compat import Caution
from .document import DOCUMENT_BYTES_MAX
from .model import (
    Checkpoint,
    DataInput,
    Distribution,
    Environment,
    Gpus,
    JobResources,
    JobSpec,
    Limits,
    Output,
    Retry,
)
from .overrides import apply_overrides
from .problems import InvalidDocument, Problem
from .reading import job_from_data, job_of, parse_canonical, parse_job

__all__ = [
    "DOCUMENT_BYTES_MAX",
    "Caution",
    "Checkpoint",
    "DataInput",
    "Distribution",
    "Environment",
    "Gpus",
    "InvalidDocument",
    "JobResources",
    "JobSpec",
    "Limits",
    "Output",
    "Problem",
    "Retry",
    "apply_overrides",
    "job_from_data",
    "job_of",
    "parse_canonical",
    "parse_job",
]
