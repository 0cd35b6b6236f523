"""The job document's front door: read it, check it, change it, write it.

The models are in model.py, sweep.py and the files of their parts, what Azure's keys mean here in compat.py,
reading and the placing of errors in reading.py and sweep_reading.py. Importing this costs pydantic;
`paceline.spec` itself does not.
"""

from .compat import Caution
from .document import DOCUMENT_BYTES_MAX
from .model import JobSpec
from .overrides import apply_overrides
from .parts import DataInput, Environment, Gpus, JobResources, Output
from .policies import Backoff, Checkpoint, Limits, Retry
from .problems import InvalidDocument, Problem
from .reading import job_from_data, job_of, parse_canonical, parse_job
from .sweep import SweepSpec
from .sweep_reading import Spec, document_from_data, parse_canonical_document, parse_document
from .trial_files import TrialFile
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
    "Spec",
    "SweepSpec",
    "TrialFile",
    "apply_overrides",
    "document_from_data",
    "job_from_data",
    "job_of",
    "parse_canonical",
    "parse_canonical_document",
    "parse_document",
    "parse_job",
    "to_yaml",
]
