"""The mappings that say what a job is and needs: what each key is called, may hold, and means.

Every field's docstring becomes its description in the JSON Schema (schema.py). A default is part of
the canonical form.
"""

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
    model_validator,
)

from .asset_names import EXPECTED, Reference, is_word, parse_reference
from .fields import (
    ENTRIES_MAX,
    Count,
    GpuCount,
    Line,
    Listed,
    LocalPath,
    Loose,
    Lower,
    Number,
    PlainData,
    SizeBytes,
    Text,
    Value,
    refusal,
)
from .problems import shown
from .requirements import REQUIREMENTS_MAX, check_python_version, requirements
from .resources import WHOLE_GPU_MILLI
from .slices import asks_for_slice

INSTANCES_MAX: Final = 100_000
# Alternatives of a value, as they turn up in the paths of pydantic's errors. No key can look like this.
TAG_DATA: Final = "\0data"
TAG_LITERAL: Final = "\0literal"
TAG_INLINE: Final = "\0inline"
TAG_NAME: Final = "\0name"
TAG_ONE: Final = "\0one"
TAG_SEVERAL: Final = "\0several"
TAGS: Final = frozenset({TAG_DATA, TAG_LITERAL, TAG_INLINE, TAG_NAME, TAG_ONE, TAG_SEVERAL})

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def _asset_word(value: str) -> str:
    if value and not is_word(value):
        raise refusal(f"expected {EXPECTED}; found {shown(value)}")
    return value


AssetWord = Annotated[Line, AfterValidator(_asset_word)]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pinned(Model):
    """What a reference to an asset, or a URL, meant when the job was accepted; the scheduler writes it. What
    is at a URL, the client has seen."""

    asset: Text = ""
    """The version, as the lineage calls it: `data:NAME:VERSION` or `model:NAME:VERSION`; empty: a URL that is
    not registered."""
    asked: Line = ""
    """The alias that led to it, as `NAME@ALIAS`; empty: it was named by its version."""
    tree: Line = ""
    """Its tree in the content store."""
    file: Text = ""
    """The one file of the tree, or of the URL, that is meant; empty: all of it."""
    url: Text = ""
    """Where it is, if it is no tree."""
    etag: Text = ""
    """What the URL's server called its state when somebody looked."""
    bytes: Count = Field(default=0, ge=0)
    """What was at the URL then."""
    files: Count = Field(default=0, ge=0)
    """How many files were there; 0: nobody looked."""
    value: Value | None = None
    """What it is, if it is a literal value."""


class DataInput(Model):
    """A file or folder that every node of the job can read at the same path, or an asset."""

    type: Annotated[
        Literal["uri_file", "uri_folder", "mltable", "mlflow_model", "custom_model", "triton_model"], Lower
    ] = "uri_folder"
    """What the path leads to."""
    path: LocalPath
    """A path on the nodes, relative to the job file; an asset as NAME:VERSION or NAME@ALIAS, also with
    `azureml:` before it; a URL, such as s3://bucket/folder or https://host/file, which each node fetches
    once; any URI with `mode: direct`."""
    mode: Annotated[
        Literal["ro_mount", "download", "direct", "eval_mount", "eval_download"] | None, Lower
    ] = None
    """`direct` passes a URI on as text; the other modes all give a path: of what lies on the nodes the path
    itself, with no copy, of assets and URLs that in the node's cache."""
    datastore: Text = ""
    """Not used here."""
    pinned: Pinned | None = None
    """What the reference in `path` meant when the job was accepted; not to be written by hand."""

    @property
    def is_uri(self) -> bool:
        """True when the path is a URI and not a path on the nodes."""
        return bool(_URI.match(self.path)) and not self.path.startswith("file:") and self.reference is None

    @property
    def is_url(self) -> bool:
        """True when the path is a URL that nodes fetch; it is given to the job as a path."""
        return self.is_uri and self.mode != "direct"

    @property
    def is_provided(self) -> bool:
        """True when a node makes it a path before the start."""
        return self.pinned is not None and bool(
            self.pinned.tree or (self.pinned.url and self.mode != "direct")
        )

    @property
    def is_local(self) -> bool:
        """True when the path is one on the nodes."""
        return not self.is_uri and self.reference is None

    @property
    def reference(self) -> Reference | None:
        """The asset that the path names, if it names one."""
        return parse_reference(self.path)

    @property
    def kind(self) -> str:
        """Of the asset that it names: `model` or `data`."""
        return "model" if self.type.endswith("_model") else "data"


class Output(Model):
    """A folder for results, made before the job starts; `${{outputs.NAME}}` is its path."""

    type: Annotated[
        Literal["uri_file", "uri_folder", "mltable", "mlflow_model", "custom_model", "triton_model"], Lower
    ] = "uri_folder"
    """What the job leaves there."""
    path: Text = ""
    """Not used yet: outputs are kept in the job's own folder."""
    mode: Annotated[Literal["rw_mount", "mount", "upload", "direct"], Lower] = "rw_mount"
    """All modes are the same here: the job writes to the folder where the output stays."""
    name: AssetWord = ""
    """Name to register it under when the job has succeeded; absent: it is not registered."""
    version: Annotated[Loose, AfterValidator(_asset_word)] = ""
    """Version to register it under; absent: the next number."""

    @property
    def kind(self) -> str:
        """As what it is registered: `model` or `data`."""
        return "model" if self.type.endswith("_model") else "data"


Requirements = Annotated[
    Any,
    PlainValidator(requirements),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}, "maxItems": REQUIREMENTS_MAX}),
]
"""A file's path until the client has read it; then tuple[str, ...]."""


class Environment(Model):
    """An inline environment: an image runs where a node has a container engine, or maps the name, else the
    image, to an interpreter; without both, each node builds one from the requirements."""

    name: Line = ""
    """Name that nodes map to an interpreter."""
    version: Loose = ""
    """Version, if several are mapped: NAME:VERSION."""
    image: Line = ""
    """Container image, as podman and docker name it: pytorch/pytorch:2.9; a node that maps it needs none."""
    requirements: Requirements | None = None
    """What each node installs, once, into a virtual environment: a file as pip takes it, or its lines."""
    python_version: Loose = ""
    """Of the environment that is built, such as 3.11; absent: that of the node's own interpreter."""
    conda_file: PlainData = None
    """The same as a conda file, its path or inline: Python's version and the pip section are taken."""
    build: PlainData = None
    """Docker build context; images are not built here."""
    os_type: Annotated[Literal["linux", "windows"], Lower] = "linux"
    """Nodes run Linux."""
    description: Text = ""
    """For people."""
    tags: dict[str, Loose] = Field(default={}, max_length=ENTRIES_MAX)
    """For people."""
    properties: dict[str, Loose] = Field(default={}, max_length=ENTRIES_MAX)
    """For people."""
    inference_config: PlainData = None
    """For serving; not used by a command job."""
    datastore: Text = ""
    """Not used here."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        check_python_version(self.python_version)
        if self.requirements is not None and (other := self.name or self.image):
            raise refusal(
                f"expected requirements or what nodes map to an interpreter; found both ({shown(other)})",
                "requirements",
            )
        if self.requirements is not None and self.conda_file is not None:
            raise refusal("given twice: here and as conda_file; keep one", "requirements")
        if self.python_version and not self.is_built:
            raise refusal("has an effect only beside requirements", "python_version")
        return self

    @property
    def is_built(self) -> bool:
        """Each node makes it."""
        packages = self.requirements is not None or self.conda_file is not None
        return packages and not self.name and not self.image

    @property
    def is_unread(self) -> bool:
        """Its files are still to be read where the document was written."""
        return self.is_built and (self.conda_file is not None or isinstance(self.requirements, str))


Words = Annotated[
    tuple[Line, ...],
    Listed,
    Field(max_length=64),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}, "maxItems": 64}),
]
"""One text, or a list of them."""


class Gpus(Model):
    """How many GPUs or MIG slices each instance takes, and of what kind."""

    count: GpuCount
    """GPUs per instance: whole ones, or below 1 a share of one GPU, such as 0.5, to three decimals."""
    model: Words = ()
    """Any of these: part of the name that NVIDIA's driver gives, in any case, such as `H100`; of MIG slices
    the profile, such as `1g.5gb`."""
    memory: SizeBytes = 0
    """The least memory of each GPU (of a share: of its GPU) or slice, such as 40GB; 0: any will do."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        slices = [model for model in self.model if asks_for_slice(model)]
        whole = [model for model in self.model if model not in slices]
        if slices and whole:
            raise refusal(
                f"expected either whole GPUs or MIG slices; found {shown(whole[0])} and {shown(slices[0])}",
                "model",
            )
        if slices and self.share_milli:
            raise refusal(
                f"expected whole MIG slices, for there are no shares of them; found {self.count:g}", "count"
            )
        return self

    @property
    def whole(self) -> int:
        return self.count if isinstance(self.count, int) else 0

    @property
    def share_milli(self) -> int:
        return 0 if isinstance(self.count, int) else round(self.count * WHOLE_GPU_MILLI)


def _gpus(value: Any) -> Any:
    return {"count": value} if isinstance(value, int | float | str | None) else value


class JobResources(Model):
    """What each instance takes, and how many instances there are."""

    instance_count: Count = Field(default=1, ge=1, le=INSTANCES_MAX)
    """Instances (one task each, on a node each if need be), placed together or not at all, unless elastic."""
    min_instance_count: Count | None = Field(default=None, ge=1, le=INSTANCES_MAX)
    """Elastic: the job starts, and goes on after a loss, with as few as this; absent: instance_count."""
    max_instance_count: Count | None = Field(default=None, ge=1, le=INSTANCES_MAX)
    """Elastic: the job takes as many as this while nobody else waits; absent: instance_count."""
    cpus: Number | None = Field(default=None, gt=0, le=10_000)
    """CPUs per instance, also fractions of one; absent: one per process."""
    memory: SizeBytes = 0
    """Memory per instance, such as 16Gi; 0: not accounted."""
    gpus: Annotated[Gpus, BeforeValidator(_gpus, json_schema_input_type=GpuCount | Gpus)] = Gpus(count=0)
    """GPUs per instance: a number (below 1: a share of one GPU), or a mapping with count and model."""
    instance_type: Words = ()
    """Not used yet: say cpus, memory and gpus instead."""
    shm_size: Line = ""
    """Not used: processes share the node's /dev/shm, with no limit of their own."""
    docker_args: Words = ()
    """Not used: the nodes choose how containers are started."""
    locations: Words = ()
    """Not used here."""
    properties: dict[str, PlainData] = Field(default={}, max_length=ENTRIES_MAX)
    """Not used here."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, count, high = self.min_instance_count, self.instance_count, self.max_instance_count
        if low is not None and low > count:
            raise refusal(f"expected at most instance_count ({count}); found {low}", "min_instance_count")
        if high is not None and high < count:
            raise refusal(f"expected at least instance_count ({count}); found {high}", "max_instance_count")
        return self


class Identity(Model):
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
    return TAG_DATA if isinstance(value, dict | DataInput) else TAG_LITERAL


def _unwrapped(value: Any) -> Any:
    """Azure's long form of a literal is a mapping with nothing but its value."""
    return value["value"] if isinstance(value, dict) and set(value) == {"value"} else value


InputValue = Annotated[
    Annotated[Value, Tag(TAG_LITERAL)] | Annotated[DataInput, Tag(TAG_DATA)],
    Discriminator(_kind),
    BeforeValidator(_unwrapped),
]


def _own_interpreter(value: Any) -> Any:
    return "" if value is None or value == {} else value


def _environment_kind(value: Any) -> str:
    return TAG_INLINE if isinstance(value, dict | Environment) else TAG_NAME


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


EnvironmentValue = Annotated[
    Annotated[Line, Tag(TAG_NAME)] | Annotated[Environment, Tag(TAG_INLINE)],
    Discriminator(_environment_kind),
    BeforeValidator(_own_interpreter),
]
OutputValue = Annotated[Output, BeforeValidator(_or_empty, json_schema_input_type=Output | None)]
