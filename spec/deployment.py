"""A deployment as one frozen document: a model that answers requests under an endpoint's name.

Shaped as Azure Machine Learning's online deployments are; our own keys sit beside. As in parts.py, every
field's docstring becomes its description in the JSON Schema.
"""

import posixpath
import re
import shlex
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from .code import CodeGit
from .fields import (
    ENTRIES_MAX,
    Count,
    Line,
    LocalPath,
    Loose,
    Lower,
    Name,
    Number,
    QueuePath,
    TreeId,
    Variable,
    VariableText,
    refusal,
)
from .model import JobSpec
from .parts import DataInput, EnvironmentValue, JobResources, Model, Pinned
from .placement import Placement
from .policies import Backoff, Limits, Retry
from .problems import shown
from .submission import absolute, canonical, local_path

REPLICAS_MAX: Final = 1_000
REPLICA: Final = "python -m paceline.serving.replica"
"""What runs a replica; options follow."""
ROUTER: Final = "python -m paceline.serving.router"
_REPLICA_ATTEMPTS: Final = 3
_ROUTER_ATTEMPTS: Final = 1_000
_ROUTER_PRIORITY: Final = 1_000
_MARGIN_S: Final = 5.0
"""Beyond the time of a request, for a replica that is to end."""
_LISTEN: Final = re.compile(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}\Z")


def _listen(value: str) -> str:
    if value and not (_LISTEN.match(value) and int(value.rpartition(":")[2]) < 1 << 16):
        raise refusal(f"expected HOST:PORT; found {shown(value)}")
    return value


def _folder(value: str) -> str:
    if "://" in value or value.startswith(("azureml:", "git+")):
        raise refusal(f"code is not fetched from URIs yet; expected a folder, found {shown(value)}")
    return value


def _below(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/"):
        raise refusal(f"expected the path of a file below `code`; found {shown(value)}")
    return posixpath.normpath(value)


class RequestSettings(Model):
    """What a request may take."""

    request_timeout_ms: Count = Field(default=60_000, ge=1, le=86_400_000)
    """Milliseconds in which a replica must have answered."""
    max_concurrent_requests_per_instance: Count = Field(default=0, ge=0, le=100_000)
    """Requests at once in one replica; further ones wait. 0: no limit."""
    max_queue_wait_ms: Count = Field(default=10_000, ge=0, le=3_600_000)
    """Milliseconds that a request waits for a replica before it is refused."""


class Probe(Model):
    """How a replica is asked whether it is well."""

    period: Number = Field(default=1.0, gt=0, le=3_600)
    """Seconds between two questions."""
    timeout: Number = Field(default=2.0, gt=0, le=600)
    """Seconds in which it must have answered."""
    failure_threshold: Count = Field(default=3, ge=1, le=1_000)
    """Failures in a row after which it gets no requests."""


class ScaleSettings(Model):
    """How many replicas there are, by how much they have to do."""

    type: Annotated[Literal["default", "target_utilization"], Lower] = "target_utilization"
    """`default`: instance_count, always."""
    min_instances: Count = Field(default=1, ge=1, le=REPLICAS_MAX)
    """Never fewer."""
    max_instances: Count = Field(default=1, ge=1, le=REPLICAS_MAX)
    """Never more."""
    target_requests: Number = Field(default=4.0, gt=0, le=100_000)
    """Requests at once, on average, that one replica is to have."""
    scale_down_s: Number = Field(default=60.0, ge=0, le=86_400)
    """Seconds for which fewer must have been enough before one leaves."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_instances < self.min_instances:
            raise refusal(
                f"expected at least min_instances ({self.min_instances}); found {self.max_instances}",
                "max_instances",
            )
        return self


class CodeConfiguration(Model):
    """A scoring script that does not lie in the model's folder, and what it imports."""

    code: Annotated[LocalPath, AfterValidator(_folder)]
    """Its folder, relative to the file, on the machine where you deploy. It is packed as a job's code is, and
    each replica works in a copy."""
    scoring_script: Annotated[LocalPath, AfterValidator(_below)]
    """The script, below `code`: init() and run(raw_data)."""
    code_tree: TreeId | None = None
    """What `code` was when it was packed: the id of a tree. The client fills it in."""
    code_git: CodeGit | None = None
    """Where `code` stood in git. The client fills it in."""


class DeploymentSpec(Model):
    """One model behind an endpoint."""

    model_config = ConfigDict(defer_build=True)

    schema_: str = Field(default="", alias="$schema", max_length=4096)
    """For editors."""
    type: Annotated[Literal["deployment"], Lower] = "deployment"
    """Kind of the document."""
    name: Name = "main"
    """Its name, one of those of the endpoint."""
    endpoint_name: Name
    """The endpoint. It is made when there is none of that name."""
    model: LocalPath
    """NAME:VERSION or NAME@ALIAS of the registry; or a folder, the same path on every node."""
    code_configuration: CodeConfiguration | None = None
    """A scoring script of its own; absent: what lies in the model's folder serves it."""
    engine: Annotated[Literal["auto", "torch", "score", "mlflow", "ray"], Lower] = "auto"
    """What serves it; auto: code_configuration, or else by what lies in the model's folder."""
    environment: EnvironmentValue = ""
    """What the replicas run in; absent: the node's own interpreter."""
    environment_variables: dict[Variable, VariableText] = Field(default={}, max_length=ENTRIES_MAX)
    """Set for every replica."""
    resources: JobResources = JobResources()
    """What each replica takes."""
    placement: Placement | None = None
    """On which nodes replicas may run."""
    compute: Line = ""
    """The pool of nodes."""
    queue: QueuePath = ""
    """The queue in which replicas wait."""
    priority: Count = Field(default=100, ge=-1000, le=1000)
    """Of the replicas: somebody waits for their answers, so that it is above a job's by default."""
    instance_count: Count = Field(default=1, ge=1, le=REPLICAS_MAX)
    """Replicas."""
    scale_settings: ScaleSettings | None = None
    """As many replicas as the requests need; absent: instance_count."""
    request_settings: RequestSettings = RequestSettings()
    """What a request may take."""
    liveness_probe: Probe = Probe()
    """How a replica is asked whether it is well."""
    progress_deadline_s: Number = Field(default=600.0, gt=0, le=86_400)
    """Seconds in which the replicas of a new revision must be there; else it is taken back. Time in which
    they wait in line for a node counts, too."""
    auth_mode: Annotated[Literal["key", "none"], Lower] = "key"
    """Of the endpoint: whether a request must carry its key."""
    listen: Annotated[Line, AfterValidator(_listen)] = ""
    """Of the endpoint: HOST:PORT of its router, from its next start on. Absent: a free port of the address by
    which its node reaches the scheduler."""
    pinned: Pinned | None = None
    """What the reference in `model` meant when it was deployed; not to be written by hand."""
    description: str = Field(default="", max_length=10_000)
    """For people."""
    tags: dict[Line, Loose] = Field(default={}, max_length=ENTRIES_MAX)
    """For people."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if max(self.resources.instance_count, self.resources.max_instance_count or 0) > 1:
            raise refusal(
                "a replica is one instance; say instance_count beside resources",
                *("resources", "instance_count"),
            )
        if self.code_configuration is not None and self.engine not in ("auto", "score"):
            raise refusal(f"a scoring script is served by `score`; found {shown(self.engine)}", "engine")
        return self

    @property
    def scale(self) -> ScaleSettings:
        """Absent, or `default`: as many as instance_count."""
        if self.scale_settings is None or self.scale_settings.type == "default":
            return ScaleSettings(min_instances=self.instance_count, max_instances=self.instance_count)
        return self.scale_settings

    @property
    def model_input(self) -> DataInput:
        """The model as each replica's input."""
        return DataInput(type="custom_model", path=self.model, pinned=self.pinned)

    @property
    def timeout_s(self) -> float:
        return self.request_settings.request_timeout_ms / 1000

    def rooted(self, folder: str) -> "DeploymentSpec":
        """The same with its local paths made absolute, those relative ones below `folder`."""
        changes: dict[str, object] = {}
        if self.model_input.is_local:
            changes["model"] = absolute(folder, local_path(self.model_input))
        if (code := self.code_configuration) is not None:
            changes["code_configuration"] = code.model_copy(update={"code": absolute(folder, code.code)})
        return self.model_copy(update=changes)

    @property
    def packs(self) -> str:
        """The folder that is still to be packed; empty: none."""
        code = self.code_configuration
        return code.code if code is not None and not code.code_tree else ""

    def with_code(self, tree: str, git: CodeGit | None) -> "DeploymentSpec":
        """The same, its script in that tree."""
        assert self.code_configuration is not None
        code = self.code_configuration.model_copy(update={"code_tree": tree, "code_git": git})
        return self.model_copy(update={"code_configuration": code})

    def to_json(self) -> str:
        """Canonical JSON, defaults included."""
        return canonical(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def replica_job(self) -> JobSpec:
        """What each replica is."""
        command = f"{REPLICA} --name {shlex.quote(self.endpoint_name)}"
        command += f" --engine {self.engine} --model ${{{{inputs.model}}}}"
        code = self.code_configuration
        if code is not None:
            command += f" --script {shlex.quote(code.scoring_script)}"
        return JobSpec(
            command=command,
            code=code.code if code is not None else None,
            code_tree=code.code_tree if code is not None else None,
            code_git=code.code_git if code is not None else None,
            name=f"{self.endpoint_name}-{self.name}"[:255],
            inputs={"model": self.model_input},
            environment=self.environment,
            environment_variables=self.environment_variables,
            resources=self.resources,
            placement=self.placement,
            compute=self.compute,
            queue=self.queue,
            priority=self.priority,
            limits=Limits(hang_timeout=0),
            retry=Retry(max_attempts=_REPLICA_ATTEMPTS, backoff=Backoff(start_s=1, max_s=10)),
            grace_s=min(3600.0, self.timeout_s + _MARGIN_S),
        )

    def router_job(self) -> JobSpec:
        """What directs the endpoint's requests."""
        return JobSpec(
            command=f"{ROUTER} --listen {shlex.quote(self.listen)}" if self.listen else ROUTER,
            name=f"{self.endpoint_name}-router"[:255],
            resources=JobResources(cpus=0.1),
            compute=self.compute,
            queue=self.queue,
            priority=_ROUTER_PRIORITY,
            limits=Limits(hang_timeout=0),
            retry=Retry(max_attempts=_ROUTER_ATTEMPTS, backoff=Backoff(start_s=0.2, max_s=5)),
            grace_s=min(3600.0, self.timeout_s + _MARGIN_S),
        )
