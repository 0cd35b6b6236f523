"""The command job as one frozen model: what it says, and what that asks of the cluster.

Shaped as Azure Machine Learning's CLI v2 has it; our own keys sit beside. A key that is not here is
refused; a key that is here and cannot be honoured is warned about in compat.py. Defaults are part of
the canonical form, so that a stored job keeps its meaning when a default changes.
"""

import json
import posixpath
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from .distribution import DistributionValue
from .expressions import resolve
from .fields import (
    ENTRIES_MAX,
    Command,
    Count,
    Identifier,
    Line,
    LocalPath,
    Loose,
    Lower,
    Name,
    Number,
    PlainData,
    QueuePath,
    Text,
    Variable,
    VariableText,
    refusal,
)
from .parts import DataInput, EnvironmentValue, Identity, InputValue, JobResources, Model, OutputValue
from .placement import Placement, Topology
from .policies import Checkpoint, Limits, QueueSettings, Retry
from .resources import Constraints, GangDemand, Resources
from .slices import asks_for_slice

WORLD_SIZE_MAX: Final = 1_000_000
_PRIORITIES: Final = {"low": -100, "medium": 0, "high": 100}


class JobSpec(Model):
    """One job: a command, what it reads and writes, and what it needs."""

    schema_: Text = Field(default="", alias="$schema")
    """For editors."""
    type: Annotated[Literal["command"], Lower] = "command"
    """Kind of the document."""
    name: Name | None = None
    """Name of the job; need not be unique, the scheduler numbers jobs."""
    display_name: Line = ""
    """Name for people."""
    experiment_name: Line = ""
    """What the job belongs to, for listing."""
    description: Text = ""
    """For people."""
    tags: dict[Line, Loose] = Field(default={}, max_length=ENTRIES_MAX)
    """For people and for search."""
    properties: dict[Line, Loose] = Field(default={}, max_length=ENTRIES_MAX)
    """For tools."""
    command: Command
    """What each process runs, by `sh -c` unless it is plainly a program with arguments."""
    code: LocalPath | None = None
    """Folder in which the command runs, relative to the job file; the same path on every node. Absent:
    the folder that holds the job file."""
    inputs: dict[Identifier, InputValue] = Field(default={}, max_length=ENTRIES_MAX)
    """Values and data for `${{inputs.NAME}}`."""
    outputs: dict[Identifier, OutputValue] = Field(default={}, max_length=ENTRIES_MAX)
    """Folders for `${{outputs.NAME}}`."""
    environment: EnvironmentValue = ""
    """Name that nodes map to an interpreter; absent: the node's own interpreter."""
    environment_variables: dict[Variable, VariableText] = Field(default={}, max_length=ENTRIES_MAX)
    """Set for every process; expressions are resolved."""
    compute: Line = ""
    """A pool of nodes of the cluster's policy. `local` or absent: its default pool, else any node."""
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
    queue_settings: QueueSettings = QueueSettings()
    """Azure's way of saying how urgent the job is; see priority."""
    services: dict[Line, PlainData] = Field(default={}, max_length=ENTRIES_MAX)
    """Interactive services; not started here."""
    identity: Identity | None = None
    """Not used here."""
    parent_job_name: Line = ""
    """Not used here."""
    queue: QueuePath = ""
    """The queue of the cluster's policy in which it waits, such as `research/vision`; absent: the default."""
    priority: Count = Field(default=0, ge=-1000, le=1000)
    """Higher goes first; 0 is usual."""
    retry: Retry = Retry()
    """How often the job is started again when it fails by its own doing."""
    checkpoint: Checkpoint = Checkpoint()
    """How many checkpoints are kept, and which."""
    exclusive: bool = Field(default=False, strict=True)
    """Never two attempts at once, not even fenced ones: a lost node is replaced only when its lease has
    run out on both sides."""
    grace_s: Number = Field(default=30.0, ge=0, le=3600)
    """Seconds between the notice to stop (SIGTERM) and SIGKILL."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.priority and self.queue_settings.priority:
            raise refusal("given twice: here and as queue_settings.priority; keep one", "priority")
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
    def process_count(self) -> int:
        """Processes per instance."""
        return self.distribution.process_count_per_instance if self.distribution else 1

    @property
    def launcher(self) -> str:
        """distribution.type; empty: none."""
        return self.distribution.type if self.distribution else ""

    @property
    def label(self) -> str:
        """What to call the job: its name, or else what comes nearest to one. A valid name, always."""
        if self.name:
            return self.name
        folder = posixpath.basename(posixpath.normpath(self.code)) if self.code else ""
        words = (self.display_name, self.experiment_name, folder, posixpath.basename(self.command.split()[0]))
        return next((slug for slug in map(_slug, words) if slug), "job")

    @property
    def effective_priority(self) -> int:
        """`priority`, or what queue_settings.priority stands for."""
        return self.priority or _PRIORITIES[self.queue_settings.priority or "medium"]

    @property
    def environment_key(self) -> str:
        """What a node must map to an interpreter: NAME, NAME:VERSION or an image; empty: its own."""
        if isinstance(self.environment, str):
            return _environment_key(self.environment)
        if self.environment.name:
            version = self.environment.version
            return _environment_key(self.environment.name) + (f":{version}" if version else "")
        return self.environment.image

    @property
    def pool(self) -> str:
        """The pool that `compute` names; empty: none."""
        name = self.compute.removeprefix("azureml:")
        return "" if name == "local" else name

    def input_values(self) -> dict[str, str]:
        """What each `${{inputs.NAME}}` becomes, as text."""
        return {
            name: local_path(value) if isinstance(value, DataInput) else str(value)
            for name, value in self.inputs.items()
        }

    def resolved_command(self, outputs: Mapping[str, str]) -> str:
        """The command with its expressions resolved; `outputs` gives a path for each output."""
        return resolve(self.command, self.input_values(), outputs)

    def resolved_variables(self, outputs: Mapping[str, str]) -> dict[str, str]:
        """The environment variables with their expressions resolved."""
        inputs = self.input_values()
        return {name: resolve(text, inputs, outputs) for name, text in self.environment_variables.items()}

    def demand(self) -> GangDemand:
        """What placement needs to know."""
        want = self.resources
        cpus = self.process_count if want.cpus is None else want.cpus
        return GangDemand(
            per_task=Resources(
                max(1, round(cpus * 1000)), want.memory, want.gpus.whole, want.gpus.share_milli
            ),
            instance_count=want.instance_count,
            instance_count_min=want.min_instance_count or want.instance_count,
            instance_count_max=want.max_instance_count or want.instance_count,
            processes_per_task=self.process_count,
            gpu_models=want.gpus.model,
            gpu_memory_bytes=want.gpus.memory,
            environment=self.environment_key,
            exclusive=self.exclusive,
            rendezvous=self.distribution is not None,
            constraints=self._constraints(),
            pool=self.pool,
        )

    def _constraints(self) -> Constraints | None:
        if self.placement is None and self.topology is None:
            return None
        where, close = self.placement or Placement(), self.topology
        found = Constraints(
            labels=tuple(sorted(where.labels.items())),
            prefer=tuple(sorted(where.prefer.items())),
            tolerate=tuple(
                sorted((key, value) for key, _, value in (one.partition("=") for one in where.tolerate))
            ),
            within=close.within if close else "",
            within_preferred=close is not None and close.mode == "preferred",
        )
        return found if found != Constraints() else None

    def rooted(self, folder: str) -> "JobSpec":
        """The same job with its local paths made absolute, those relative ones below `folder`."""
        inputs = {
            name: value.model_copy(update={"path": _absolute(folder, local_path(value))})
            if isinstance(value, DataInput) and not value.is_uri
            else value
            for name, value in self.inputs.items()
        }
        code = _absolute(folder, self.code) if self.code else None
        return self.model_copy(update={"inputs": inputs, "code": code})

    def to_json(self) -> str:
        """Canonical JSON: equal jobs have equal text, defaults included."""
        plain = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def local_path(value: DataInput) -> str:
    """The path without `file:` before it."""
    if not value.path.startswith("file:"):
        return value.path
    return value.path.removeprefix("file:").removeprefix("//")


def _absolute(folder: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(folder, path))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64].strip("-._")


def _environment_key(reference: str) -> str:
    """`azureml:NAME@latest` -> NAME, `azureml:NAME:3` -> NAME:3, resource ids likewise; else as it is."""
    match = re.search(r"/environments/([^/]+)(?:/(versions|labels)/([^/]+))?\Z", reference)
    if match and reference.startswith(("azureml:", "/subscriptions/")):
        return f"{match[1]}:{match[3]}" if match[2] == "versions" else match[1]
    return reference.removeprefix("azureml:").removesuffix("@latest")
