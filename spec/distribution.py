"""`distribution`: how the processes of a job find each other, one model per launcher.

What a launcher gives its ranks is made in agent/launchers.py; here is what a document may say of it.
"""

from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from .by_type import ByType
from .fields import Count, Line, Text
from .parts import Model

PROCESSES_MAX: Final = 1024
LAUNCHERS: Final = ("pytorch", "deepspeed", "mpi", "ray")


class Processes(Model):
    """A distribution that starts so many equal processes on each instance."""

    process_count_per_instance: Count = Field(default=1, ge=1, le=PROCESSES_MAX)
    """Processes (ranks) per instance, usually one per GPU."""


class PyTorchDistribution(Processes):
    """The environment variables of torchrun and a rendezvous store on rank 0's node."""

    type: Literal["pytorch"]
    """`pytorch`: as torchrun starts it."""


class DeepSpeedDistribution(Processes):
    """As `pytorch`, and what DeepSpeed wants beside it; its configuration is the command's own."""

    type: Literal["deepspeed"]
    """`deepspeed`: as its launcher starts it, without ssh."""


class MpiDistribution(Processes):
    """The variables by which a process started by mpirun knows its rank; there is no MPI beneath them."""

    type: Literal["mpi"]
    """`mpi`: the environment variables of mpirun."""


class RayDistribution(Model):
    """A Ray cluster over the instances, for the life of the attempt; the command runs once, on its head."""

    type: Literal["ray"]
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


AnyDistribution = PyTorchDistribution | DeepSpeedDistribution | MpiDistribution | RayDistribution
DistributionValue = Annotated[
    AnyDistribution,
    ByType(*get_args(AnyDistribution), refused={"tensorflow": "tensorflow is not supported"}),
]
