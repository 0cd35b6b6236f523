"""The job document's front door: read it, check it, change it, write it.

The models are in model.py and the files of its parts, what Azure's keys mean here in compat.py, reading and
the placing of errors in reading.py; sweep_reading.py reads jobs and sweeps alike. Importing this costs
pydantic; `paceline.spec` itself does not.
"""

from .compat import Caution
from .document import DOCUMENT_BYTES_MAX
from .model import JobSpec
from .overrides import apply_overrides
from .parts import DataInput, Environment, Gpus, JobResources, Output
from .policies import Backoff, Checkpoint, Limits, Retry
from .problems import InvalidDocument, Problem
from .reading import job_from_data, job_of, parse_canonical, parse_job
from .writing import to_yaml

__all__ = [
    "DOCUMENT_BYTES_MAX",
    "Backoff",
    "Caution",
    "Checkpoint",
    "DataInput",
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
    "to_yaml",
]
