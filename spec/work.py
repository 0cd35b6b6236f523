"""What each process runs and what it takes: what a job says of it, and a sweep of all its trials.

As in parts.py, every field's docstring becomes its description in the JSON Schema.
"""

import hashlib
import json
import posixpath
import re
from typing import Final, Self

from pydantic import ConfigDict, Field, model_validator

from .code import CodeGit
from .distribution import DistributionValue
from .fields import ENTRIES_MAX, Command, LocalPath, Metric, Number, TreeId, Variable, VariableText, refusal
from .parts import Environment, EnvironmentValue, JobResources, Model
from .patterns import PATTERNS_MAX, MetricPattern
from .placement import Placement, Topology
from .policies import Checkpoint, Limits, Retry
from .slices import asks_for_slice

WORLD_SIZE_MAX: Final = 1_000_000


class Work(Model):
    """A command and what it needs."""

    model_config = ConfigDict(defer_build=True)  # who reads no sweep needs it as a part of JobSpec only

    command: Command
    """What each process runs, by `sh -c` unless it is plainly a program with arguments."""
    code: LocalPath | None = None
    """Folder of what the command runs, relative to the job file. It is packed when the job is submitted, and
    each attempt runs in a copy. Absent: the command runs in the folder that holds the job file, which must
    have the same path on every node."""
    code_in_place: bool = Field(default=False, strict=True)
    """Run in `code` itself: nothing is packed, and the folder must have the same path on every node."""
    code_tree: TreeId | None = None
    """What `code` was when it was packed: the id of a tree. The client fills it in."""
    code_git: CodeGit | None = None
    """Where `code` stood in git. The client fills it in."""
    environment: EnvironmentValue = ""
    """Name that nodes map to an interpreter; or the path that an interpreter or a virtual environment has on
    every node; or requirements, from which each node builds one; or a container's image. Absent: the node's
    own interpreter."""
    environment_variables: dict[Variable, VariableText] = Field(default={}, max_length=ENTRIES_MAX)
    """Set for every process; expressions are resolved."""
    distribution: DistributionValue | None = None
    """How processes find each other; absent: one process per instance, on its own."""
    resources: JobResources = JobResources()
    """What each instance takes."""
    placement: Placement | None = None
    """On which nodes it may run, by their labels and taints; absent: on any without taints."""
    topology: Topology | None = None
    """How close together its instances shall be; absent: as close as comes without a cost."""
    limits: Limits = Limits()
    """Bounds on time and output."""
    retry: Retry = Retry()
    """How often the job is started again when it fails by its own doing."""
    checkpoint: Checkpoint = Checkpoint()
    """How many checkpoints are kept, and which."""
    exclusive: bool = Field(default=False, strict=True)
    """Never two attempts at once, not even fenced ones: a lost node is replaced only when its lease has
    run out on both sides."""
    grace_s: Number = Field(default=30.0, ge=0, le=3600)
    """Seconds between the notice to stop (SIGTERM) and SIGKILL."""
    metric_patterns: dict[Metric, MetricPattern] = Field(default={}, max_length=PATTERNS_MAX)
    """Metrics that rank 0 prints, by name: a regular expression with a group `value` that is searched in each
    line, and perhaps a group `step`; without that one, the n-th line that matches is step n."""

    @model_validator(mode="after")
    def _startable(self) -> Self:
        count = max(self.resources.instance_count, self.resources.max_instance_count or 0)
        if count * self.process_count > WORLD_SIZE_MAX:
            raise refusal(
                f"expected at most {WORLD_SIZE_MAX} processes in all; found {count * self.process_count}"
                f" ({count} instances of {self.process_count})",
                "resources",
                "instance_count",
            )
        self._check_slices()
        return self

    def _check_slices(self) -> None:
        gpus = self.resources.gpus
        if any(map(asks_for_slice, gpus.model)) and gpus.whole > self.process_count:
            processes = "1 process" if self.process_count == 1 else f"{self.process_count} processes"
            raise refusal(
                f"expected at most one MIG slice per process, for CUDA gives a process one;"
                f" found {gpus.whole} for {processes} per instance",
                *("resources", "gpus", "count"),
            )

    @property
    def packs(self) -> str:
        """The folder that is still to be packed; empty: none."""
        return self.code if self.code and not self.code_in_place and not self.code_tree else ""

    @property
    def process_count(self) -> int:
        """Processes per instance."""
        return self.distribution.process_count_per_instance if self.distribution else 1

    @property
    def launcher(self) -> str:
        """distribution.type; empty: none."""
        return self.distribution.type if self.distribution else ""

    @property
    def environment_key(self) -> str:
        """What it is called: NAME, NAME:VERSION or an image, a path, or of what is built the hash. Empty: the
        node's own."""
        if isinstance(self.environment, Environment) and self.environment.is_built:
            asked = [self.environment.requirements, self.environment.python_version]
            return f"requirements-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}"
        return self.mapped_environment or self.environment_path

    @property
    def mapped_environment(self) -> str:
        """What a node maps to an interpreter, if it runs no images: NAME, NAME:VERSION or an image; empty:
        nothing."""
        if isinstance(self.environment, str):
            return "" if self.environment_path else _environment_key(self.environment)
        if self.environment.name:
            version = self.environment.version
            return _environment_key(self.environment.name) + (f":{version}" if version else "")
        return self.environment.image

    @property
    def container_image(self) -> str:
        """What a node with a container engine runs it in; empty: none. An image without the packages that are
        to be installed into it is not what was asked for."""
        found = self.environment
        if isinstance(found, str) or found.conda_file is not None or found.build is not None:
            return ""
        return found.image

    @property
    def environment_path(self) -> str:
        """The interpreter or virtual environment that is used as it is; empty: none."""
        found = self.environment if isinstance(self.environment, str) else ""
        return found if found.startswith("/") and not found.startswith("/subscriptions/") else ""

    @property
    def folder_name(self) -> str:
        """The last name of `code`; empty without."""
        return posixpath.basename(posixpath.normpath(self.code)) if self.code else ""


def _environment_key(reference: str) -> str:
    """`azureml:NAME@latest` -> NAME, `azureml:NAME:3` -> NAME:3, resource ids likewise; else as it is."""
    match = re.search(r"/environments/([^/]+)(?:/(versions|labels)/([^/]+))?\Z", reference)
    if match and reference.startswith(("azureml:", "/subscriptions/")):
        return f"{match[1]}:{match[3]}" if match[2] == "versions" else match[1]
    return reference.removeprefix("azureml:").removesuffix("@latest")
