"""What admins say: of the policy, and of a job's place in line; see stimuli.py."""

from dataclasses import dataclass

from ...spec.ids import JobId
from .cluster_policy import ClusterPolicy


@dataclass(frozen=True, slots=True)
class ApplyPolicy:
    """It is in force from now on. Answer: no jobs. Raises Conflict."""

    key: str
    by: str
    policy: ClusterPolicy


@dataclass(frozen=True, slots=True)
class HoldJob:
    """It is not to start until it is released. Answer: the Job. Raises NotFound."""

    job: JobId
    by: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class ReleaseJob:
    """Answer: the Job. Raises NotFound."""

    job: JobId
    by: str


@dataclass(frozen=True, slots=True)
class SetPriority:
    """Answer: the Job. Raises NotFound."""

    job: JobId
    by: str
    priority: int
