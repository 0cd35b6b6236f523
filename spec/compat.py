"""Which of Azure's keys are honoured otherwise, or not: warned about or refused, never dropped in silence.

`warnings_of` speaks of what the job says and this cluster will not do; `refusals_of` of what would
change the job's meaning if it ran nevertheless.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .distribution import RayDistribution
from .expressions import resolved_bytes_max
from .model import JobSpec
from .parts import DataInput, Environment
from .problems import Path
from .stores import why_not_fetched

NOT_COMMAND: Final = {
    "sweep": "this has to be one job, not a sweep",
    "pipeline": "pipelines are not supported yet",
    **dict.fromkeys(
        ("spark", "automl", "parallel", "data_transfer", "finetuning", "import", "component", "base"),
        "not supported",
    ),
}
"""Types of Azure's jobs that are not command jobs, and what to say of them."""

REFUSED_KEYS: Final = {
    "component": "components are not supported yet; give command, code and environment here",
}
DROPPED_KEYS: Final = dict.fromkeys(
    ("id", "status", "creation_context", "log_files", "parameters", "resource_id"),
    "written by Azure's service for a job that ran there; ignored",
)
_EVERY_RANK: Final = frozenset({"TORCHELASTIC_ERROR_FILE"})
_TORCHRUN: Final = _EVERY_RANK | frozenset(
    (
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
        *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
        *("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RUN_ID"),
        "TORCHELASTIC_USE_AGENT_STORE",
    )
)
RANK_VARIABLES: Final = {
    "pytorch": _TORCHRUN,
    "deepspeed": _TORCHRUN | {"CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE", "TORCH_EXTENSIONS_DIR"},
    "mpi": _EVERY_RANK
    | frozenset(
        (
            *(
                "OMPI_COMM_WORLD_RANK",
                "OMPI_COMM_WORLD_SIZE",
                "OMPI_UNIVERSE_SIZE",
                "OMPI_COMM_WORLD_NODE_RANK",
            ),
            *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_RANK", "PMI_SIZE"),
            *("MPI_LOCALRANKID", "MPI_LOCALNRANKS", "MASTER_ADDR", "MASTER_PORT", "AZ_BATCH_MASTER_NODE"),
            "TORCHELASTIC_USE_AGENT_STORE",
        )
    ),
    "ray": _EVERY_RANK | {"RAY_ADDRESS"},
    "": _EVERY_RANK,
}
"""By distribution.type: what the agent sets for each rank, whatever the job says."""
_RESOURCES: Final = {
    "instance_type": "not used yet; say cpus, memory and gpus instead",
    "shm_size": "not needed: processes share the node's /dev/shm, with no limit of their own",
    "docker_args": "not used: the nodes choose how a container is started",
    "locations": "not used: nodes have no location",
    "properties": "not used here",
}


ARGUMENT_BYTES_MAX: Final = 120_000
ARGUMENTS_BYTES_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Caution:
    """Something in a document that has no effect or another one here. `line` 0: no file."""

    source: str
    line: int
    column: int
    key: str
    text: str

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}:{self.column}: " if self.line else f"{self.source}: "
        return f"{place}{self.key}: {self.text}"


def warnings_of(spec: JobSpec) -> Iterator[tuple[Path, str]]:
    """Path and text of each thing that the job asks for and will not get as it was meant."""
    yield from _plain_warnings(spec)
    for key, text in _RESOURCES.items():
        if getattr(spec.resources, key):
            yield ("resources", key), text
    yield from _data_warnings(spec)
    yield from _environment_warnings(spec)


def refusals_of(spec: JobSpec) -> Iterator[tuple[Path, str]]:
    """Path and text of each thing without which the job would not be what was meant."""
    for name, value in spec.inputs.items():
        if isinstance(value, DataInput) and value.is_url and (why := why_not_fetched(value.path)):
            yield ("inputs", name, "path"), f"{why}; or say mode: direct, and the job gets this text"
    if spec.code and ("://" in spec.code or spec.code.startswith(("azureml:", "git+"))):
        yield ("code",), "code is not fetched from URIs yet; give a folder"
    yield from _environment_refusals(spec.environment)
    for name in spec.environment_variables:
        if name.startswith("PACELINE_"):
            yield ("environment_variables", name), "PACELINE_ variables are set by paceline alone"
    if isinstance(spec.distribution, RayDistribution):
        yield from _ray_refusals(spec.distribution)
    yield from _oversized(spec)


def _oversized(spec: JobSpec) -> Iterator[tuple[Path, str]]:
    """Linux starts no program with an argument or variable of 128 KiB, or with more than 2 MiB of both."""
    inputs, params, total = spec.input_values(), spec.param_values(), 0
    variables = spec.environment_variables.items()
    texts: list[tuple[Path, str]] = [(("params",), text) for text in spec.param_variables().values()]
    texts += [(("command",), spec.command)]
    texts += [(("environment_variables", name), text) for name, text in variables]
    for path, text in texts:
        size = resolved_bytes_max(text, inputs, params)
        total += size
        if size > ARGUMENT_BYTES_MAX or total > ARGUMENTS_BYTES_MAX:
            bound = ARGUMENT_BYTES_MAX if size > ARGUMENT_BYTES_MAX else ARGUMENTS_BYTES_MAX
            what = "" if size > ARGUMENT_BYTES_MAX else " together with what stands before it"
            yield (
                path,
                f"gets up to {max(size, total)} bytes long{what} when resolved; at most {bound} can be run",
            )
            return


def _plain_warnings(spec: JobSpec) -> Iterator[tuple[Path, str]]:
    if spec.pool:
        yield ("compute",), "where the cluster has no pools, the job runs on any node that fits"
    for name in spec.services:
        yield ("services", name), "not started here"
    if spec.queue_settings.job_tier:
        yield ("queue_settings", "job_tier"), "not used here; priority says what goes first"
    if spec.identity:
        yield ("identity",), "not used here; processes run as the agent's user"
    if spec.parent_job_name:
        yield ("parent_job_name",), "not used here"
    for name in spec.environment_variables:
        if name in RANK_VARIABLES[spec.launcher]:
            yield ("environment_variables", name), "set for each rank; this value is replaced"
    if isinstance(spec.distribution, RayDistribution):
        yield from _ray_warnings(spec.distribution)
    yield from _gpu_warnings(spec)
    if spec.resources.instance_count > 1 and spec.distribution is None:
        text = "without distribution each instance runs the command on its own, with no rendezvous"
        yield ("resources", "instance_count"), text
    if spec.topology and max(spec.resources.instance_count, spec.resources.max_instance_count or 0) == 1:
        yield ("topology",), "no effect: a single instance is always within one of them"


def _gpu_warnings(spec: JobSpec) -> Iterator[tuple[Path, str]]:
    for key in ("model", "memory"):
        if getattr(spec.resources.gpus, key) and not spec.resources.gpus.count:
            yield ("resources", "gpus", key), "has no effect with a count of 0"
    gpus = spec.resources.gpus.count
    if 0 < gpus < spec.process_count and spec.process_count > 1:
        shared = f"{gpus} GPUs" if spec.resources.gpus.whole else f"{gpus:g} of a GPU"
        text = f"{spec.process_count} processes share {shared}; NCCL needs one each"
        yield ("resources", "gpus"), text
    if spec.process_count > 1 and spec.demand().gpu.slices:
        text = "each process sees its own MIG slice alone, as device 0 whatever LOCAL_RANK is"
        yield ("resources", "gpus", "model"), text


def _environment_refusals(environment: str | Environment) -> Iterator[tuple[Path, str]]:
    if isinstance(environment, Environment):
        if not environment.name and not environment.image and not environment.is_built:
            text = "expected requirements, conda_file, an image, or a name that nodes map to an interpreter"
            yield ("environment",), text
        if environment.os_type == "windows":
            yield ("environment", "os_type"), "nodes run linux"
    elif environment.startswith(("file:", "./", "../")):
        text = (
            "environment files are not supported; expected a name that nodes map to an interpreter, the"
            " absolute path of an interpreter or venv, or a mapping with requirements or conda_file"
        )
        yield ("environment",), text


def _ray_refusals(ray: RayDistribution) -> Iterator[tuple[Path, str]]:
    if ray.address:
        yield ("distribution", "address"), "the job's cluster is its own; it joins no other"
    for key in ("head_node_additional_args", "worker_node_additional_args"):
        if getattr(ray, key):
            yield ("distribution", key), "not passed on; resources says what each instance has"


def _ray_warnings(ray: RayDistribution) -> Iterator[tuple[Path, str]]:
    if ray.port is not None:
        yield ("distribution", "port"), "not used: a free port is chosen; RAY_ADDRESS names it"
    for key in ("include_dashboard", "dashboard_port"):
        if getattr(ray, key):
            yield ("distribution", key), "not used: no dashboard is started"


def _data_warnings(spec: JobSpec) -> Iterator[tuple[Path, str]]:
    for name, value in spec.inputs.items():
        if isinstance(value, DataInput) and value.datastore:
            yield ("inputs", name, "datastore"), "not used here"
        if "${{" in (value.path if isinstance(value, DataInput) else str(value)):
            yield ("inputs", name), "expressions are resolved in command and environment_variables only"
        if isinstance(value, str) and value.startswith("azureml:"):
            text = f"the command gets this text as it is; an asset is named by `path: {value[:60]}`"
            yield ("inputs", name), text
    for name, output in spec.outputs.items():
        if output.path:
            yield ("outputs", name, "path"), "not used yet; outputs are kept in the job's own folder"
        if output.version and not output.name:
            yield ("outputs", name, "version"), "not used: without `name` it is not registered"


def _environment_warnings(spec: JobSpec) -> Iterator[tuple[Path, str]]:
    environment = spec.environment
    if not isinstance(environment, Environment):
        return
    key = spec.mapped_environment
    if environment.conda_file and key:
        text = f"nothing is installed; a node must map '{key}' to an interpreter that has these packages"
        yield ("environment", "conda_file"), text
    if environment.build:
        text = f"no image is built; a node must map '{key}' to an interpreter"
        yield ("environment", "build"), text
    if environment.name and environment.image:
        text = f"used only where a node has a container engine and maps nothing to '{key}'"
        yield ("environment", "image"), text if spec.container_image else f"not used: nodes look up '{key}'"
    for name in ("inference_config", "datastore"):
        if getattr(environment, name):
            yield ("environment", name), "not used here"
