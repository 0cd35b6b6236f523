"""The command job as frozen models: what every key is called, may hold, and means.

Shaped as Azure Machine Learning's CLI v2 has it; our own keys sit beside. A key that is not here is
refused; a key that is here and cannot be honoured is warned about in compat.py. Defaults are part of
the canonical form, so that a stored job keeps its meaning when a default changes.
"""

import json
import posixpath
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)

from .expressions import resolve
from .fields import (
    ENTRIES_MAX,
    Command,
    Count,
    Identifier,
    Line,
    Literal_,
    LocalPath,
    Loose,
    Lower,
    Name,
    Number,
    SizeBytes,
    Text,
    Variable,
    refusal,
)
from .problems import nearest, shown
from .resources import GangDemand, Resources

INSTANCES_MAX: Final = 100_000
PROCESSES_MAX: Final = 1024
GPUS_MAX: Final = 1024
WORLD_SIZE_MAX: Final = 1_000_000
_YEAR_S: Final = 366 * 24 * 3600

_PRIORITIES: Final = {"low": -100, "medium": 0, "high": 100}
_NOT_YET: Final = ("mpi", "tensorflow", "ray", "deepspeed")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataInput(_Model):
    """A file or folder that every node of the job can read at the same path."""

    type: Annotated[
        Literal["uri_file", "uri_folder", "mltable", "mlflow_model", "custom_model", "triton_model"], Lower
    ] = "uri_folder"
    """What the path leads to."""
    path: LocalPath
    """A path on the nodes, relative to the job file; any URI with `mode: direct`."""
    mode: Annotated[
        Literal["ro_mount", "download", "direct", "eval_mount", "eval_download"] | None, Lower
    ] = None
    """`direct` passes a URI on as text; the other modes all give the path itself, with no copy."""
    datastore: Text = ""
    """Not used here."""

    @property
    def is_uri(self) -> bool:
        """True when the path is a URI and not a path on the nodes."""
        return bool(_URI.match(self.path)) and not self.path.startswith("file:")


class Output(_Model):
    """A folder for results, made before the job starts; `${{outputs.NAME}}` is its path."""

    type: Annotated[
        Literal["uri_file", "uri_folder", "mltable", "mlflow_model", "custom_model", "triton_model"], Lower
    ] = "uri_folder"
    """What the job leaves there."""
    path: Text = ""
    """Not used yet: outputs are kept in the job's own folder."""
    mode: Annotated[Literal["rw_mount", "mount", "upload", "direct"], Lower] = "rw_mount"
    """All modes are the same here: the job writes to the folder where the output stays."""
    name: Line = ""
    """Name to register under; not used yet."""
    version: Loose = ""
    """Version to register under; not used yet."""


class Environment(_Model):
    """An inline environment: its name, or else its image, is what nodes map to an interpreter."""

    name: Line = ""
    """Name that nodes map to an interpreter."""
    version: Loose = ""
    """Version, if several are mapped: NAME:VERSION."""
    image: Line = ""
    """Container image; its name is looked up among what the nodes map."""
    conda_file: JsonValue = None
    """Packages, as a path or inline; not installed here."""
    build: JsonValue = None
    """Docker build context; images are not built here."""
    os_type: Annotated[Literal["linux", "windows"], Lower] = "linux"
    """Nodes run Linux."""
    description: Text = ""
    """For people."""
    tags: dict[str, Loose] = Field(default={}, max_length=ENTRIES_MAX)
    """For people."""
    properties: dict[str, Loose] = Field(default={}, max_length=ENTRIES_MAX)
    """For people."""
    inference_config: JsonValue = None
    """For serving; not used by a command job."""
    datastore: Text = ""
    """Not used here."""


def _distribution_type(value: Any) -> Any:
    lower = value.lower() if isinstance(value, str) else value
    if lower == "pytorch":
        return lower
    if lower in _NOT_YET:
        raise refusal(f"{lower} is not supported yet; expected pytorch")
    guess = nearest(value, ["pytorch", *_NOT_YET])
    raise refusal(f"expected pytorch; found {shown(value)}" + (f"; did you mean '{guess}'?" if guess else ""))


class Distribution(_Model):
    """How the processes of the job find each other."""

    type: Annotated[Literal["pytorch"], BeforeValidator(_distribution_type)]
    """`pytorch`: the environment variables of torchrun and a rendezvous store on rank 0's node."""
    process_count_per_instance: Count = Field(default=1, ge=1, le=PROCESSES_MAX)
    """Processes (ranks) per instance, usually one per GPU."""


def _models(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Gpus(_Model):
    """How many GPUs each instance takes, and of what model."""

    count: Count = Field(ge=0, le=GPUS_MAX)
    """GPUs per instance, whole ones."""
    model: Annotated[
        tuple[Line, ...],
        BeforeValidator(_models, json_schema_input_type=str | list[str]),
    ] = Field(default=(), max_length=64)
    """Any of these: part of the name that NVIDIA's driver gives, in any case, such as `H100`."""


def _gpus(value: Any) -> Any:
    return {"count": value} if isinstance(value, int | float | str | None) else value


class JobResources(_Model):
    """What each instance takes, and how many instances there are."""

    instance_count: Count = Field(default=1, ge=1, le=INSTANCES_MAX)
    """Instances (one task each, on a node each if need be), placed together or not at all."""
    min_instance_count: Count | None = Field(default=None, ge=1, le=INSTANCES_MAX)
    """Elastic: the job may run with as few as this; absent: instance_count."""
    max_instance_count: Count | None = Field(default=None, ge=1, le=INSTANCES_MAX)
    """Elastic: the job may grow to this; absent: instance_count."""
    cpus: Number | None = Field(default=None, gt=0, le=10_000)
    """CPUs per instance, also fractions of one; absent: one per process."""
    memory: SizeBytes = 0
    """Memory per instance, such as 16Gi; 0: not accounted."""
    gpus: Annotated[Gpus, BeforeValidator(_gpus, json_schema_input_type=int | Gpus)] = Gpus(count=0)
    """GPUs per instance: a number, or a mapping with count and model."""
    instance_type: str | tuple[str, ...] = ""
    """Not used yet: say cpus, memory and gpus instead."""
    shm_size: Line = ""
    """Not used: processes share the node's /dev/shm, with no limit of their own."""
    docker_args: str | tuple[str, ...] = ""
    """Not used: there is no container."""
    locations: tuple[str, ...] = ()
    """Not used here."""
    properties: dict[str, JsonValue] = Field(default={}, max_length=ENTRIES_MAX)
    """Not used here."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, count, high = self.min_instance_count, self.instance_count, self.max_instance_count
        if low is not None and low > count:
            raise refusal(f"expected at most instance_count ({count}); found {low}", "min_instance_count")
        if high is not None and high < count:
            raise refusal(f"expected at least instance_count ({count}); found {high}", "max_instance_count")
        return self


class Limits(_Model):
    """Bounds after which the job is stopped or its output cut."""

    timeout: Count | None = Field(default=None, ge=1, le=_YEAR_S)
    """Seconds the job may run, waiting in the queue not counted; absent: no limit."""
    log_size: SizeBytes = Field(default=256 << 20, ge=64 << 10, le=64 << 30)
    """Size to which the log of each rank is kept; the oldest part goes first."""


class QueueSettings(_Model):
    """Azure's way of saying how urgent a job is."""

    job_tier: Annotated[Literal["null", "spot", "basic", "standard", "premium"] | None, Lower] = None
    """Not used here."""
    priority: Annotated[Literal["low", "medium", "high"] | None, Lower] = None
    """low, medium, high: priority -100, 0, 100."""


class Retry(_Model):
    """What happens when the job fails by its own doing."""

    max_attempts: Count = Field(default=4, ge=1, le=1000)
    """Attempts in all that may end because a process of the job failed; attempts that end because a node
    was lost, the job was preempted or a start refused are not counted."""


class Checkpoint(_Model):
    """Which checkpoints are kept."""

    keep_last: Count = Field(default=2, ge=1, le=1000)
    """The newest so many."""
    keep_best: Count = Field(default=0, ge=0, le=1000)
    """And the best so many by best_metric."""
    best_metric: Line = ""
    """Metric to compare; more is better, and with a minus sign before it, as in `-loss`, less is."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.keep_best and not self.best_metric.lstrip("-"):
            raise refusal("required with keep_best: the metric to compare, such as -loss", "best_metric")
        return self


class Identity(_Model):
    """Azure's identity for access to data; processes run as the agent's user here."""

    type: Annotated[Literal["managed", "managed_identity", "amltoken", "aml_token", "user_identity"], Lower]
    """Not used here."""
    client_id: Line = ""
    """Not used here."""
    object_id: Line = ""
    """Not used here."""
    msi_resource_id: Text = ""
    """Not used here."""


def _kind(value: Any) -> str:
    return "~data" if isinstance(value, dict | DataInput) else "~literal"


def _unwrapped(value: Any) -> Any:
    """Azure's long form of a literal is a mapping with nothing but its value."""
    return value["value"] if isinstance(value, dict) and set(value) == {"value"} else value


InputValue = Annotated[
    Annotated[Literal_, Tag("~literal")] | Annotated[DataInput, Tag("~data")],
    Discriminator(_kind),
    BeforeValidator(_unwrapped),
]


def _environment_kind(value: Any) -> str:
    return "~inline" if isinstance(value, dict | Environment) else "~name"


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


EnvironmentValue = Annotated[
    Annotated[Line, Tag("~name")] | Annotated[Environment, Tag("~inline")],
    Discriminator(_environment_kind),
]
OutputValue = Annotated[Output, BeforeValidator(_or_empty, json_schema_input_type=Output | None)]


class JobSpec(_Model):
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
    """Folder in which the command runs, relative to the job file; the same path on every node."""
    inputs: dict[Identifier, InputValue] = Field(default={}, max_length=ENTRIES_MAX)
    """Values and data for `${{inputs.NAME}}`."""
    outputs: dict[Identifier, OutputValue] = Field(default={}, max_length=ENTRIES_MAX)
    """Folders for `${{outputs.NAME}}`."""
    environment: EnvironmentValue = ""
    """Name that nodes map to an interpreter; absent: the node's own interpreter."""
    environment_variables: dict[Variable, Loose] = Field(default={}, max_length=ENTRIES_MAX)
    """Set for every process; expressions are resolved."""
    compute: Line = ""
    """`local` or absent: any node. Pools of nodes are not supported yet."""
    distribution: Distribution | None = None
    """How processes find each other; absent: one process per instance, on its own."""
    resources: JobResources = JobResources()
    """What each instance takes."""
    limits: Limits = Limits()
    """Bounds on time and output."""
    queue_settings: QueueSettings = QueueSettings()
    """Azure's way of saying how urgent the job is; see priority."""
    services: dict[Line, JsonValue] = Field(default={}, max_length=ENTRIES_MAX)
    """Interactive services; not started here."""
    identity: Identity | None = None
    """Not used here."""
    parent_job_name: Line = ""
    """Not used here."""
    priority: Count = Field(default=0, ge=-1000, le=1000)
    """Higher goes first; 0 is usual."""
    retry: Retry = Retry()
    """What happens when the job fails by its own doing."""
    checkpoint: Checkpoint = Checkpoint()
    """Which checkpoints are kept."""
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
        return self

    @property
    def process_count(self) -> int:
        """Processes per instance."""
        return self.distribution.process_count_per_instance if self.distribution else 1

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
            per_task=Resources(max(1, round(cpus * 1000)), want.memory, want.gpus.count),
            instance_count=want.instance_count,
            instance_count_min=want.min_instance_count or want.instance_count,
            instance_count_max=want.max_instance_count or want.instance_count,
            processes_per_task=self.process_count,
            gpu_models=want.gpus.model,
            environment=self.environment_key,
            exclusive=self.exclusive,
            rendezvous=self.distribution is not None,
        )

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

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "job") -> "JobSpec":
        """The job of a canonical text. Raises InvalidDocument."""
        from .reading import parse_canonical

        return parse_canonical(text, source)


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
