"""`distribution`: how the processes of a job find each other, one model per launcher.

What a launcher gives its ranks is made in agent/launchers.py; here is what a document may say of it.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from .fields import Count, Line, Lower, Text, refusal
from .parts import Model
from .problems import nearest, shown

PROCESSES_MAX: Final = 1024
LAUNCHERS: Final = ("pytorch", "deepspeed", "mpi", "ray")
_NOT_SUPPORTED: Final = ("tensorflow",)
_TAGS: Final = {name: f"\0{name}" for name in LAUNCHERS}


class Processes(Model):
    """A distribution that starts so many equal processes on each instance."""

    process_count_per_instance: Count = Field(default=1, ge=1, le=PROCESSES_MAX)
    """Processes (ranks) per instance, usually one per GPU."""


class PyTorchDistribution(Processes):
    """The environment variables of torchrun and a rendezvous store on rank 0's node."""

    type: Annotated[Literal["pytorch"], Lower]
    """`pytorch`: as torchrun starts it."""


class DeepSpeedDistribution(Processes):
    """As `pytorch`, and what DeepSpeed wants beside it; its configuration is the command's own."""

    type: Annotated[Literal["deepspeed"], Lower]
    """`deepspeed`: as its launcher starts it, without ssh."""


class MpiDistribution(Processes):
    """The variables by which a process started by mpirun knows its rank; there is no MPI beneath them."""

    type: Annotated[Literal["mpi"], Lower]
    """`mpi`: the environment variables of mpirun."""


class RayDistribution(Model):
    """A Ray cluster over the instances, for the life of the attempt; the command runs once, on its head."""

    type: Annotated[Literal["ray"], Lower]
    """`ray`: RAY_ADDRESS names the job's own cluster."""
    port: Count | None = Field(default=None, ge=1, le=65535)
    """Not used: free ports are chosen, so that jobs can share a node."""
    address: Line = ""
    """Refused: the cluster is the job's own."""
    include_dashboard: bool | None = Field(default=None, strict=True)
    """Not used: no dashboard is started."""
    dashboard_port: Count | None = Field(default=None, ge=1, le=65535)
    """Not used: no dashboard is started."""
    head_node_additional_args: Text = ""
    """Refused: `ray start` is given what the job's resources say."""
    worker_node_additional_args: Text = ""
    """Refused: `ray start` is given what the job's resources say."""

    @property
    def process_count_per_instance(self) -> int:
        """The node of Ray: its workers are Ray's own."""
        return 1


def _known_launcher(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    lower = kind.lower() if isinstance(kind, str) else kind
    if not isinstance(value, dict) or "type" not in value or lower in LAUNCHERS:
        return value
    expected = f"expected {', '.join(LAUNCHERS)}"
    if lower in _NOT_SUPPORTED:
        raise refusal(f"{lower} is not supported; {expected}", "type")
    guess = nearest(kind, LAUNCHERS)
    raise refusal(
        f"{expected}; found {shown(kind)}" + (f"; did you mean '{guess}'?" if guess else ""), "type"
    )


def _launcher_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return _TAGS[kind.lower() if isinstance(kind, str) else "pytorch"]


DistributionValue = Annotated[
    Annotated[PyTorchDistribution, Tag(_TAGS["pytorch"])]
    | Annotated[DeepSpeedDistribution, Tag(_TAGS["deepspeed"])]
    | Annotated[MpiDistribution, Tag(_TAGS["mpi"])]
    | Annotated[RayDistribution, Tag(_TAGS["ray"])],
    Discriminator(_launcher_tag),
    BeforeValidator(_known_launcher),
]
MODELS: Final = {
    _TAGS["pytorch"]: PyTorchDistribution,
    _TAGS["deepspeed"]: DeepSpeedDistribution,
    _TAGS["mpi"]: MpiDistribution,
    _TAGS["ray"]: RayDistribution,
}
"""By their tags, as they turn up in the paths of pydantic's errors. No key can look like those."""
